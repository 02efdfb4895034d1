"""Shows memorisation, and meta-regularisation against it, on sinusoids whose amplitude stands in the input.

y = A sin x + noise; a one-hot code of A follows x, so one function fits all training tasks and nothing needs to be
learned from a task's own points. At test the code says nothing, and only a learner that uses these points can tell A.
MAML (arXiv 1703.03400) memorises; with a Gaussian over the encoder's weights and beta times its divergence from the
prior, MR-MAML on weights (arXiv 1912.03820, Eq. 5), the code costs too much to be used. All seeds are trained at once.

The published code makes a new Adam for every task, so that each of its steps is the sign of a gradient, and its beta is
5e-5; here Adam persists, and beta is larger.

    python scripts/memorization.py [--seeds 5] [--out FILE]
"""

from __future__ import annotations

import argparse
import itertools
import json
import math
import time
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor
from torch.nn import functional as F  # noqa: N812  # torch's own name for it

from mtrl.config import RunConfig
from mtrl.runlog import versions
from mtrl.seeding import torch_generator

NUM_AMPLITUDES, NUM_TRAINED = 20, 16  # the codes, and those that training draws from
AMPLITUDES = torch.linspace(0.1, 4.0, NUM_AMPLITUDES)
NOISE = 0.1
ENCODER = (1 + NUM_AMPLITUDES, 100, 5)
HEAD = (5, 40, 40, 1)
INNER_LR = 0.01
NUM_TASKS, NUM_SUPPORT, NUM_QUERY = 15_000, 10, 10  # of training: one task after the other
TEST_TASKS, TEST_SUPPORT, TEST_QUERY, TEST_STEPS = 100, 5, 200, 100
INITIAL_STD = 0.01
Numbers = Sequence[Tensor]


class Learner:
    """Encoder and head of every seed, [seed, ...]; the encoder's weights may be Gaussian."""

    def __init__(self, num_seeds: int, beta: float) -> None:
        """Begins with the same numbers whatever `beta`, the weight of the divergence; 0 is plain MAML."""
        self.beta = beta
        self.streams = [torch_generator(seed, "memorization") for seed in range(1, num_seeds + 1)]
        self.encoder = self._layers(ENCODER)
        self.head = self._layers(HEAD)
        self.log_std = [torch.full_like(mean, math.log(INITIAL_STD)).requires_grad_() for mean in self.encoder]
        learned = [*self.encoder, *self.head, *(self.log_std if beta else [])]
        self.optimizer = torch.optim.Adam(learned, lr=1e-3)

    def learn(self, x: Tensor, y: Tensor) -> Tensor:
        """Takes an outer step on a task of each seed, [seed, point, ...]; returns the query error [seed]."""
        encoder = self._sampled()
        support, query = slice(0, NUM_SUPPORT), slice(NUM_SUPPORT, None)
        adapted = self.adapted(encoder, self.head, x[:, support], y[:, support], 1, create_graph=True)
        error = mean_error(forward(encoder, adapted, x[:, query]), y[:, query])
        self.optimizer.zero_grad()
        (error.sum() + self.beta * self._divergence()).backward()  # type: ignore[no-untyped-call] # not annotated
        self.optimizer.step()
        return error.detach()

    def adapted(
        self, encoder: Numbers, head: Numbers, x: Tensor, y: Tensor, steps: int, *, create_graph: bool
    ) -> list[Tensor]:
        """Returns the head after gradient steps on a task's points; the encoder stays."""
        current = list(head)
        for _ in range(steps):
            error = mean_error(forward(encoder, current, x), y)
            slopes = torch.autograd.grad(error.sum(), current, create_graph=create_graph)
            current = [number - INNER_LR * slope for number, slope in zip(current, slopes, strict=True)]
            if not create_graph:
                current = [number.detach().requires_grad_() for number in current]
        return current

    def test_error(self) -> Tensor:
        """Returns the mean squared error on test tasks after adaptation with the mean weights, [seed]."""
        total = torch.zeros(len(self.streams))
        encoder = [mean.detach() for mean in self.encoder]
        head = [number.detach().requires_grad_() for number in self.head]
        for _ in range(TEST_TASKS):
            amplitude = torch.stack([0.1 + 3.9 * torch.rand((), generator=stream) for stream in self.streams])
            x, y = points(amplitude, self._codes(NUM_AMPLITUDES), TEST_SUPPORT + TEST_QUERY, self.streams)
            support, query = slice(0, TEST_SUPPORT), slice(TEST_SUPPORT, None)
            adapted = self.adapted(encoder, head, x[:, support], y[:, support], TEST_STEPS, create_graph=False)
            total += mean_error(forward(encoder, adapted, x[:, query]), y[:, query]).detach()
        return total / TEST_TASKS

    def training_task(self) -> tuple[Tensor, Tensor]:
        """Returns the points of a training task of each seed."""
        codes = self._codes(NUM_TRAINED)
        return points(AMPLITUDES[codes], codes, NUM_SUPPORT + NUM_QUERY, self.streams)

    def _codes(self, count: int) -> Tensor:
        return torch.stack([torch.randint(count, (), generator=stream) for stream in self.streams])

    def _layers(self, widths: Sequence[int]) -> list[Tensor]:
        numbers = []
        for fan_in, fan_out in itertools.pairwise(widths):
            bound = math.sqrt(6.0 / (fan_in + fan_out))
            weight = [torch.empty(fan_out, fan_in).uniform_(-bound, bound, generator=s) for s in self.streams]
            numbers += [torch.stack(weight).requires_grad_(), torch.zeros(len(weight), fan_out).requires_grad_()]
        return numbers

    def _sampled(self) -> list[Tensor]:
        if not self.beta:
            return self.encoder
        noise = [
            torch.stack([torch.randn(mean.shape[1:], generator=stream) for stream in self.streams])
            for mean in self.encoder
        ]
        drawn = zip(self.encoder, self.log_std, noise, strict=True)
        return [mean + log_std.exp() * epsilon for mean, log_std, epsilon in drawn]

    def _divergence(self) -> Tensor:
        """Returns KL(weights ‖ standard normal), summed over weights and seeds."""
        pairs = zip(self.encoder, self.log_std, strict=True)
        parts = [(0.5 * ((2 * s).exp() + m.square() - 1) - s).sum() for m, s in pairs]
        return torch.stack(parts).sum()


def forward(encoder: Numbers, head: Numbers, x: Tensor) -> Tensor:
    """Returns predictions [seed, point] for inputs [seed, point, 21]."""
    numbers = [*encoder, *head]
    hidden = x
    for layer in range(len(numbers) // 2):
        hidden = torch.baddbmm(numbers[2 * layer + 1].unsqueeze(1), hidden, numbers[2 * layer].mT)
        if 2 * (layer + 1) not in (len(encoder), len(numbers)):
            hidden = F.relu(hidden)
    return hidden.squeeze(2)


def mean_error(predicted: Tensor, y: Tensor) -> Tensor:
    """Returns the mean squared error of each seed, [seed]."""
    return (predicted - y).square().mean(dim=1)


def points(amplitude: Tensor, codes: Tensor, count: int, streams: Sequence[torch.Generator]) -> tuple[Tensor, Tensor]:
    """Returns inputs [seed, point, 21] and targets [seed, point]."""
    x = torch.stack([10.0 * torch.rand(count, generator=stream) - 5.0 for stream in streams])
    noise = torch.stack([torch.randn(count, generator=stream) for stream in streams])
    y = amplitude.unsqueeze(1) * x.sin() + NOISE * noise
    code = F.one_hot(codes, NUM_AMPLITUDES).float().unsqueeze(1).expand(-1, count, -1)
    return torch.cat([x.unsqueeze(2), code], dim=2), y


def errors_after_training(num_seeds: int, beta: float, num_tasks: int) -> tuple[Tensor, Tensor]:
    """Returns the query error at the end of training, a mean over 500 tasks, and the test error, [seed] each."""
    learner = Learner(num_seeds, beta)
    trained = torch.zeros(num_seeds)
    for _ in range(num_tasks):
        trained += (learner.learn(*learner.training_task()) - trained) / 500
    return trained, learner.test_error()


def main() -> None:
    """Trains with and without meta-regularisation, prints both test errors and their ratio."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--beta", type=float, default=1e-3)
    parser.add_argument("--tasks", type=int, default=NUM_TASKS)
    parser.add_argument("--out", type=Path)
    given = parser.parse_args()
    torch.set_num_threads(1)
    found = {}
    for name, beta in (("maml", 0.0), ("mr_maml", given.beta)):
        began = time.perf_counter()
        trained, tested = errors_after_training(given.seeds, beta, given.tasks)
        found[name] = {"beta": beta, "train_mse": trained.tolist(), "test_mse": tested.tolist()}
        print(
            f"{name}: training {trained.mean():.3f}, test {tested.mean():.3f} +- {tested.std():.3f} "
            f"over {given.seeds} seeds, {time.perf_counter() - began:.0f} s"
        )
    ratios = torch.tensor(found["maml"]["test_mse"]) / torch.tensor(found["mr_maml"]["test_mse"])
    print(f"MAML's test error is {ratios.mean():.2f} times MR-MAML's, {ratios.min():.2f} to {ratios.max():.2f}")
    if given.out is not None:
        given.out.parent.mkdir(parents=True, exist_ok=True)
        given.out.write_text(json.dumps({"machine": versions(RunConfig()), "figures": found}, indent=1) + "\n")


if __name__ == "__main__":
    main()

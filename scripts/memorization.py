"""Shows memorisation, and meta-regularisation against it, on sinusoids whose amplitude stands in the input.

y = A sin x + noise; a one-hot code of A follows x, so one function fits all training tasks and nothing needs to be
learned from a task's own points. At test the code says nothing, and only a learner that uses these points can tell A.

MAML (arXiv 1703.03400) adapts a perceptron that sees x and code, and memorises. MR-MAML on weights (arXiv 1912.03820,
Eq. 5) adapts a head behind an encoder that it does not adapt; the encoder's matrices are Gaussians, and their
divergence from N(0, 1) is part of the loss. Settings are those of the authors' published experiment. There the
Gaussians begin so narrow (1e-7) that they never widen and the divergence acts as a quadratic penalty on the means, and
MR-MAML's steps are Adam's first ones throughout, each the sign of a gradient. What the penalty does and what the rest
does is told apart by a third learner: the same with a penalty of zero. All seeds are trained at once.

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

import scipy.stats
import torch
from torch import Tensor
from torch.nn import functional as F  # noqa: N812  # torch's own name for it

from mtrl.config import RunConfig
from mtrl.runlog import versions
from mtrl.seeding import torch_generator

NUM_AMPLITUDES, NUM_TRAINED = 20, 16  # the codes, and those that training draws from
AMPLITUDES = torch.linspace(0.1, 4.0, NUM_AMPLITUDES)
NOISE = 0.1
PERCEPTRON = (1 + NUM_AMPLITUDES, 40, 40, 1)
ENCODER = (1 + NUM_AMPLITUDES, 100, 5)
HEAD = (5, 40, 40, 1)
INNER_LR, OUTER_LR = 0.01, 1e-3
NUM_TASKS, NUM_SUPPORT, NUM_QUERY = 15_000, 10, 10  # of training: one task after the other
TEST_TASKS, TEST_SUPPORT, TEST_QUERY, TEST_STEPS = 100, 5, 200, 100
BETA = 5e-5
ENCODER_STD = 0.1  # of the first means of its matrices
SIGN_EPS = 1e-7 / math.sqrt(1 - 0.999)  # Adam's epsilon of 1e-7, as its first step weighs it
Numbers = Sequence[Tensor]


class Learner:
    """A head that is adapted to a task and an encoder, which may be empty, that is not, of every seed, [seed, ...]."""

    def __init__(self, num_seeds: int, beta: float | None) -> None:
        """Begins with numbers that depend on the seeds alone.

        Args:
            num_seeds: How many are trained at once.
            beta: Weight of the encoder's divergence; None is MAML, which adapts everything.
        """
        self.streams = [torch_generator(seed, "memorization") for seed in range(1, num_seeds + 1)]
        self.encoder = [] if beta is None else self._layers(ENCODER, ENCODER_STD)
        self.head = self._layers(PERCEPTRON if beta is None else HEAD)
        self._beta = beta
        self._optimizer = torch.optim.Adam(self.head, lr=OUTER_LR, eps=1e-7)

    def learn(self, x: Tensor, y: Tensor) -> Tensor:
        """Takes an outer step on a task of each seed, [seed, point, ...]; returns the query error [seed]."""
        support, query = slice(0, NUM_SUPPORT), slice(NUM_SUPPORT, None)
        adapted = self.adapted(self.head, x[:, support], y[:, support], 1, create_graph=True)
        error = mean_error(forward(self.encoder, adapted, x[:, query]), y[:, query])
        self.step(error.sum())
        return error.detach()

    def step(self, loss: Tensor) -> None:
        """Descends the loss of all seeds by a step of Adam, or by a first step of Adam on loss and divergence."""
        if self._beta is None:
            self._optimizer.zero_grad()
            loss.backward()  # type: ignore[no-untyped-call] # not annotated
            self._optimizer.step()
            return
        learned = [*self.encoder, *self.head]
        penalty = torch.stack([0.5 * matrix.square().sum() for matrix in self.encoder[::2]]).sum()
        slopes = torch.autograd.grad(loss + self._beta * penalty, learned)
        with torch.no_grad():
            for number, slope in zip(learned, slopes, strict=True):
                number -= OUTER_LR * slope / (slope.abs() + SIGN_EPS)

    def adapted(self, head: Numbers, x: Tensor, y: Tensor, steps: int, *, create_graph: bool) -> list[Tensor]:
        """Returns the head after gradient steps on a task's points."""
        current = list(head)
        for _ in range(steps):
            error = mean_error(forward(self.encoder, current, x), y)
            slopes = torch.autograd.grad(error.sum(), current, create_graph=create_graph)
            current = [number - INNER_LR * slope for number, slope in zip(current, slopes, strict=True)]
            if not create_graph:
                current = [number.detach().requires_grad_() for number in current]
        return current

    def test_error(self) -> Tensor:
        """Returns the mean squared error on test tasks after adaptation, [seed]."""
        total = torch.zeros(len(self.streams))
        head = [number.detach().requires_grad_() for number in self.head]
        for _ in range(TEST_TASKS):
            amplitude = torch.stack([0.1 + 3.9 * torch.rand((), generator=stream) for stream in self.streams])
            x, y = points(amplitude, self._codes(), TEST_SUPPORT + TEST_QUERY, self.streams)
            support, query = slice(0, TEST_SUPPORT), slice(TEST_SUPPORT, None)
            adapted = self.adapted(head, x[:, support], y[:, support], TEST_STEPS, create_graph=False)
            total += mean_error(forward(self.encoder, adapted, x[:, query]), y[:, query]).detach()
        return total / TEST_TASKS

    def training_task(self) -> tuple[Tensor, Tensor]:
        """Returns the points of a training task of each seed."""
        codes = self._codes()
        return points(AMPLITUDES[codes], codes, NUM_SUPPORT + NUM_QUERY, self.streams)

    def _codes(self) -> Tensor:
        return torch.stack([torch.randint(NUM_TRAINED, (), generator=stream) for stream in self.streams])

    def _layers(self, widths: Sequence[int], std: float | None = None) -> list[Tensor]:
        """Returns weights and biases, Glorot-uniform or normal with a standard deviation, and zero."""
        numbers = []
        for fan_in, fan_out in itertools.pairwise(widths):
            weight = torch.stack([torch.empty(fan_out, fan_in) for _ in self.streams])
            bound = math.sqrt(6.0 / (fan_in + fan_out))
            for one, stream in zip(weight, self.streams, strict=True):
                one.uniform_(-bound, bound, generator=stream) if std is None else one.normal_(0, std, generator=stream)
            numbers += [weight.requires_grad_(), torch.zeros(len(weight), fan_out).requires_grad_()]
        return numbers


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


def errors_after_training(learner: Learner, num_tasks: int) -> tuple[Tensor, Tensor]:
    """Returns the query error of the last 500 training tasks and the test error, [seed] each."""
    errors = [learner.learn(*learner.training_task()) for _ in range(num_tasks)]
    return torch.stack(errors[-500:]).mean(dim=0), learner.test_error()


def main() -> None:
    """Trains with and without meta-regularisation, prints the test errors and their ratio."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--beta", type=float, default=BETA)
    parser.add_argument("--tasks", type=int, default=NUM_TASKS)
    parser.add_argument("--out", type=Path)
    given = parser.parse_args()
    torch.set_num_threads(1)
    learners = {
        "MAML": Learner(given.seeds, None),
        "MR-MAML": Learner(given.seeds, given.beta),
        "MR-MAML without its penalty": Learner(given.seeds, 0.0),
    }
    found = {}
    for name, learner in learners.items():
        began = time.perf_counter()
        trained, tested = errors_after_training(learner, given.tasks)
        found[name] = {"train_mse": trained.tolist(), "test_mse": tested.tolist()}
        seconds = time.perf_counter() - began
        print(
            f"{name}: training {trained.mean():.3f}, test {in_words(tested)} over {given.seeds} seeds, {seconds:.0f} s"
        )
    errors = {name: torch.tensor(figures["test_mse"]) for name, figures in found.items()}
    for name in ("MAML", "MR-MAML without its penalty"):
        ratios = errors[name] / errors["MR-MAML"]
        print(f"test error of {name} over MR-MAML's: {in_words(ratios)}, {ratios.min():.2f} to {ratios.max():.2f}")
    if given.out is not None:
        given.out.parent.mkdir(parents=True, exist_ok=True)
        record = {"machine": versions(RunConfig()), "beta": given.beta, "tasks": given.tasks, "figures": found}
        given.out.write_text(json.dumps(record, indent=1) + "\n")


def in_words(values: Tensor) -> str:
    """Returns the mean and its 95 % interval over seeds, by Student's t; of one seed the value alone."""
    if len(values) == 1:
        return f"{float(values):.3f}"
    t = float(scipy.stats.t.ppf(0.975, len(values) - 1))
    return f"{values.mean():.3f} +- {t * values.std() / math.sqrt(len(values)):.3f}"


if __name__ == "__main__":
    main()

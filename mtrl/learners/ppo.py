"""Proximal policy optimization for many tasks (arXiv 1707.06347): clipped steps over minibatches of every task.

The loop around it is `on_policy.py`. Differences from the paper are listed in docs/algorithms/mtppo.md.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from mtrl.config import RunConfig
from mtrl.data import Metrics, Trajectories
from mtrl.learners.annealing import ppo_lr
from mtrl.learners.descent import Descent
from mtrl.learners.episodes import PolicyBatch, policy_batch
from mtrl.learners.on_policy import MultiTaskOnPolicy, PolicyNetwork, continue_stream, distribution, mean_kl
from mtrl.learners.state import load_optimizer_state, optimizer_state
from mtrl.losses.policy_gradient import clipped_ratio_loss
from mtrl.networks.build import Suite, build_task_gaussian
from mtrl.networks.gaussian import entropy, log_prob
from mtrl.seeding import torch_generator
from mtrl.surgery.build import build_surgery

_ADAM_EPS = 1e-5  # as of PPO's first code, OpenAI's baselines, and of the published SAC rows


def multi_task_ppo(config: RunConfig, suite: Suite, device: torch.device) -> MultiTaskOnPolicy:
    """Returns a learner with PPO; all random numbers come from the run's seed.

    Raises:
        ConfigError: If the surgery needs more tasks than there are.
    """
    weights = torch_generator(config.seed, "networks")
    network = build_task_gaussian(config.network, config.on_policy, suite, weights).to(device)
    return MultiTaskOnPolicy(config, suite, network, Ppo(config, network, device))


class Ppo:
    """Epochs of Adam steps on the clipped surrogate and the policy's entropy."""

    def __init__(
        self,
        config: RunConfig,
        network: PolicyNetwork,
        device: torch.device,
        regularizer: Callable[[], Tensor] | None = None,
    ) -> None:
        """Builds optimizer and streams; all random numbers come from the run's seed.

        Args:
            config: Of the run.
            network: Of the policy.
            device: Of the network.
            regularizer: What else is added to the losses, [task], as a function of the network's own numbers.

        Raises:
            ConfigError: If the surgery needs more tasks than there are.
        """
        self._regularizer = regularizer
        self._config, self._ppo, self._on_policy = config, config.ppo, config.on_policy
        self._network, self._device = network, device
        self._measure_every = config.surgery.statistics_every
        self._task_id = torch.arange(network.num_tasks, device=device)
        self._optimizer = torch.optim.Adam(
            [*network.shared, *network.private], config.ppo.lr, eps=_ADAM_EPS, fused=True
        )
        self._draws = torch_generator(config.seed, "minibatches")
        self._orders = torch_generator(config.seed, "surgery", device=device)
        surgery = build_surgery(config.surgery, network.num_tasks)
        self._descent = Descent(
            network, self._optimizer, config.surgery, surgery, self._orders, config.ppo.max_grad_norm
        )

    def batch(self, trajectories: Trajectories) -> PolicyBatch:
        """Returns the episodes with the advantages of each task."""
        return policy_batch(trajectories, self._on_policy, self._device)

    def improve(self, batch: PolicyBatch, gradient_steps: int, env_steps: int) -> tuple[Metrics, int]:
        """Makes the steps of all epochs, or of as many as the divergence allows."""
        for group in self._optimizer.param_groups:
            group["lr"] = ppo_lr(self._config, env_steps)
        old = distribution(self._network, batch)
        found: list[Metrics] = []
        for epoch in range(self._ppo.epochs):
            for minibatch in minibatches(batch, self._ppo.minibatches, self._draws):
                measure = bool(self._measure_every) and (gradient_steps + len(found)) % self._measure_every == 0
                found.append(self._step(minibatch, measure))
            if epoch == self._ppo.epochs - 1 or self._ppo.target_kl is not None:
                kl = mean_kl(old, distribution(self._network, batch), batch.mask)
                if self._ppo.target_kl is not None and kl > self._ppo.target_kl:
                    break
        averages = averaged(found)
        values = {**averages.values, "train/kl": kl, "train/entropy": entropy(self._network.log_std).mean()}
        return Metrics(values, averages.matrices, num_samples=int(batch.mask.sum()) * (epoch + 1)), len(found)

    def losses(self, batch: PolicyBatch, numbers: Sequence[Tensor] | None) -> Tensor:
        """Returns the loss of each task, [task].

        Args:
            batch: [task, step, ...].
            numbers: In place of the network's own, [1, ...] or [task, ...] each.
        """
        mean, log_std = self._network(batch.obs, self._task_id, numbers)
        found = log_prob(batch.sample, mean, log_std)
        surrogate = clipped_ratio_loss(found, batch.log_prob, batch.advantage, batch.mask, self._ppo.clip)
        losses = surrogate - self._ppo.entropy_coefficient * entropy(log_std).squeeze(1)
        return losses if self._regularizer is None else losses + self._regularizer()

    def state_dict(self) -> dict[str, Any]:
        """Returns optimizer and streams."""
        return {
            "optimizer": optimizer_state(self._optimizer),
            "minibatches": self._draws.get_state(),
            "surgery": self._orders.get_state(),
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Takes over a state made by `state_dict`."""
        load_optimizer_state(self._optimizer, state["optimizer"])
        self._draws.set_state(state["minibatches"])
        continue_stream(self._orders, state["surgery"])

    def _step(self, minibatch: PolicyBatch, measure: bool) -> Metrics:
        def loss_of(shared: Sequence[Tensor] | None, private: Sequence[Tensor] | None) -> Tensor:
            return self.losses(minibatch, None if shared is None else [leaf[0] for leaf in shared])

        return self._descent.step(loss_of, measure, "policy")


def minibatches(batch: PolicyBatch, number: int, generator: torch.Generator) -> Iterator[PolicyBatch]:
    """Yields the minibatches [task, step, ...] that `shares` chooses."""
    for index, valid in shares(batch.mask, number, generator):
        yield batch.chosen(index, valid)


def shares(mask: Tensor, number: int, generator: torch.Generator) -> Iterator[tuple[Tensor, Tensor]]:
    """Yields shares that together hold every valid step once at random, each as large a part of every task.

    Args:
        mask: bool [task, step], False in padding.
        number: Of shares; fewer if a task has fewer steps, as none may lack a task.
        generator: On the CPU, so that the draws are the same on any device.

    Yields:
        The steps of each task, int64 [task, chosen], and bool [task, chosen], False where the share of a task is
        smaller than that of another.
    """
    here = mask.cpu()
    keys = torch.rand(here.shape, generator=generator).masked_fill(~here, 2.0)
    order = keys.argsort(dim=1, stable=True)  # [task, step], valid steps of each task at random, then its padding
    counts = here.sum(dim=1, keepdim=True)  # [task, 1]
    number = min(number, int(counts.min()))
    for part in range(number):
        first, last = counts * part // number, counts * (part + 1) // number
        place = first + torch.arange(int((last - first).max()))  # [task, chosen]
        index = order.gather(1, place.clamp(max=here.shape[1] - 1))
        yield index.to(mask.device), (place < last).to(mask.device)


def averaged(found: Sequence[Metrics]) -> Metrics:
    """Returns the means of the values and matrices of several steps, each over the steps that gave it."""

    def means(records: Sequence[Mapping[str, Tensor]]) -> dict[str, Tensor]:
        names = {name: None for record in records for name in record}  # in order
        return {name: torch.stack([record[name] for record in records if name in record]).mean(dim=0) for name in names}

    return Metrics(means([one.values for one in found]), means([one.matrices for one in found]))

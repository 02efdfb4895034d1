"""A Gaussian policy for many tasks that is told the task: the one-hot task id follows the observation."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor, nn

from mtrl.networks.gaussian import GaussianNetwork, GaussianShape


class TaskGaussian(nn.Module):
    """A `GaussianNetwork` over observation and one-hot task id, with numbers that all tasks share.

    `shared` and `private` are what `Descent` steps: all parameters, and none.
    """

    def __init__(self, shape: GaussianShape, num_tasks: int, generator: torch.Generator) -> None:
        """Builds the network; `shape.in_features` counts the observation only."""
        super().__init__()
        self.num_tasks = num_tasks
        self.network = GaussianNetwork(replace(shape, in_features=shape.in_features + num_tasks), generator)
        self.register_buffer("one_hot", torch.eye(num_tasks), persistent=False)

    @property
    def shared(self) -> list[nn.Parameter]:
        """The parameters, [1, ...]."""
        return list(self.network.numbers)

    @property
    def private(self) -> list[nn.Parameter]:
        """No parameters: none belongs to a single task."""
        return []

    @property
    def log_std(self) -> Tensor:
        """The log standard deviation of each action dimension, [action_dim], without gradient."""
        return clamped_log_std(self.network)

    def forward(self, obs: Tensor, task_id: Tensor, numbers: Sequence[Tensor] | None = None) -> tuple[Tensor, Tensor]:
        """Returns mean and log standard deviation, [task, batch, action_dim] and [task or 1, 1, action_dim].

        Args:
            obs: [task, batch, obs_dim], without the task id.
            task_id: int64 [task], which task each row of `obs` belongs to.
            numbers: In place of the network's own, [1, ...] or [task, ...] each.
        """
        tasks, batch, _ = obs.shape
        one_hot: Tensor = self.one_hot[task_id]  # type: ignore[index]  # a registered buffer
        rows = torch.cat([obs, one_hot.unsqueeze(1).expand(tasks, batch, -1)], dim=2)  # [task, batch, in_features]
        return with_numbers(self.network, rows, numbers)


def with_numbers(network: GaussianNetwork, rows: Tensor, numbers: Sequence[Tensor] | None) -> tuple[Tensor, Tensor]:
    """Returns mean and log standard deviation, [task, batch, action_dim] and [task or 1, 1, action_dim].

    Args:
        network: Of the policy.
        rows: [task, batch, in_features].
        numbers: In place of the network's own, [1, ...] or [task, ...] each.
    """
    if numbers is not None and len(numbers[0]) > 1:
        mean, log_std = network(rows, numbers)
        return mean, log_std
    mean, log_std = network(rows.flatten(0, 1).unsqueeze(0), numbers)  # one product per layer for all tasks
    return mean.view(*rows.shape[:2], -1), log_std


def clamped_log_std(network: GaussianNetwork) -> Tensor:
    """Returns the network's own log standard deviation of each action dimension, [action_dim], without gradient."""
    found: Tensor = network.numbers[-1].detach()[0]
    return found.clamp(min=math.log(network.shape.min_std))

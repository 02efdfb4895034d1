"""A Gaussian policy for many tasks that is told a point of a learned space in place of the task.

Each task has a Gaussian of its own in that space (Hausman et al. 2018, Learning an Embedding Space for Transferable
Robot Skills), from which an episode draws one point. What predicts the point from behaviour is in `te_ppo.py`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor, nn

from mtrl.networks.gaussian import GaussianNetwork, GaussianShape
from mtrl.networks.task_gaussian import clamped_log_std, with_numbers


class TaskEmbeddingGaussian(nn.Module):
    """A `GaussianNetwork` over observation and embedding, and the distribution of embeddings of each task.

    Observations are followed by the noise [latent_dim] that the episode drew: the embedding is mean + std x noise, so
    that the policy's density depends on the embeddings' parameters too. `shared` and `private` are what `Descent`
    steps: the policy's numbers, and means and spreads that belong to one task each.
    """

    def __init__(
        self, shape: GaussianShape, num_tasks: int, latent_dim: int, max_std: float, generator: torch.Generator
    ) -> None:
        """Builds the network; `shape.in_features` counts the observation only, `max_std` bounds an embedding's std."""
        super().__init__()
        self.num_tasks, self.latent_dim = num_tasks, latent_dim
        self._max_std = max_std
        self.network = GaussianNetwork(replace(shape, in_features=shape.in_features + latent_dim), generator)
        self.mean = nn.Parameter(torch.empty(num_tasks, latent_dim).uniform_(-1.0, 1.0, generator=generator))
        self.spread = nn.Parameter(torch.zeros(num_tasks, latent_dim))

    @property
    def shared(self) -> list[nn.Parameter]:
        """The policy's numbers, [1, ...]."""
        return list(self.network.numbers)

    @property
    def private(self) -> list[nn.Parameter]:
        """What decides the embeddings, [task, latent_dim] each."""
        return [self.mean, self.spread]

    @property
    def log_std(self) -> Tensor:
        """The log standard deviation of each action dimension, [action_dim], without gradient."""
        return clamped_log_std(self.network)

    def embedding(self) -> tuple[Tensor, Tensor]:
        """Returns mean in (-1, 1) and standard deviation in (0, max_std) of each task's embedding, [task, latent_dim].

        The standard deviation begins at half of its limit.
        """
        return torch.tanh(self.mean), self._max_std * torch.sigmoid(self.spread)

    def embedded(self, noise: Tensor, task_id: Tensor) -> Tensor:
        """Returns the embeddings [task, batch, latent_dim] of noise of the same shape, for int64 task_id [task]."""
        mean, std = self.embedding()
        return mean[task_id].unsqueeze(1) + std[task_id].unsqueeze(1) * noise

    def forward(self, obs: Tensor, task_id: Tensor, numbers: Sequence[Tensor] | None = None) -> tuple[Tensor, Tensor]:
        """Returns mean and log standard deviation, [task, batch, action_dim] and [task or 1, 1, action_dim].

        Args:
            obs: [task, batch, obs_dim + latent_dim], each observation followed by its episode's noise.
            task_id: int64 [task], which task each row of `obs` belongs to.
            numbers: In place of the policy's own, [1, ...] or [task, ...] each.
        """
        state, noise = obs[..., : -self.latent_dim], obs[..., -self.latent_dim :]
        return with_numbers(self.network, torch.cat([state, self.embedded(noise, task_id)], dim=2), numbers)

"""Tanh-Gaussian actor: distribution parameters, samples with their log-probability, mode."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812  # torch's own name for it

from mtrl.networks.stack import NetworkStack, StackShape

LOG_STD_RANGE = (-20.0, 2.0)


class Actor(nn.Module):
    """Maps observations to a diagonal Gaussian whose samples tanh squashes (arXiv 1812.05905, appendix C)."""

    def __init__(self, shape: StackShape, generator: torch.Generator) -> None:
        super().__init__()
        self.stack = NetworkStack(shape, generator)

    def forward(
        self,
        obs: Tensor,
        task_id: Tensor | None,
        shared: Sequence[Tensor] | None = None,
        private: Sequence[Tensor] | None = None,
    ) -> tuple[Tensor, Tensor]:
        """Returns mean and log standard deviation before squashing, [task, batch, action_dim] each.

        Args:
            obs: [task, batch, obs_dim].
            task_id: int64 [task]; None for a network that is not told the task.
            shared: As `NetworkStack.forward`.
            private: As `NetworkStack.forward`.
        """
        out = self.stack(obs, task_id, shared, private)[0]  # [task, batch, 2 * action_dim]
        mean, log_std = out.chunk(2, dim=-1)
        return mean, log_std.clamp(*LOG_STD_RANGE)


def squashed_sample(mean: Tensor, log_std: Tensor, noise: Tensor) -> tuple[Tensor, Tensor]:
    """Squashes a reparametrised sample and gives its log-probability.

    Args:
        mean: [..., action_dim], before squashing.
        log_std: [..., action_dim].
        noise: [..., action_dim], standard normal.

    Returns:
        The action in (-1, 1), [..., action_dim], and log pi(action), [...] (arXiv 1812.05905, Eq. 21).
    """
    before = mean + log_std.exp() * noise
    gaussian = -0.5 * noise.square() - log_std - 0.5 * math.log(2.0 * math.pi)
    # log(1 - tanh(u)^2) without the cancellation that the literal form has for large |u|
    squash = 2.0 * (math.log(2.0) - before - F.softplus(-2.0 * before))
    return torch.tanh(before), (gaussian - squash).sum(dim=-1)

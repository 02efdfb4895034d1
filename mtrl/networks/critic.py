"""Twin Q-functions, stacked so that both are computed together."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from mtrl.networks.stack import NetworkStack, StackShape

NUM_CRITICS = 2


class Critics(nn.Module):
    """Maps observations and actions to one value per critic and row."""

    def __init__(self, shape: StackShape, generator: torch.Generator) -> None:
        super().__init__()
        self.stack = NetworkStack(shape, generator)

    def forward(
        self,
        obs: Tensor,
        action: Tensor,
        task_id: Tensor | None,
        shared: Sequence[Tensor] | None = None,
        private: Sequence[Tensor] | None = None,
    ) -> Tensor:
        """Returns Q [critic, task, batch] for obs [task, batch, obs_dim] and actions [task, batch, action_dim]."""
        values: Tensor = self.stack(torch.cat([obs, action], dim=-1), task_id, shared, private)
        return values.squeeze(-1)

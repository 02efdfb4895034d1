"""What tells whether networks can still learn: norms of their parameters, and how many units have fallen silent."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from mtrl.networks.stack import NetworkStack

DORMANT_AT_MOST = 0.025
"""Share of its layer's mean activity up to which a unit counts as dormant."""


@torch.no_grad()
def parameter_norm(network: nn.Module) -> Tensor:
    """Returns the Euclidean norm of all parameters together, []."""
    norm: Tensor = torch.stack([parameter.norm() for parameter in network.parameters()]).norm()
    return norm


@torch.no_grad()
def dormant_share(stack: NetworkStack, x: Tensor, task_id: Tensor) -> Tensor:
    """Returns the share of hidden units, of all layers and networks, that are dormant, [].

    A unit is dormant where its mean absolute output over all rows is at most `DORMANT_AT_MOST` of the mean over the
    units of its layer (Sokar et al. 2023, arXiv 2302.12902, Eq. 1 and Definition 3.1 with τ = 0.025).

    Args:
        stack: Networks.
        x: [task, batch, in_features].
        task_id: int64 [task].
    """
    dormant = []
    for hidden in stack.hidden(x, task_id):
        activity = hidden.abs().mean(dim=1)  # [net, unit]
        dormant.append((activity <= DORMANT_AT_MOST * activity.mean(dim=1, keepdim=True)).flatten())
    return torch.cat(dormant).double().mean()

"""What PEARL infers of a task: an encoder of single transitions, and the product of what each of them says.

Probabilistic Embeddings for Actor-Critic RL (arXiv 1903.08254, section 4.2). No losses here.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812  # torch's own name for it

from mtrl.networks.stack import NetworkStack, StackShape

LEAST_VARIANCE = 1e-7
"""To which variances of factors are raised, so that one transition cannot outweigh all others without limit."""


class ContextEncoder(nn.Module):
    """Maps each transition to a factor of its task's posterior: a diagonal Gaussian over the latent variable."""

    def __init__(self, shape: StackShape, generator: torch.Generator) -> None:
        """Builds a stack of one network; `shape.out_features` are mean and variance of each latent dimension."""
        super().__init__()
        self.stack = NetworkStack(shape, generator)

    def forward(self, context: Tensor) -> tuple[Tensor, Tensor]:
        """Returns means and variances of the factors, [task, n, latent] each, for context [task, n, in_features]."""
        out = self.stack(context, None)[0]  # [task, n, 2 * latent]
        mean, before = out.chunk(2, dim=-1)
        return mean, F.softplus(before)


def context_rows(obs: Tensor, action: Tensor, reward: Tensor, next_obs: Tensor | None) -> Tensor:
    """Returns what the encoder sees of transitions, [task, n, in_features].

    Args:
        obs: [task, n, obs_dim].
        action: [task, n, action_dim].
        reward: [task, n], scaled for the encoder.
        next_obs: [task, n, obs_dim]; None leaves it out.
    """
    assert reward.shape == obs.shape[:2]
    columns = [obs, action, reward.unsqueeze(2)]
    return torch.cat(columns if next_obs is None else [*columns, next_obs], dim=2)


def precision_sums(mean: Tensor, variance: Tensor) -> tuple[Tensor, Tensor]:
    """Returns the summed precision of factors and their summed means times precision, [task, latent] each.

    These add up over parts of a context, so that it may come piece by piece.

    Args:
        mean: [task, n, latent].
        variance: [task, n, latent].
    """
    precision = variance.clamp(min=LEAST_VARIANCE).reciprocal()
    return precision.sum(dim=1), (mean * precision).sum(dim=1)


def product_of_gaussians(mean: Tensor, variance: Tensor) -> tuple[Tensor, Tensor]:
    """Returns mean and variance of the product of factors [task, n, latent], [task, latent] each.

    The order of the factors does not matter (arXiv 1903.08254, Eq. 2). The prior is not among them, as in the authors'
    code.
    """
    precision, weighted = precision_sums(mean, variance)
    return weighted / precision, precision.reciprocal()


def beside(rows: Tensor, z: Tensor) -> Tensor:
    """Returns rows [task, batch, n], each followed by its task's latent variable of z [task, latent]."""
    return torch.cat([rows, z.unsqueeze(1).expand(-1, rows.shape[1], -1)], dim=2)

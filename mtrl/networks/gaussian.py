"""A Gaussian policy whose numbers may differ from slot to slot: one product per layer for all of them.

Parameters are a flat list, so that adapted copies `[slot, ...]` stand where the network's own `[1, ...]` do.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from mtrl.networks.stack import ACTIVATIONS


@dataclass(frozen=True)
class GaussianShape:
    """Sizes of a `GaussianNetwork`."""

    in_features: int
    action_dim: int
    widths: tuple[int, ...]
    activation: str
    initial_std: float
    min_std: float


class GaussianNetwork(nn.Module):
    """Observation → mean of a diagonal Gaussian; the standard deviation is a parameter of each action dimension.

    Weights start Glorot-uniform with zero bias, the output layer a hundred times smaller, so that the first actions are
    noise around zero.
    """

    def __init__(self, shape: GaussianShape, generator: torch.Generator) -> None:
        super().__init__()
        self.shape = shape
        self.numbers = nn.ParameterList()
        fan_in = shape.in_features
        for layer, width in enumerate((*shape.widths, shape.action_dim)):
            bound = math.sqrt(6.0 / (fan_in + width)) * (0.01 if layer == len(shape.widths) else 1.0)
            weight = torch.empty(1, width, fan_in).uniform_(-bound, bound, generator=generator)
            self.numbers.extend([nn.Parameter(weight), nn.Parameter(torch.zeros(1, width))])
            fan_in = width
        self.numbers.append(nn.Parameter(torch.full((1, shape.action_dim), math.log(shape.initial_std))))

    def forward(self, obs: Tensor, numbers: Sequence[Tensor] | None = None) -> tuple[Tensor, Tensor]:
        """Returns mean and log standard deviation, [slot, batch, action_dim] and [slot or 1, 1, action_dim].

        Args:
            obs: [slot, batch, in_features].
            numbers: In place of the network's own, [slot, ...] or [1, ...] each.
        """
        numbers = list(self.numbers) if numbers is None else numbers
        activation = ACTIVATIONS[self.shape.activation]
        hidden = obs
        last = len(self.shape.widths)
        for layer in range(last + 1):
            weight, bias = numbers[2 * layer], numbers[2 * layer + 1]
            hidden = torch.matmul(hidden, weight.mT) + bias.unsqueeze(1)
            if layer < last:
                hidden = activation(hidden)
        log_std = numbers[-1].clamp(min=math.log(self.shape.min_std))
        return hidden, log_std.unsqueeze(1)


def log_prob(sample: Tensor, mean: Tensor, log_std: Tensor) -> Tensor:
    """Returns the log-density of samples [..., action_dim], summed over action dimensions, [...]."""
    z = (sample - mean) * (-log_std).exp()
    return (-0.5 * z.square() - log_std - 0.5 * math.log(2.0 * math.pi)).sum(dim=-1)


def kl_divergence(mean: Tensor, log_std: Tensor, new_mean: Tensor, new_log_std: Tensor) -> Tensor:
    """Returns KL(old ‖ new) of diagonal Gaussians, summed over the last dimension, [...]."""
    variance_ratio = (2.0 * (log_std - new_log_std)).exp()
    distance = ((new_mean - mean) * (-new_log_std).exp()).square()
    return (0.5 * (variance_ratio + distance - 1.0) + new_log_std - log_std).sum(dim=-1)


def kl_hessian_product(log_std: Tensor, of_mean: Tensor, of_log_std: Tensor) -> tuple[Tensor, Tensor]:
    """Returns the Hessian of `kl_divergence` by the new Gaussian, where it equals the old one, times a direction.

    It is 1/σ² along means and 2 along log standard deviations. The directions are those of mean and log_std.
    """
    return of_mean * (-2.0 * log_std).exp(), 2.0 * of_log_std


def entropy(log_std: Tensor) -> Tensor:
    """Returns the entropy of diagonal Gaussians, summed over the last dimension, [...]."""
    return (log_std + 0.5 * math.log(2.0 * math.pi * math.e)).sum(dim=-1)

"""What MAML's sampled tasks begin with: common numbers, or draws from a learned Gaussian over them.

Meta-regularisation on weights (Yin et al. 2020, arXiv 1912.03820, Eq. 5): where one policy could solve all training
tasks without adaptation, as when goals are visible, what it costs to write the tasks' answers into the common
parameters is their divergence from a prior. Every sampled task begins with a draw of its own; meta-test with the means.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from mtrl.config import MamlConfig
from mtrl.learners.trust_region import flat
from mtrl.networks.gaussian import GaussianNetwork, kl_divergence


class InitialParameters:
    """The parameters that an outer step changes, and the numbers that each sampled task begins with."""

    def __init__(self, config: MamlConfig, network: GaussianNetwork, draws: torch.Generator) -> None:
        """Begins with a network's numbers; `draws`, a stream on the CPU, is used for Gaussians only."""
        self.weight = config.meta_regularization
        self.means: list[nn.Parameter] = list(network.numbers)
        spread = math.log(config.initial_weight_std)
        self.log_stds = [nn.Parameter(torch.full_like(mean, spread)) for mean in self.means] if self.weight else []
        self._draws = draws
        self._noise: list[Tensor] = []  # standard normal [slot, ...]

    @property
    def parameters(self) -> list[nn.Parameter]:
        """Means, then log standard deviations if there are any."""
        return [*self.means, *self.log_stds]

    def draw(self, num_slots: int) -> None:
        """Draws what the sampled tasks of an iteration begin with."""
        self._noise = [
            torch.randn((num_slots, *mean.shape[1:]), generator=self._draws, dtype=mean.dtype).to(mean.device)
            for mean in self.means[: len(self.log_stds)]
        ]

    def of(self, parameters: Sequence[Tensor], chosen: slice) -> list[Tensor]:
        """Returns the numbers [slot, ...] that chosen slots begin with, or [1, ...] common to all.

        Args:
            parameters: In place of its own; the result can be differentiated by them.
            chosen: Slots of the last draw.
        """
        means, log_stds = parameters[: len(self.means)], parameters[len(self.means) :]
        if not log_stds:
            return list(means)
        triples = zip(means, log_stds, self._noise, strict=True)
        return [mean + log_std.exp() * noise[chosen] for mean, log_std, noise in triples]

    def penalty(self, parameters: Sequence[Tensor]) -> Tensor:
        """Returns the weighted divergence from standard normals, summed over parameters, []."""
        means, log_stds = parameters[: len(self.means)], parameters[len(self.means) :]
        if not log_stds:
            return torch.zeros(()).to(means[0])
        zero = torch.zeros(()).to(means[0])  # mean and log standard deviation of the prior
        parts = [kl_divergence(mean, log_std, zero, zero).sum() for mean, log_std in zip(means, log_stds, strict=True)]
        return self.weight * torch.stack(parts).sum()

    def own_penalty(self) -> float:
        """Returns the penalty at its own parameters."""
        return float(self.penalty(self.parameters).detach())

    def slope_of_penalty(self) -> Tensor | float:
        """Returns the gradient of the penalty at its own parameters, [param]; 0.0 without one."""
        if not self.weight:
            return 0.0
        return flat(torch.autograd.grad(self.penalty(self.parameters), self.parameters))

    def state_dict(self) -> dict[str, Any]:
        """Returns log standard deviations, stream and the noise of the iteration; the means are the network's."""
        return {
            "log_stds": {str(n): log_std.detach() for n, log_std in enumerate(self.log_stds)},
            "draws": self._draws.get_state(),
            "noise": {str(n): noise for n, noise in enumerate(self._noise)},
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Takes over a state made by `state_dict`."""
        with torch.no_grad():
            for number, log_std in enumerate(self.log_stds):
                log_std.copy_(state["log_stds"][str(number)])
        self._draws.set_state(state["draws"])
        noise = state["noise"]
        self._noise = [noise[str(n)].to(self.means[n].device) for n in range(len(noise))]

"""Where PEARL's Q-functions get their targets from: a value network as published, or twin target critics.

Both know the latent variable of a task and never send a gradient to it.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor, nn

from mtrl.config import RunConfig
from mtrl.data import Batch
from mtrl.learners.network_step import NetworkStep
from mtrl.losses import pearl as losses
from mtrl.losses import sac
from mtrl.networks.build import Suite, build_latent_value
from mtrl.networks.context import beside
from mtrl.networks.critic import Critics

Act = Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]
"""(obs [task, batch, obs_dim], z [task, latent]) → actions of the policy and their log-probability [task, batch]."""


class SoftValues(Protocol):
    """Makes targets for the Q-functions, and learns from what these say of the policy's actions."""

    def temperature(self) -> Tensor:
        """Returns the weight of log pi in the policy's loss, [], without gradient."""

    def target(self, batch: Batch, z: Tensor, act: Act) -> Tensor:
        """Returns the target of the Q-functions [task, batch], without gradient."""

    def learn(self, batch: Batch, z: Tensor, q: Tensor, log_prob: Tensor) -> dict[str, Tensor]:
        """Makes the step that follows those of the Q-functions.

        Args:
            batch: Of the update.
            z: [task, latent].
            q: [critic, task, batch], at actions of the policy.
            log_prob: [task, batch], of these actions.

        Returns:
            Metrics, [] each.
        """

    def state_dict(self) -> dict[str, Any]:
        """Returns networks and optimizers."""

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Takes over a state made by `state_dict`."""

    def load_weights(self, state: Mapping[str, Any]) -> None:
        """Takes over only the networks of such a state."""


class ValueNetwork:
    """A value network with a slow copy; the temperature is 1 and rewards are scaled (arXiv 1801.01290)."""

    def __init__(self, config: RunConfig, suite: Suite, device: torch.device, weights: torch.Generator) -> None:
        self._sac = config.sac
        self.value = build_latent_value(config.network, suite, config.pearl.latent_dim, weights).to(device)
        self.target_value = copy.deepcopy(self.value).requires_grad_(False)
        sac_config = config.sac
        self._step = NetworkStep(
            self.value.parameters(), sac_config.critic_lr, sac_config.adam_eps, sac_config.max_grad_norm
        )
        self._one = torch.ones((), device=device)

    def temperature(self) -> Tensor:
        """Returns 1."""
        return self._one

    @torch.no_grad()
    def target(self, batch: Batch, z: Tensor, act: Act) -> Tensor:
        """Returns reward and discounted value of the next observation; the policy is not asked."""
        next_value = self._values(self.target_value, batch.next_obs, z)
        return losses.value_bootstrap(batch.reward, batch.terminated, next_value, self._sac.gamma)

    def loss(self, batch: Batch, z: Tensor, q: Tensor, log_prob: Tensor) -> Tensor:
        """Returns the value network's loss, []."""
        return losses.value_loss(self._values(self.value, batch.obs, z.detach()), q, log_prob)

    def learn(self, batch: Batch, z: Tensor, q: Tensor, log_prob: Tensor) -> dict[str, Tensor]:
        """Steps the value network, then its slow copy."""
        loss = self.loss(batch, z, q, log_prob)
        self._step(loss)
        move_towards(self.target_value, self.value, self._sac.tau)
        return {"train/loss/value": loss.detach()}

    def state_dict(self) -> dict[str, Any]:
        """Returns both networks and the optimizer."""
        return {
            "value": self.value.state_dict(),
            "target_value": self.target_value.state_dict(),
            "optimizer": self._step.state_dict(),
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Takes over a state made by `state_dict`."""
        self.load_weights(state)
        self._step.load_state_dict(state["optimizer"])

    def load_weights(self, state: Mapping[str, Any]) -> None:
        """Takes over only the networks."""
        self.value.load_state_dict(state["value"])
        self.target_value.load_state_dict(state["target_value"])

    def _values(self, network: nn.Module, obs: Tensor, z: Tensor) -> Tensor:
        values: Tensor = network(beside(obs, z), None)[0, :, :, 0]  # [task, batch]
        return values


class TargetCritics:
    """Slow copies of the Q-functions and one learned temperature for all tasks (arXiv 1812.05905)."""

    def __init__(self, config: RunConfig, suite: Suite, device: torch.device, critics: Critics) -> None:
        self._sac, self._critics = config.sac, critics
        self.target_critics = copy.deepcopy(critics).requires_grad_(False)
        start = float(np.log(config.sac.initial_alpha))
        self.log_alpha = nn.Parameter(torch.tensor(start, device=device))
        self._step = NetworkStep([self.log_alpha], config.sac.alpha_lr, eps=1e-8, max_grad_norm=None)
        given = config.sac.target_entropy
        self._target_entropy = -float(suite.action_dim) if given is None else given

    def temperature(self) -> Tensor:
        """Returns the temperature."""
        return self.log_alpha.detach().exp()

    @torch.no_grad()
    def target(self, batch: Batch, z: Tensor, act: Act) -> Tensor:
        """Returns reward and discounted soft value of an action that the policy draws at the next observation."""
        next_action, next_log_prob = act(batch.next_obs, z)
        next_q = self.target_critics(beside(batch.next_obs, z), next_action, None)
        alpha = self.temperature().expand(len(z))
        return sac.td_target(batch.reward, batch.terminated, next_q, next_log_prob, alpha, self._sac.gamma)

    def learn(self, batch: Batch, z: Tensor, q: Tensor, log_prob: Tensor) -> dict[str, Tensor]:
        """Moves the slow copies, then steps the temperature."""
        move_towards(self.target_critics, self._critics, self._sac.tau)
        loss = sac.alpha_loss(self.log_alpha.expand(len(z)), log_prob, self._target_entropy).mean()
        self._step(loss)
        return {"train/loss/alpha": loss.detach(), "train/alpha": self.temperature()}

    def state_dict(self) -> dict[str, Any]:
        """Returns the slow copies, the temperature and its optimizer."""
        return {
            "target_critics": self.target_critics.state_dict(),
            "log_alpha": self.log_alpha.detach(),
            "optimizer": self._step.state_dict(),
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Takes over a state made by `state_dict`."""
        self.load_weights(state)
        self._step.load_state_dict(state["optimizer"])

    def load_weights(self, state: Mapping[str, Any]) -> None:
        """Takes over slow copies and temperature."""
        self.target_critics.load_state_dict(state["target_critics"])
        with torch.no_grad():
            self.log_alpha.copy_(state["log_alpha"])


@torch.no_grad()
def move_towards(target: nn.Module, source: nn.Module, share: float) -> None:
    """Moves each parameter of a network that share of the way to another's."""
    for slow, fast in zip(target.parameters(), source.parameters(), strict=True):
        slow.lerp_(fast, share)

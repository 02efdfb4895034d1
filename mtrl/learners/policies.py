"""Policies that act with weights sent by a learner."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from mtrl.config import NetworkConfig
from mtrl.data import Array, Block
from mtrl.learners.protocol import Boundary, Mode, Policy, PolicyStep, Previous
from mtrl.networks.actor import squashed_sample
from mtrl.networks.build import Suite, build_actor


class SacPolicy:
    """A tanh-Gaussian actor on the CPU; slot and task are the same."""

    def __init__(self, config: NetworkConfig, suite: Suite) -> None:
        self._actor = build_actor(config, suite, torch.Generator()).requires_grad_(False)
        self._action_dim = suite.action_dim

    def load(self, weights: Mapping[str, Array]) -> None:
        """Takes over the actor's weights."""
        for name, parameter in self._actor.state_dict().items():
            parameter.copy_(torch.from_numpy(weights[name]))

    def initial_state(self, num_envs: int) -> None:
        """Returns None: this policy has no memory."""

    def begin(self, state: Tensor | None, mask: Tensor, boundary: Boundary) -> None:
        """Returns None: this policy has no memory."""

    @torch.no_grad()
    def act(
        self,
        obs: Tensor,
        previous: Previous,
        state: Tensor | None,
        slot: Tensor,
        mode: Mode,
        generator: torch.Generator,
    ) -> PolicyStep:
        """Chooses actions [env, action_dim] for obs [env, obs_dim]: a sample, tanh(mean), or uniform in [-1, 1]."""
        shape = (len(obs), self._action_dim)
        if mode is Mode.RANDOM:
            return PolicyStep(torch.rand(shape, generator=generator) * 2.0 - 1.0, None, {})
        mean, log_std = self._actor(
            obs.unsqueeze(1), slot
        )  # [env, 1, action_dim]: each environment is a row of its own
        if mode is Mode.DETERMINISTIC:
            return PolicyStep(torch.tanh(mean).squeeze(1), None, {})
        action, _ = squashed_sample(mean.squeeze(1), log_std.squeeze(1), torch.randn(shape, generator=generator))
        return PolicyStep(action, None, {})


class FixedPolicyAdapter:
    """Answers with the same policy whatever it observes: multi-task policies do not adapt."""

    def __init__(self, policy: Policy) -> None:
        self._policy = policy

    def init(self) -> Policy:
        """Returns the policy."""
        return self._policy

    def observe(self, block: Block) -> None:
        """Ignores the block."""

    def adapt(self) -> Policy:
        """Returns the policy."""
        return self._policy

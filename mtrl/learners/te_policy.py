"""How a network with task embeddings acts: one embedding for each episode."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from mtrl.config import RunConfig
from mtrl.data import Array
from mtrl.learners.policies import gaussian_step, uniform_actions
from mtrl.learners.protocol import Boundary, Mode, PolicyStep, Previous
from mtrl.networks.build import Suite, build_task_embedding


class TaskEmbeddingPolicy:
    """A Gaussian network on the CPU; slot and task are the same.

    The state of an environment is a mark, that an episode begins, and the noise that the episode's embedding is made
    of, [env, 1 + latent_dim]. Where actions are not to be random, embeddings are not either: the mean of the task.
    """

    def __init__(self, config: RunConfig, suite: Suite) -> None:
        streams = torch.Generator()  # its numbers are replaced by `load`
        self._network = build_task_embedding(config.network, config.on_policy, config.te_ppo, suite, streams)
        self._network.requires_grad_(False)
        self._action_dim = suite.action_dim

    def load(self, weights: Mapping[str, Array]) -> None:
        """Takes over the network's numbers."""
        for name, parameter in self._network.state_dict().items():
            parameter.copy_(torch.from_numpy(weights[name]))

    def initial_state(self, num_envs: int) -> Tensor:
        """Returns the state in which an episode begins everywhere."""
        state = torch.zeros(num_envs, 1 + self._network.latent_dim)
        state[:, 0] = 1.0
        return state

    def begin(self, state: Tensor | None, mask: Tensor, boundary: Boundary) -> Tensor:
        """Returns the state with a mark where an episode or a trial begins."""
        assert state is not None
        return torch.where(mask.unsqueeze(1), self.initial_state(len(state)), state)

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
        """Chooses actions [env, action_dim] for obs [env, obs_dim]: a sample, the mean, or uniform in [-1, 1]."""
        assert state is not None
        begins, noise = state[:, :1] > 0.0, state[:, 1:]
        if mode is not Mode.EXPLORE:
            noise = torch.zeros_like(noise)
        elif begins.any():
            noise = torch.where(begins, torch.randn(noise.shape, generator=generator), noise)
        state = torch.cat([torch.zeros_like(state[:, :1]), noise], dim=1)
        if mode is Mode.RANDOM:
            action = uniform_actions((len(obs), self._action_dim), generator)
            return PolicyStep(action, state, {})
        mean, log_std = self._network(torch.cat([obs, noise], dim=1).unsqueeze(1), slot)
        step = gaussian_step(mean[:, 0], log_std[:, 0], mode, generator)
        extras = {**step.extras, "noise": noise} if mode is Mode.EXPLORE else {}
        return PolicyStep(step.action, state, extras)

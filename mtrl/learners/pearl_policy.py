"""How PEARL acts: a policy that draws a latent variable for each episode, and what infers it at meta-test.

Weights of the policy hold `actor.*` and, where there is a posterior, `z_mean` and `z_variance` [slot, latent]; without
these the latent variable comes from the prior. The learner's own weights hold `encoder.*` beside `actor.*`.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import torch
from torch import Tensor

from mtrl.config import RunConfig
from mtrl.data import Array, Block
from mtrl.learners.policies import uniform_actions
from mtrl.learners.protocol import Boundary, Mode, PolicyStep, Previous
from mtrl.networks.actor import squashed_sample
from mtrl.networks.build import Suite, build_context_encoder, build_latent_actor
from mtrl.networks.context import beside, context_rows, precision_sums


class PearlPolicy:
    """A tanh-Gaussian actor on the CPU whose latent variable is drawn anew at the start of every episode.

    Its state is [env, latent + 1]: the latent variable, and a 1 where it is yet to be drawn.
    """

    def __init__(self, config: RunConfig, suite: Suite) -> None:
        self._latent_dim, self._action_dim = config.pearl.latent_dim, suite.action_dim
        streams = torch.Generator()  # its numbers are replaced by `load`
        self._actor = build_latent_actor(config.network, suite, self._latent_dim, streams).requires_grad_(False)
        self._posterior: tuple[Tensor, Tensor] | None = None  # mean and standard deviation, [slot, latent]

    def load(self, weights: Mapping[str, Array]) -> None:
        """Takes over the actor's weights and the posterior of each slot; latent variables in use stay."""
        for name, parameter in self._actor.state_dict().items():
            parameter.copy_(torch.from_numpy(weights[f"actor.{name}"]))
        self._posterior = None
        if "z_mean" in weights:
            self._posterior = torch.from_numpy(weights["z_mean"]), torch.from_numpy(weights["z_variance"]).sqrt()

    def initial_state(self, num_envs: int) -> Tensor:
        """Returns that no latent variable is drawn yet."""
        state = torch.zeros(num_envs, self._latent_dim + 1)
        state[:, -1] = 1.0
        return state

    def begin(self, state: Tensor | None, mask: Tensor, boundary: Boundary) -> Tensor | None:
        """Asks for another latent variable where an episode begins, as the first of a trial does too."""
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
        """Chooses actions [env, action_dim] for obs [env, obs_dim]: a sample, tanh(mean), or uniform in [-1, 1].

        The latent variable is drawn in every mode: a deterministic policy is one of a given latent variable.
        """
        assert state is not None
        z, fresh = state[:, :-1], state[:, -1:] > 0.0
        if fresh.any():
            z = torch.where(fresh, self._drawn(slot, generator), z)
        state = torch.cat([z, torch.zeros(len(z), 1)], dim=1)
        shape = (len(obs), self._action_dim)
        if mode is Mode.RANDOM:
            return PolicyStep(uniform_actions(shape, generator), state, {"z": z})
        mean, log_std = (found[:, 0] for found in self._actor(beside(obs.unsqueeze(1), z), None))
        if mode is Mode.DETERMINISTIC:
            return PolicyStep(torch.tanh(mean), state, {"z": z})
        action, _ = squashed_sample(mean, log_std, torch.randn(shape, generator=generator))
        return PolicyStep(action, state, {"z": z})

    def _drawn(self, slot: Tensor, generator: torch.Generator) -> Tensor:
        """Returns a latent variable for each environment, [env, latent], from its slot's posterior or the prior."""
        noise = torch.randn((len(slot), self._latent_dim), generator=generator)
        if self._posterior is None:
            return noise
        mean, std = self._posterior
        return mean[slot] + std[slot] * noise


class PearlAdapter:
    """Infers each slot's posterior from everything that it experienced; no gradient step is made.

    The first `pearl.prior_episodes` are explored with the prior, the next ones with the newest posterior. Tests draw
    from the posterior too.
    """

    every_episode = True

    def __init__(self, config: RunConfig, suite: Suite) -> None:
        self._pearl = config.pearl
        self._encoder = build_context_encoder(config.network, config.pearl, suite, torch.Generator())
        self._weights: Mapping[str, Array] = {}
        self._precision = self._weighted = torch.zeros(0, config.pearl.latent_dim)
        self._episodes = 0

    def begin(self, weights: Mapping[str, Array], num_slots: int) -> Mapping[str, Array]:
        """Takes over actor and encoder and returns weights with the prior."""
        own = {name: torch.from_numpy(weights[f"encoder.{name}"]) for name in self._encoder.state_dict()}
        self._encoder.load_state_dict(own)
        self._weights = {name: array for name, array in weights.items() if name.startswith("actor.")}
        self._precision = torch.zeros(num_slots, self._pearl.latent_dim)
        self._weighted = torch.zeros(num_slots, self._pearl.latent_dim)
        self._episodes = 0
        return self._weights

    @torch.no_grad()
    def observe(self, block: Block) -> Mapping[str, Array]:
        """Adds an episode of every slot to their contexts and returns weights to explore with."""
        for slot in np.unique(block.slot[block.valid]):
            chosen = block.valid & (block.slot == slot)
            obs, action, reward, next_obs = (
                torch.from_numpy(column[chosen]).unsqueeze(0)
                for column in (block.obs, block.action, block.reward, block.next_obs)
            )
            reward = reward * self._pearl.context_reward_scale
            context = context_rows(obs, action, reward, next_obs if self._pearl.next_obs_in_context else None)
            precision, weighted = precision_sums(*self._encoder(context))
            self._precision[int(slot)] += precision[0]
            self._weighted[int(slot)] += weighted[0]
        self._episodes += 1
        return self._weights if self._episodes < self._pearl.prior_episodes else self.adapt()

    def adapt(self) -> Mapping[str, Array]:
        """Returns weights with the posterior of each slot; without episodes the prior."""
        if not self._episodes:
            return self._weights
        mean, variance = self._weighted / self._precision, self._precision.reciprocal()
        return {**self._weights, "z_mean": mean.numpy(), "z_variance": variance.numpy()}

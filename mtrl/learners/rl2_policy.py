"""How a network of RL² acts: the policy that carries its memory through a trial, and the adapter for meta-test.

The recurrent state of an environment is a mark and the hidden state, [env, 1 + hidden_size]. The mark says that what
begins here begins from the loaded start, whatever the collector hands over as the step before. Learners send no start:
trials begin without memory. The adapter sends one for each slot.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor

from envs.simulator import Actor
from mtrl.config import RunConfig
from mtrl.data import Array, Block
from mtrl.learners.policies import ActingThreads, RolledDraws, refuse_other_shapes, uniform_actions
from mtrl.learners.protocol import Boundary, Mode, PolicyStep, Previous, Roll
from mtrl.learners.trials import network_inputs, step_summary
from mtrl.networks.build import Suite, build_recurrent
from mtrl.networks.gaussian import log_prob

_ROWS = 20  # of a group at most: so many, with the layers' outputs, lie close to a core

START_HIDDEN = "start/hidden"
"""Weights of an adapter: hidden state that each slot begins with, [slot, hidden_size]."""
START_PREVIOUS = "start/previous"
"""Action, reward and done of the step before, [slot, action_dim + 2]."""
START_EVERY_EPISODE = "start/every_episode"
"""bool [1]: whether every episode begins there, and not only the trial."""


class Rl2Policy:
    """A network with memory on the CPU. Actions are samples cut off at [-1, 1]; `extras` as those of GaussianPolicy."""

    def __init__(self, config: RunConfig, suite: Suite) -> None:
        self._steps = Rl2Steps(config, suite)
        self._hidden: Tensor | None = None  # of each slot at the start, [slot, hidden_size]
        self._previous: Tensor | None = None  # [slot, action_dim + 2]
        self._every_episode = False

    def load(self, weights: Mapping[str, Array]) -> None:
        """Takes over the network's weights, and where slots start if it is said."""
        self._steps.load(weights)
        hidden, previous = weights.get(START_HIDDEN), weights.get(START_PREVIOUS)
        self._hidden = None if hidden is None else torch.from_numpy(hidden)
        self._previous = None if previous is None else torch.from_numpy(previous)
        self._every_episode = bool(weights.get(START_EVERY_EPISODE, np.zeros(1, bool))[0])

    def initial_state(self, num_envs: int) -> Tensor:
        """Returns the state in which everything begins from the loaded start."""
        return self._marked(num_envs)

    def begin(self, state: Tensor | None, mask: Tensor, boundary: Boundary) -> Tensor:
        """Returns the state with a mark where a trial begins, or an episode that is to begin from the start again."""
        assert state is not None
        if boundary is Boundary.EPISODE and not self._every_episode:
            return state
        return torch.where(mask.unsqueeze(1), self._marked(len(state)), state)

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
        mean, log_std, hidden = self._steps.advance(obs, *self._from_where(previous, state, slot))
        state = _unmarked(hidden)
        if mode is Mode.DETERMINISTIC:
            return PolicyStep(mean, state, {})
        if mode is Mode.RANDOM:
            return PolicyStep(uniform_actions(mean.shape, generator), state, {})
        sample = mean + log_std.exp() * torch.randn(mean.shape, generator=generator)
        extras = {"sample": sample, "log_prob": log_prob(sample, mean, log_std)}
        return PolicyStep(sample.clamp(-1.0, 1.0), state, extras)

    @torch.no_grad()
    def roll(
        self,
        num_steps: int,
        previous: Previous,
        state: Tensor | None,
        slot: Tensor,
        mode: Mode,
        generator: torch.Generator,
    ) -> Roll | None:
        """Prepares to act in compiled code; see `RollingPolicy`."""
        if mode is Mode.RANDOM:
            return None
        assert state is not None
        before, hidden = self._from_where(previous, state, slot)
        draws = RolledDraws(num_steps, previous.action.shape, mode, generator)
        return self._steps.roll(before, hidden, num_steps, draws)

    def _from_where(self, previous: Previous, state: Tensor, slot: Tensor) -> tuple[Tensor, Tensor]:
        """Returns the step before [env, action_dim + 2] and the hidden state, those of the start where it is marked."""
        before = torch.cat([previous.action, previous.reward.unsqueeze(1), previous.done.unsqueeze(1)], dim=1)
        begins, hidden = state[:, :1] > 0.0, state[:, 1:]
        if begins.any():  # seldom
            start = torch.zeros_like(hidden) if self._hidden is None else self._hidden[slot]
            hidden = torch.where(begins, start, hidden)
            start = torch.zeros_like(before) if self._previous is None else self._previous[slot]
            before = torch.where(begins, start, before)
        return before, hidden

    def _marked(self, num_envs: int) -> Tensor:
        state = torch.zeros(num_envs, 1 + self._steps.hidden_size)
        state[:, 0] = 1.0
        return state


class Rl2Adapter:
    """Adapts by remembering: the network runs over what was explored, and test episodes begin from its memory of it.

    Exploration goes on where it stopped. Each test episode begins from the same memory, that after the exploration, so
    that test episodes do not learn from one another. All that a test episode's first step sees beside its observation
    is the last step of the exploration.
    """

    every_episode = False

    def __init__(self, config: RunConfig, suite: Suite) -> None:
        self._steps = Rl2Steps(config, suite)
        self._action_dim = suite.action_dim
        self._weights: Mapping[str, Array] = {}
        self._hidden, self._previous = torch.zeros(0, 0), torch.zeros(0, 0)

    def begin(self, weights: Mapping[str, Array], num_slots: int) -> Mapping[str, Array]:
        """Returns the weights with no memory in any slot."""
        self._weights = weights
        self._steps.load(weights)
        self._hidden = torch.zeros(num_slots, self._steps.hidden_size)
        self._previous = torch.zeros(num_slots, self._action_dim + 2)
        return self._started(every_episode=False)

    @torch.no_grad()
    def observe(self, block: Block) -> Mapping[str, Array]:
        """Runs over the episodes, each environment another slot, and returns weights that remember them.

        Step by step, as the policy did, so that it remembers the same to the last bit.
        """
        slot = torch.from_numpy(block.slot[0].astype(np.int64))
        hidden, previous = self._hidden[slot], self._previous[slot]  # [env, ...]
        steps = (torch.from_numpy(array) for array in (block.obs, step_summary(block), block.valid))
        for obs, summary, valid in zip(*steps, strict=True):
            after = self._steps.advance(obs, previous, hidden)[2]
            hidden = torch.where(valid.unsqueeze(1), after, hidden)
            previous = torch.where(valid.unsqueeze(1), summary, previous)
        self._hidden[slot], self._previous[slot] = hidden, previous
        return self._started(every_episode=False)

    def adapt(self) -> Mapping[str, Array]:
        """Returns weights with which every episode begins from the memory of what was observed."""
        return self._started(every_episode=True)

    def _started(self, *, every_episode: bool) -> dict[str, Array]:
        return {
            **self._weights,
            START_HIDDEN: self._hidden.numpy().copy(),
            START_PREVIOUS: self._previous.numpy().copy(),
            START_EVERY_EPISODE: np.array([every_episode]),
        }


def _unmarked(hidden: Tensor) -> Tensor:
    """Returns the state [env, 1 + hidden_size] in which no trial begins."""
    return torch.cat([torch.zeros(len(hidden), 1), hidden], dim=1)


class Rl2Steps:
    """A network of RL² on the CPU that goes on step by step; threads share the rows, which changes no number."""

    def __init__(self, config: RunConfig, suite: Suite) -> None:
        from mtrl.networks.compiled import few_rows  # numba takes a while, and most policies have no use for it

        self._network = build_recurrent(config.network, config.on_policy, config.rl2, suite, torch.Generator())
        self._network.requires_grad_(False)
        self._reward_scale = config.rl2.reward_scale
        shape = self._network.shape
        self.hidden_size = shape.hidden_size
        self._sizes = np.array([shape.in_features, *shape.widths])
        self._activation = few_rows.ACTIVATION_NUMBERS[shape.activation]
        self._step = partial(few_rows.recurrent_step, self._sizes, self._activation)
        self._threads = ActingThreads(config.simulation_threads())
        self._numbers = self._laid_out()

    def load(self, weights: Mapping[str, Array]) -> None:
        """Takes over the network's weights."""
        for name, parameter in self._network.state_dict().items():
            parameter.copy_(torch.from_numpy(weights[name]))
        self._numbers = self._laid_out()

    def advance(self, obs: Tensor, previous: Tensor, hidden: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Returns mean and log standard deviation of one step, [env, action_dim] each, and the hidden state after it.

        Args:
            obs: [env, obs_dim].
            previous: [env, action_dim + 2], action, reward and done of the step before.
            hidden: [env, hidden_size].

        Raises:
            ValueError: If one of them has another shape.
        """
        rows, shape = len(obs), self._network.shape
        num_summed = shape.action_dim + 2
        refuse_other_shapes(
            {
                "obs": (obs, (rows, shape.in_features - num_summed)),
                "previous": (previous, (rows, num_summed)),
                "hidden": (hidden, (rows, shape.hidden_size)),
            }
        )
        hidden = hidden.clone(memory_format=torch.contiguous_format)
        out = torch.empty(rows, 2 * shape.action_dim)
        of_rows = [one.numpy() for one in (network_inputs(obs, previous, self._reward_scale), hidden, out)]
        share = max(1, -(-rows // self._threads.num))
        self._threads.share(
            [
                partial(self._step, *self._numbers, *(array[first : first + share] for array in of_rows))
                for first in range(0, rows, share)
            ]
        )
        return *self._network.gaussian(out), hidden

    def roll(self, previous: Tensor, hidden: Tensor, num_steps: int, draws: RolledDraws) -> Roll:
        """Prepares to go on for several steps, acting; arguments as `advance`."""
        from mtrl.networks.compiled import actors

        shape, rows = self._network.shape, len(hidden)
        encoder, recurrence, head = self._numbers
        arrays = {
            "sizes": self._sizes,
            "log_std": np.empty((num_steps, rows, shape.action_dim), np.float32),
            "hidden": hidden.clone(memory_format=torch.contiguous_format).numpy(),
            "previous": previous.clone(memory_format=torch.contiguous_format).numpy(),
            "encoder": encoder,
            **dict(zip(("weight_ih", "weight_hh", "bias_ih", "bias_hh"), recurrence, strict=True)),
            **dict(zip(("head_weight", "head_bias"), head, strict=True)),
        }
        middle, half, offset = self._network.log_std_curve
        num_threads = self._threads.num
        rows_per_group = -(-rows // (num_threads * -(-rows // (_ROWS * num_threads))))  # as many groups for each thread
        sizes = rows, shape.in_features - shape.action_dim - 2, shape.action_dim
        numbers = {
            "num_sizes": len(self._sizes),
            "activation": self._activation,
            "obs_dim": sizes[1],
            "hidden_size": shape.hidden_size,
            "num_encoder": len(encoder),
            "rows_per_group": rows_per_group,
            "reward_scale": self._reward_scale,
            "middle": middle,
            "half": half,
            "offset": offset,
        }
        context = draws.context(actors.RECURRENT, arrays, numbers)

        def finish(made: int) -> PolicyStep:
            state = _unmarked(torch.from_numpy(arrays["hidden"]))
            return draws.finish(made, torch.from_numpy(arrays["log_std"][:made]), state)

        num_groups = -(-rows // rows_per_group)
        return Roll(Actor(actors.recurrent_actor(), actors.address(context), num_groups, sizes), finish)

    def _laid_out(self) -> tuple[Any, ...]:
        """Returns the network's numbers as compiled code takes them."""
        network = self._network
        encoder = torch.cat([parameter.flatten() for parameter in network.encoder])
        recurrence = tuple(parameter.numpy() for parameter in network.gru.all_weights[0])
        return encoder.numpy(), recurrence, (network.head_weight.numpy(), network.head_bias.numpy())

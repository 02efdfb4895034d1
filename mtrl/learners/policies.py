"""Policies that act with weights sent by a learner."""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor

from envs.simulator import Actor
from mtrl.config import NetworkConfig, RunConfig
from mtrl.data import Array
from mtrl.learners.protocol import Boundary, Mode, PolicyStep, Previous, Roll
from mtrl.networks.actor import squashed_sample
from mtrl.networks.build import Suite, build_actor, build_gaussian, build_task_gaussian
from mtrl.networks.gaussian import log_prob

_ROWS = 10  # of a group at most: enough to be as fast as more, and threads share groups out more evenly


class WithoutMemory:
    """What policies without recurrent state answer when they are asked for it."""

    def initial_state(self, num_envs: int) -> None:
        """Returns None: this policy has no memory."""

    def begin(self, state: Tensor | None, mask: Tensor, boundary: Boundary) -> None:
        """Returns None: this policy has no memory."""


class SacPolicy(WithoutMemory):
    """A tanh-Gaussian actor on the CPU; slot and task are the same."""

    def __init__(self, config: NetworkConfig, suite: Suite) -> None:
        self._actor = build_actor(config, suite, torch.Generator()).requires_grad_(False)
        self._action_dim = suite.action_dim

    def load(self, weights: Mapping[str, Array]) -> None:
        """Takes over the actor's weights."""
        for name, parameter in self._actor.state_dict().items():
            parameter.copy_(torch.from_numpy(weights[name]))

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
            return PolicyStep(uniform_actions(shape, generator), None, {})
        mean, log_std = self._actor(
            obs.unsqueeze(1), slot
        )  # [env, 1, action_dim]: each environment is a row of its own
        if mode is Mode.DETERMINISTIC:
            return PolicyStep(torch.tanh(mean).squeeze(1), None, {})
        action, _ = squashed_sample(mean.squeeze(1), log_std.squeeze(1), torch.randn(shape, generator=generator))
        return PolicyStep(action, None, {})


class GaussianPolicy(WithoutMemory):
    """A Gaussian network on the CPU, with the same numbers in all slots or its own in each.

    Actions are samples cut off at [-1, 1], as environments would; `extras` hold the sample itself and its log-density.
    """

    def __init__(self, config: RunConfig, suite: Suite) -> None:
        from mtrl.networks.compiled import few_rows  # numba takes a while, and most policies have no use for it

        network = build_gaussian(config.network, config.on_policy, suite, torch.Generator())
        self._shapes = {name: number.shape[1:] for name, number in network.state_dict().items()}
        self._action_dim = suite.action_dim
        self._least_log_std = math.log(network.shape.min_std)
        self._sizes = np.array([network.shape.in_features, *network.shape.widths, suite.action_dim])
        self._activation = few_rows.ACTIVATION_NUMBERS[network.shape.activation]
        self._perceptrons = partial(few_rows.perceptrons, self._sizes, self._activation)
        self._num_inputs = network.shape.in_features
        self._grouping: tuple[Tensor, list[tuple[Array, Array]]] | None = (
            None  # of which numbers, and what `_shares` says
        )
        self._threads = ActingThreads(config.simulation_threads())
        self.load({name: number.numpy() for name, number in network.state_dict().items()})

    def load(self, weights: Mapping[str, Array]) -> None:
        """Takes over the network's numbers, [1, ...] or [slot, ...].

        Raises:
            ValueError: If they are those of a network of other sizes, which compiled code would not notice.
        """
        num_slots = len(weights[next(iter(self._shapes))])
        for name, shape in self._shapes.items():
            if weights[name].shape != (num_slots, *shape):
                raise ValueError(f"{name} is {list(weights[name].shape)} in the weights; here {[num_slots, *shape]}")
        *layers, log_std = (weights[name] for name in self._shapes)
        self._numbers = np.concatenate([number.reshape(num_slots, -1) for number in layers], axis=1)
        self._log_std = torch.from_numpy(log_std).clamp(min=self._least_log_std)

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
        if mode is Mode.RANDOM:
            return PolicyStep(uniform_actions((len(obs), self._action_dim), generator), None, {})
        refuse_other_shapes({"obs": (obs, (len(slot), self._num_inputs))})
        which = slot if len(self._numbers) > 1 else torch.zeros_like(slot)
        log_std = self._log_std[which]  # [env, action_dim]; raises where there is no such slot
        grouping = self._grouping
        if grouping is None or not torch.equal(grouping[0], which):
            self._grouping = grouping = (which.clone(), _shares(which.numpy(), self._threads.num))
        mean = torch.empty(len(obs), self._action_dim)
        rows, found = np.ascontiguousarray(obs.numpy()), mean.numpy()
        self._threads.share([partial(self._perceptrons, self._numbers, *groups, rows, found) for groups in grouping[1]])
        return gaussian_step(mean, log_std, mode, generator)

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
        from mtrl.networks.compiled import actors

        which = slot if len(self._numbers) > 1 else torch.zeros_like(slot)
        log_std = self._log_std[which]  # [env, action_dim]; raises where there is no such slot
        shares = _shares(which.numpy(), self._threads.num)
        arrays = {
            "std": log_std.exp().numpy(),
            "numbers": self._numbers,
            "number_of": np.concatenate([number_of for number_of, _ in shares]),
            "members": np.concatenate([members for _, members in shares]),
            "sizes": self._sizes,
        }
        counts = {
            "num_perceptrons": len(self._numbers),
            "num_numbers": self._numbers.shape[1],
            "num_groups": len(arrays["members"]),
            "num_places": arrays["members"].shape[1],
            "num_sizes": len(self._sizes),
            "activation": self._activation,
            "obs_dim": self._num_inputs,
        }
        draws = RolledDraws(num_steps, (len(slot), self._action_dim), mode, generator)
        context = draws.context(actors.PERCEPTRONS, arrays, counts)

        def finish(made: int) -> PolicyStep:
            return draws.finish(made, log_std)

        sizes = len(slot), self._num_inputs, self._action_dim
        return Roll(Actor(actors.perceptron_actor(), actors.address(context), counts["num_groups"], sizes), finish)


class RolledDraws:
    """What a policy draws while it acts in compiled code, noise before and samples after; keeps alive what it needs."""

    def __init__(self, num_steps: int, shape: tuple[int, ...], mode: Mode, generator: torch.Generator) -> None:
        """Draws noise for `num_steps`, [env, action_dim] each; none with `Mode.DETERMINISTIC`."""
        self._explores, self._shape, self._generator = mode is Mode.EXPLORE, shape, generator
        self._before = generator.get_state()
        self._num_steps = num_steps
        noise = self._drawn(num_steps) if self._explores else torch.zeros(num_steps, *shape)
        self._arrays = {"noise": noise.numpy()}
        for name in ("sample", "mean"):
            self._arrays[name] = np.empty((num_steps, *shape), np.float32)

    def context(self, kind: Any, arrays: Mapping[str, Array], numbers: Mapping[str, float]) -> Array:
        """Returns a record of a kind of `actors` with the draws, arrays by their addresses, and numbers."""
        from mtrl.networks.compiled.actors import address

        self._arrays.update(arrays)  # which keeps them alive
        record = np.zeros(1, kind)
        record["num_envs"], record["action_dim"] = self._shape
        for name, array in self._arrays.items():
            record[name] = address(array)
        for name, number in numbers.items():
            record[name] = number
        self._arrays["context"] = record
        return record

    def finish(self, made: int, log_std: Tensor, state: Tensor | None = None) -> PolicyStep:
        """Returns what `Roll.finish` does, and lets the generator go on as if no more than `made` had been drawn.

        Args:
            made: Number of steps.
            log_std: Broadcast to [step, env, action_dim].
            state: Handed on.
        """
        if self._explores and made < self._num_steps:
            self._generator.set_state(self._before)
            self._drawn(made)
        sample, mean = (torch.from_numpy(self._arrays[name][:made]) for name in ("sample", "mean"))
        action = sample[-1].clamp(-1.0, 1.0)
        if not self._explores:
            return PolicyStep(action, state, {})
        return PolicyStep(action, state, {"sample": sample, "log_prob": log_prob(sample, mean, log_std)})

    def _drawn(self, num_steps: int) -> Tensor:
        """Returns [step, env, action_dim], drawn step by step, as `act` does."""
        return torch.stack([torch.randn(self._shape, generator=self._generator) for _ in range(num_steps)])


def refuse_other_shapes(given: Mapping[str, tuple[Tensor, tuple[int, ...]]]) -> None:
    """Checks what compiled code would not: name → tensor and the shape that it must have.

    Raises:
        ValueError: If one has another shape.
    """
    for name, (tensor, shape) in given.items():
        if tensor.shape != shape:
            raise ValueError(f"{name} is {list(tensor.shape)}; the policy takes {list(shape)}")


def _shares(which: Array, num_threads: int) -> list[tuple[Array, Array]]:
    """Groups environments by whose numbers they act with, `which` [env], and shares the groups out among threads.

    Returns:
        For each thread whose numbers its groups act with, [group], and their environments, [group, place], the last
        one again where a group has fewer than another.
    """
    groups: list[Array] = []
    for number in np.unique(which):
        members = np.flatnonzero(which == number)
        groups += np.array_split(members, -(-len(members) // _ROWS))
    if not groups:
        return []
    most = max(len(members) for members in groups)
    padded = np.stack([np.pad(members, (0, most - len(members)), mode="edge") for members in groups])
    return [(which[members[:, 0]], members) for members in np.array_split(padded, min(num_threads, len(padded)))]


class ActingThreads:
    """Threads that share the work of acting, as many as step the environments; a forked process makes its own."""

    def __init__(self, num: int) -> None:
        """Starts no thread yet."""
        self.num = num
        self._helpers: ThreadPoolExecutor | None = None
        self._helpers_of = 0  # the process in which they were started

    def share(self, work: Sequence[Callable[[], None]]) -> None:
        """Does all of it, the first part in the calling thread."""
        pending = [self._started().submit(one) for one in work[1:]]
        for mine in work[:1]:
            mine()
        for other in pending:
            other.result()

    def _started(self) -> ThreadPoolExecutor:
        if self._helpers is None or self._helpers_of != os.getpid():
            self._helpers = ThreadPoolExecutor(max(1, self.num - 1), thread_name_prefix="acting")
            self._helpers_of = os.getpid()
        return self._helpers


class TaskGaussianPolicy(WithoutMemory):
    """A Gaussian network on the CPU that is told the task; slot and task are the same. Answers as `GaussianPolicy`."""

    def __init__(self, config: RunConfig, suite: Suite) -> None:
        streams = torch.Generator()  # its numbers are replaced by `load`
        self._network = build_task_gaussian(config.network, config.on_policy, suite, streams).requires_grad_(False)
        self._action_dim = suite.action_dim

    def load(self, weights: Mapping[str, Array]) -> None:
        """Takes over the network's numbers."""
        for name, parameter in self._network.state_dict().items():
            parameter.copy_(torch.from_numpy(weights[name]))

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
        if mode is Mode.RANDOM:
            return PolicyStep(uniform_actions((len(obs), self._action_dim), generator), None, {})
        mean, log_std = self._network(obs.unsqueeze(1), slot)  # each environment is a row of its own
        return gaussian_step(mean[:, 0], log_std[:, 0], mode, generator)


def gaussian_step(mean: Tensor, log_std: Tensor, mode: Mode, generator: torch.Generator) -> PolicyStep:
    """Returns the mean or a sample, [env, action_dim], cut off at [-1, 1]; of a sample also what is learned from."""
    if mode is Mode.DETERMINISTIC:
        return PolicyStep(mean.clamp(-1.0, 1.0), None, {})
    sample = mean + log_std.exp() * torch.randn(mean.shape, generator=generator)
    return PolicyStep(sample.clamp(-1.0, 1.0), None, {"sample": sample, "log_prob": log_prob(sample, mean, log_std)})


def uniform_actions(shape: tuple[int, ...], generator: torch.Generator) -> Tensor:
    """Returns actions that are uniform in [-1, 1]."""
    return torch.rand(shape, generator=generator) * 2.0 - 1.0

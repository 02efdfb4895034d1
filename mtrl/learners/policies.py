"""Policies that act with weights sent by a learner."""

from __future__ import annotations

from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import NamedTuple

import torch
from torch import Tensor

from mtrl.config import NetworkConfig, RunConfig
from mtrl.data import Array
from mtrl.learners.protocol import Boundary, Mode, PolicyStep, Previous
from mtrl.networks.actor import squashed_sample
from mtrl.networks.build import Suite, build_actor, build_gaussian, build_task_gaussian
from mtrl.networks.gaussian import log_prob

_ROWS = 50  # of observations in one product, where it is shared out


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
    The threads that step environments share the work of acting: slots where each has numbers of its own, as most of the
    time goes into reading these for a few rows, and a core reads only so fast; rows otherwise, always as many in one
    product. So actions do not depend on how many threads there are.
    """

    def __init__(self, config: RunConfig, suite: Suite) -> None:
        self._network = build_gaussian(config.network, config.on_policy, suite, torch.Generator()).requires_grad_(False)
        self._numbers = [parameter.detach() for parameter in self._network.numbers]
        self._groups: SlotGroups | None = None
        self._num_threads = config.simulation_threads()
        self._helpers = ThreadPoolExecutor(max(1, self._num_threads - 1), thread_name_prefix="acting")
        self._of_groups: list[list[Tensor]] = []  # of each thread: the numbers of its share of the slots there are

    def load(self, weights: Mapping[str, Array]) -> None:
        """Takes over the network's numbers, [1, ...] or [slot, ...]."""
        self._numbers = [torch.from_numpy(weights[name]) for name in self._network.state_dict()]
        self._groups = None

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
            return PolicyStep(uniform_actions((len(obs), self._network.shape.action_dim), generator), None, {})
        if len(self._numbers[0]) == 1:
            found = self._shared_out([(rows.unsqueeze(0), self._numbers) for rows in torch.split(obs, _ROWS)])
            mean, log_std = torch.cat([mean[0] for mean, _ in found]), found[0][1][0]
        else:
            groups = self._grouped(slot)
            shares = obs[groups.members].tensor_split(len(self._of_groups))
            found = self._shared_out(list(zip(shares, self._of_groups, strict=True)))
            mean = torch.cat([mean for mean, _ in found])[groups.group, groups.place]
            log_std = torch.cat([log_std for _, log_std in found])[groups.group, 0]
        return gaussian_step(mean, log_std, mode, generator)

    def _grouped(self, slot: Tensor) -> SlotGroups:
        """Returns the environments of each slot, so that one product serves them all; found once while slots stay."""
        if self._groups is None or not torch.equal(self._groups.slot, slot):
            self._groups = SlotGroups.of(slot)
            there = self._groups.present
            everything = torch.equal(there, torch.arange(len(self._numbers[0])))
            chosen = self._numbers if everything else [number[there] for number in self._numbers]
            numbers = [read_by_columns(number) if number.dim() == 3 else number for number in chosen]
            shares = (number.tensor_split(min(self._num_threads, len(there))) for number in numbers)
            self._of_groups = [list(share) for share in zip(*shares, strict=True)]
        return self._groups

    def _shared_out(self, work: list[tuple[Tensor, list[Tensor]]]) -> list[tuple[Tensor, Tensor]]:
        """Returns what the network finds for each pair of observations and numbers, shared out among the threads."""
        mine = -(-len(work) // self._num_threads)
        pending = [self._helpers.submit(self._network, *one) for one in work[mine:]]
        return [self._network(*one) for one in work[:mine]] + [one.result() for one in pending]


class SlotGroups(NamedTuple):
    """Environments by slot."""

    slot: Tensor
    """[env], what was grouped."""
    present: Tensor
    """[group], the slots that are there, ascending."""
    members: Tensor
    """[group, place], environments of each, the first again where it has fewer than another."""
    group: Tensor
    """[env], where an environment is found."""
    place: Tensor
    """[env]."""

    @staticmethod
    def of(slot: Tensor) -> SlotGroups:
        """Groups slots [env]."""
        present, group, counts = torch.unique(slot, return_inverse=True, return_counts=True)
        order = torch.argsort(group, stable=True)
        first = counts.cumsum(0) - counts  # of each group within the order
        place = torch.empty_like(group)
        place[order] = torch.arange(len(slot)) - first[group[order]]
        members = order[first].unsqueeze(1).repeat(1, int(counts.max()))
        members[group, place] = torch.arange(len(slot))
        return SlotGroups(slot.clone(), present, members, group, place)


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


def read_by_columns(weight: Tensor) -> Tensor:
    """Returns matrices [..., out, in] with the memory of their transposes, which speeds up products with few rows."""
    return weight.mT.contiguous().mT


def uniform_actions(shape: tuple[int, ...], generator: torch.Generator) -> Tensor:
    """Returns actions that are uniform in [-1, 1]."""
    return torch.rand(shape, generator=generator) * 2.0 - 1.0

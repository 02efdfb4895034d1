"""The containers that data travels in: Block, Episodes, Trajectories, Batch, Metrics. Shapes are written here once.

Blocks and trajectories are NumPy, batches and metrics are torch. Order of axes: `[step, env, ...]` for what comes from
environments, `[task, batch, ...]` for what is learned from.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

Array = NDArray[Any]


@dataclass(frozen=True)
class Episodes:
    """Episodes that ended, one entry each; all arrays are `[episode]`."""

    task_id: Array
    """int32, index of the task class."""
    goal_id: Array
    """int32, stored goal of the task."""
    slot: Array
    """int32, what replay and learner index."""
    env: Array
    """int32, environment of the collector that ran it."""
    returns: Array
    """float64, undiscounted sum of raw rewards."""
    length: Array
    """int32, steps."""
    success: Array
    """bool, success at any step."""
    last_step_success: Array
    """bool, success at the last step."""
    first_success_step: Array
    """int32, step (from 0) of the first success, -1 without one."""
    adapted: Array
    """int32, episodes in which its policy had adapted to the task before; 0 where nothing adapts."""

    def __len__(self) -> int:
        return len(self.task_id)

    def where(self, mask: Array) -> Episodes:
        """Returns the episodes that a mask [episode] chooses."""
        return Episodes(*(getattr(self, f.name)[mask] for f in fields(self)))

    @staticmethod
    def empty() -> Episodes:
        """Returns no episodes."""
        ints, bools = np.zeros(0, np.int32), np.zeros(0, bool)
        return Episodes(ints, ints, ints, ints, np.zeros(0), ints, bools, bools, ints, ints)

    @staticmethod
    def concatenate(parts: Sequence[Episodes]) -> Episodes:
        """Returns the episodes of all parts in order."""
        parts = [part for part in parts if len(part)] or [Episodes.empty()]
        return Episodes(*(np.concatenate([getattr(part, f.name) for part in parts]) for f in fields(Episodes)))


@dataclass(frozen=True)
class Block:
    """What one collector did with one version of the weights; arrays are `[step, env, ...]`.

    Rows with `valid == False` are padding of a collection counted in episodes or trials and must not be learned from.
    `next_obs` is the observation that the step led to, also at the end of an episode (never the next episode's first).
    """

    obs: Array
    """float32 [step, env, obs_dim]."""
    action: Array
    """float32 [step, env, action_dim]."""
    reward: Array
    """float32 [step, env], raw."""
    next_obs: Array
    """float32 [step, env, obs_dim]."""
    terminated: Array
    """bool [step, env]; ends the bootstrap."""
    truncated: Array
    """bool [step, env]; does not end the bootstrap."""
    success: Array
    """bool [step, env], of this very step."""
    valid: Array
    """bool [step, env]."""
    task_id: Array
    """int32 [step, env]."""
    goal_id: Array
    """int32 [step, env]."""
    slot: Array
    """int32 [step, env], what replay and learner index."""
    episode_id: Array
    """int64 [step, env], counted per environment of the collector."""
    trial_id: Array
    """int64 [step, env], counted per environment of the collector."""
    weights_version: int
    """Version of the policy weights that acted."""
    worker: int = 0
    """Number of the worker that collected it."""
    tag: str = ""
    """Destination named by the request."""
    number: int = 0
    """Of the request."""
    extras: Mapping[str, Array] = field(default_factory=dict)
    """What the policy added, [step, env, ...]: log_prob, value, z, ..."""
    initial_state: Array | None = None
    """[env, ...] recurrent state before the first step."""
    episodes: Episodes = field(default_factory=Episodes.empty)
    """Episodes that ended within the block."""
    num_unstable: int = 0
    """Episodes cut short because the simulation broke down."""

    def env_steps(self) -> int:
        """Returns the number of environment steps that count."""
        return int(self.valid.sum())

    def agent_steps(self) -> int:
        """Returns the number of agent steps, equal to `env_steps` as each environment holds one agent."""
        return self.env_steps()


@dataclass(frozen=True)
class Trajectories:
    """Whole episodes of every slot, padded to the longest; arrays are `[slot, episode, step, ...]`."""

    obs: Array
    """float32 [slot, episode, step, obs_dim]."""
    action: Array
    """float32 [slot, episode, step, action_dim]."""
    reward: Array
    """float32 [slot, episode, step], raw."""
    next_obs: Array
    """float32 [slot, episode, step, obs_dim]."""
    terminated: Array
    """bool [slot, episode, step]."""
    truncated: Array
    """bool [slot, episode, step]."""
    mask: Array
    """bool [slot, episode, step]; False is padding."""
    extras: Mapping[str, Array] = field(default_factory=dict)
    """[slot, episode, step, ...]."""

    @staticmethod
    def from_blocks(blocks: Sequence[Block], num_slots: int) -> Trajectories:
        """Cuts blocks into the finished episodes of each slot, in order of environment and episode.

        The blocks are of requests counted in episodes or trials, where each episode lies within one block.

        Raises:
            ValueError: If the slots do not hold the same number of finished episodes.
        """
        found: list[list[tuple[Block, Array, int]]] = [[] for _ in range(num_slots)]
        for block in blocks:
            for env in range(block.obs.shape[1]):
                for episode in np.unique(block.episode_id[:, env]):
                    steps = np.flatnonzero((block.episode_id[:, env] == episode) & block.valid[:, env])
                    if len(steps) and (block.terminated | block.truncated)[steps[-1], env]:
                        found[int(block.slot[steps[0], env])].append((block, steps, env))
        counts = [len(episodes) for episodes in found]
        if len(set(counts)) != 1:
            raise ValueError(f"slots hold different numbers of finished episodes: {counts}; collect whole episodes")
        longest = max((len(steps) for slot in found for _, steps, _ in slot), default=0)

        def gather(pick: str, extra: str | None = None) -> Array:
            def rows(block: Block) -> Array:
                return block.extras[extra] if extra else getattr(block, pick)

            first = rows(blocks[0])
            out = np.zeros((num_slots, counts[0], longest, *first.shape[2:]), first.dtype)
            for slot, episodes in enumerate(found):
                for episode, (block, steps, env) in enumerate(episodes):
                    out[slot, episode, : len(steps)] = rows(block)[steps, env]
            return out

        names = ("obs", "action", "reward", "next_obs", "terminated", "truncated")
        extras = {name: gather("extras", name) for name in blocks[0].extras}
        return Trajectories(**{name: gather(name) for name in names}, mask=gather("valid"), extras=extras)


@dataclass(frozen=True)
class Batch:
    """What one update learns from; tensors are `[task, batch, ...]` on the learner's device."""

    obs: torch.Tensor
    """float32 [task, batch, obs_dim]."""
    action: torch.Tensor
    """float32 [task, batch, action_dim]."""
    reward: torch.Tensor
    """float32 [task, batch]."""
    next_obs: torch.Tensor
    """float32 [task, batch, obs_dim]."""
    terminated: torch.Tensor
    """float32 [task, batch], 1 where the episode terminated (a time limit does not count)."""
    task_id: torch.Tensor
    """int64 [task], the task of each row; heads and temperatures are indexed by it."""


@dataclass(frozen=True)
class Metrics:
    """What an update found out, or several in the mean.

    Values are tensors, so that nothing waits for the device until they are read.
    """

    values: Mapping[str, torch.Tensor]
    """Tag in the log → [] or [task]."""
    matrices: Mapping[str, torch.Tensor] = field(default_factory=dict)
    """name → [task, task], from gradient statistics when they are due, means over the networks of a stack."""
    num_samples: int = 0
    """Transitions that the updates learned from."""
    num_updates: int = 1
    """Updates that the values are means of."""

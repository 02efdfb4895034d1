"""Collection: environments + policy → Block. Knows no Ray, no replay and no algorithm."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import torch

from envs.episodes import Assignment
from envs.simulator import Actor
from mtrl.data import Array, Block, Episodes
from mtrl.learners.protocol import Boundary, CollectRequest, Policy, PolicyStep, Previous, RollingPolicy, Unit


class TaskEnvs(Protocol):
    """What the collector needs of a vector of environments; `envs.make` returns it."""

    num_envs: int
    task_id: Array
    goal_id: Array
    single_action_space: Any
    most_steps_at_once: int

    def reset(self, *, seed: Any = None, options: Any = None) -> tuple[Array, dict[str, Any]]:
        """Starts new episodes; obs is [env, obs_dim]."""

    def step(self, actions: Array, *, out: Array | None = None) -> tuple[Array, Array, Array, Array, dict[str, Any]]:
        """Steps all environments, resetting those that ended within the same step; obs goes to `out` if it is given."""

    def roll(self, actor: Actor, num_steps: int) -> Any:
        """Steps all environments with an actor's actions, until an episode ends or `num_steps` or fewer are made."""

    def assign(self, assignments: Any) -> None:
        """Gives each environment a new (task, goals); takes effect at the next reset."""

    def set_active(self, active: Array) -> None:
        """Lets only the environments in the mask [env] step; the others stand still."""

    def get_state(self) -> dict[str, Any]:
        """Returns all that decides the future, as arrays and JSON-able values."""

    def set_state(self, state: Any) -> None:
        """Restores what `get_state` returned."""

    def close(self) -> None:
        """Frees everything."""


@dataclass(frozen=True)
class _Happened:
    """Steps of all environments, [step, env, ...]; episodes end at the last one at most."""

    action: Array
    """float32 [step, env, action_dim]."""
    next_obs: Array
    """float32 [step, env, obs_dim], where each led to."""
    reward: Array
    """float64 [step, env]."""
    success: Array
    """bool [step, env]."""
    terminated: Array
    """bool [env], of the last step."""
    truncated: Array
    """bool [env], of the last step."""
    unstable: Array
    """bool [env], of the last step."""
    obs: Array
    """float32 [env, obs_dim], from where it goes on."""
    task_id: Array
    """int32 [env], of the episode that these steps belong to."""
    goal_id: Array
    """int32 [env]."""
    answer: PolicyStep
    """The last action, the state after it, and extras [step, env, ...]."""


class Collector:
    """Steps a vector of environments with a policy and keeps what lies between two requests.

    The previous action, reward and done reach the first step of the next episode; only where a trial begins they are
    cleared.
    """

    def __init__(
        self, envs: TaskEnvs, policy: Policy, generator: torch.Generator, seeds: list[int], first_episode_id: int = 0
    ) -> None:
        """Resets the environments.

        Args:
            envs: Environments.
            policy: Acts after its first `load`.
            generator: Source of the policy's noise.
            seeds: Seed of each environment's stream of goals.
            first_episode_id: Of each environment.
        """
        self._envs, self._policy, self._generator = envs, policy, generator
        self._rolling = policy if isinstance(policy, RollingPolicy) else None
        self._version = -1
        self._obs = envs.reset(seed=seeds)[0].astype(np.float32)
        self._slot = torch.from_numpy(envs.task_id.astype(np.int64))
        self._episode_id = np.full(envs.num_envs, first_episode_id, np.int64)
        self._trial_id = np.zeros(envs.num_envs, np.int64)
        self._episode_of_trial = np.zeros(envs.num_envs, np.int64)
        self._state = policy.initial_state(envs.num_envs)
        self._previous = _no_previous(envs.num_envs, envs.single_action_space.shape[0])
        self._episodes = EpisodeTracker(envs.num_envs)

    def collect(self, request: CollectRequest) -> Block:
        """Executes a request with all environments and returns what happened."""
        if request.version != self._version:
            self._policy.load(request.weights)
            self._version = request.version
        if request.assignments is not None:
            self._assign(request.assignments)
        if request.slots is not None:
            self._slot = torch.tensor(request.slots)
        self._begin_where_units_begin(request)
        counted = request.unit is not Unit.STEPS
        goal = request.amount * (request.episodes_per_trial if request.unit is Unit.TRIALS else 1)
        done_counts = np.zeros(self._envs.num_envs, np.int64)
        initial_state = None if self._state is None else self._state.numpy().copy()
        rows: list[dict[str, Array]] = []
        finished: list[Episodes] = []
        num_steps = num_unstable = 0
        while (done_counts < goal).any() if counted else num_steps < request.amount:
            valid = done_counts < goal if counted else np.ones(self._envs.num_envs, bool)
            happened = self._roll(request, request.amount - num_steps if not counted else None) or self._step(request)
            row, ended, unstable = self._take_in(happened, request, valid)
            rows.append(row)
            finished.append(ended)
            num_steps += len(row["reward"])
            num_unstable += unstable
            done_counts += row["terminated"][-1] | row["truncated"][-1]
        columns = {name: np.concatenate([row[name] for row in rows]) for name in rows[0]}
        extras = {name.removeprefix("extra:"): columns.pop(name) for name in list(columns) if name.startswith("extra:")}
        return Block(
            **columns,  # type: ignore[arg-type] # its arrays
            weights_version=request.version,
            tag=request.tag,
            number=request.number,
            extras=extras,
            initial_state=initial_state,
            episodes=Episodes.concatenate(finished),
            num_unstable=num_unstable,
        )

    def get_state(self) -> dict[str, Any]:
        """Returns all that decides what is collected next, but for the weights: arrays and JSON-able values."""
        state: dict[str, Any] = {
            "envs": self._envs.get_state(),
            "generator": self._generator.get_state().numpy(),
            "obs": self._obs,
            "slot": self._slot.numpy(),
            "episode_id": self._episode_id,
            "trial_id": self._trial_id,
            "episode_of_trial": self._episode_of_trial,
            "previous": {name: value.numpy() for name, value in self._previous._asdict().items()},
            "episodes": self._episodes.get_state(),
        }
        if self._state is not None:
            state["policy_state"] = self._state.numpy()
        return copy.deepcopy(state)

    def set_state(self, state: Mapping[str, Any]) -> None:
        """Restores what `get_state` of a collector of the same environments returned.

        Raises:
            ValueError: If the environments are others, or simulated by something else.
        """
        self._envs.set_state(state["envs"])
        state = copy.deepcopy({name: value for name, value in state.items() if name != "envs"})
        self._generator.set_state(torch.from_numpy(state["generator"]))
        self._obs, self._slot = state["obs"], torch.from_numpy(state["slot"])
        self._episode_id, self._trial_id = state["episode_id"], state["trial_id"]
        self._episode_of_trial = state["episode_of_trial"]
        self._previous = Previous(**{name: torch.from_numpy(value) for name, value in state["previous"].items()})
        self._episodes.set_state(state["episodes"])
        self._state = torch.from_numpy(state["policy_state"]) if "policy_state" in state else None

    def running(self) -> list[tuple[int, int]]:
        """Returns the task and the goal of each environment's episode."""
        return list(zip(self._envs.task_id.tolist(), self._envs.goal_id.tolist(), strict=True))

    def close(self) -> None:
        """Closes the environments."""
        self._envs.close()

    def _step(self, request: CollectRequest) -> _Happened:
        """Makes one step."""
        answer = self._policy.act(
            torch.from_numpy(self._obs), self._previous, self._state, self._slot, request.mode, self._generator
        )
        goal_id, task_id = self._envs.goal_id.copy(), self._envs.task_id.copy()
        action = answer.action.numpy()
        next_first, reward, terminated, truncated, infos = self._envs.step(action, out=np.empty_like(self._obs))
        done = terminated | truncated
        next_obs = next_first
        if done.any():
            next_obs = next_first.copy()
            for env in np.flatnonzero(done):
                next_obs[env] = infos["final_obs"][env]
        return _Happened(
            action=action[np.newaxis],
            next_obs=next_obs[np.newaxis],
            reward=reward[np.newaxis],
            success=success_of_step(infos, done)[np.newaxis],
            terminated=terminated,
            truncated=truncated,
            unstable=np.asarray(infos.get("unstable", np.zeros(len(done), bool))),
            obs=next_first,
            task_id=task_id,
            goal_id=goal_id,
            answer=answer._replace(extras={name: value[np.newaxis] for name, value in answer.extras.items()}),
        )

    def _roll(self, request: CollectRequest, most_steps: int | None) -> _Happened | None:
        """Makes several steps in compiled code, up to the end of an episode; None where that is not possible."""
        envs, policy = self._envs, self._rolling
        at_once = envs.most_steps_at_once
        if most_steps is not None:
            at_once = min(at_once, most_steps)
        if at_once == 0 or policy is None:
            return None
        prepared = policy.roll(at_once, self._previous, self._state, self._slot, request.mode, self._generator)
        if prepared is None:
            return None
        goal_id, task_id = envs.goal_id.copy(), envs.task_id.copy()
        rolled = envs.roll(prepared.actor, at_once)
        steps = rolled.steps
        return _Happened(
            action=steps.action,
            next_obs=steps.obs.astype(np.float32),
            reward=steps.reward,
            success=steps.info["success"] > 0.0,
            terminated=rolled.terminated,
            truncated=rolled.truncated,
            unstable=steps.unstable[-1],
            obs=rolled.obs.astype(np.float32),
            task_id=task_id,
            goal_id=goal_id,
            answer=prepared.finish(len(steps.reward)),
        )

    def _take_in(
        self, happened: _Happened, request: CollectRequest, valid: Array
    ) -> tuple[dict[str, Array], Episodes, int]:
        """Goes on to where steps led; returns columns [step, env, ...], ended episodes, and how many broke."""
        num_steps = len(happened.reward)
        done = happened.terminated | happened.truncated

        def at_the_end(of_last: Array) -> Array:
            """Returns flags [step, env] that are set at the last step only."""
            flags = np.zeros((num_steps, len(of_last)), bool)
            flags[-1] = of_last
            return flags

        constant = {
            "valid": valid,
            "task_id": happened.task_id,
            "goal_id": happened.goal_id,
            "slot": self._slot.numpy().astype(np.int32),
            "episode_id": self._episode_id.copy(),
            "trial_id": self._trial_id.copy(),
        }
        row = {
            "obs": np.concatenate([self._obs[np.newaxis], happened.next_obs[:-1]]),
            "action": happened.action,
            "reward": happened.reward.astype(np.float32),
            "next_obs": happened.next_obs,
            "terminated": at_the_end(happened.terminated),
            "truncated": at_the_end(happened.truncated),
            "success": happened.success,
            **{name: np.broadcast_to(value, (num_steps, len(value))) for name, value in constant.items()},
            **{f"extra:{name}": value.numpy() for name, value in happened.answer.extras.items()},
        }
        nothing = np.zeros_like(done)
        for reward, success in zip(happened.reward[:-1], happened.success[:-1], strict=True):
            self._episodes.step(reward, success, nothing, valid, happened.task_id, happened.goal_id, constant["slot"])
        ended = self._episodes.step(
            happened.reward[-1],
            happened.success[-1],
            done,
            valid,
            happened.task_id,
            happened.goal_id,
            constant["slot"],
        )
        self._obs = happened.obs
        self._state = happened.answer.state
        self._previous = Previous(
            happened.answer.action, torch.from_numpy(row["reward"][-1]), torch.from_numpy(done.astype(np.float32))
        )
        self._begin_where_done(done, request)
        return row, ended, int(np.sum(happened.unstable & valid))

    def _begin_where_done(self, done: Array, request: CollectRequest) -> None:
        if not done.any():
            return
        self._episode_id += done
        self._episode_of_trial += done
        self._state = self._policy.begin(self._state, torch.from_numpy(done), Boundary.EPISODE)
        if request.unit is Unit.TRIALS:
            self._begin_trial(done & (self._episode_of_trial >= request.episodes_per_trial))

    def _begin_trial(self, mask: Array) -> None:
        if not mask.any():
            return
        self._trial_id += mask
        self._episode_of_trial[mask] = 0
        where = torch.from_numpy(mask)
        self._state = self._policy.begin(self._state, where, Boundary.TRIAL)
        blank = _no_previous(len(mask), self._previous.action.shape[1])
        self._previous = Previous(
            torch.where(where.unsqueeze(1), blank.action, self._previous.action),
            torch.where(where, blank.reward, self._previous.reward),
            torch.where(where, blank.done, self._previous.done),
        )

    def _begin_where_units_begin(self, request: CollectRequest) -> None:
        """Starts fresh episodes for requests counted in episodes or trials if one is under way."""
        if request.unit is Unit.STEPS:
            return
        if self._episodes.under_way():
            self._reset()
        if request.unit is Unit.TRIALS:
            self._begin_trial(np.ones(self._envs.num_envs, bool))

    def _assign(self, assignments: tuple[Assignment, ...]) -> None:
        self._envs.assign(assignments)
        self._reset()
        self._slot = torch.from_numpy(self._envs.task_id.astype(np.int64))

    def _reset(self) -> None:
        self._obs = self._envs.reset()[0].astype(np.float32)
        everywhere = np.ones(self._envs.num_envs, bool)
        self._episode_id += 1
        self._episodes = EpisodeTracker(self._envs.num_envs)
        self._state = self._policy.begin(self._state, torch.from_numpy(everywhere), Boundary.EPISODE)
        self._begin_trial(everywhere)


class EpisodeTracker:
    """Adds up return, length and success of the episodes that are under way."""

    def __init__(self, num_envs: int) -> None:
        self._returns = np.zeros(num_envs)
        self._length = np.zeros(num_envs, np.int32)
        self._first_success = np.full(num_envs, -1, np.int32)

    def get_state(self) -> dict[str, Array]:
        """Returns arrays [env]."""
        return {"returns": self._returns, "length": self._length, "first_success": self._first_success}

    def set_state(self, state: Mapping[str, Array]) -> None:
        """Restores what `get_state` returned."""
        self._returns, self._length = state["returns"], state["length"]
        self._first_success = state["first_success"]

    def under_way(self) -> bool:
        """Returns whether any episode has begun and not ended."""
        return bool(self._length.any())

    def step(
        self, reward: Array, success: Array, done: Array, valid: Array, task_id: Array, goal_id: Array, slot: Array
    ) -> Episodes:
        """Takes in one step of all environments, all [env], and returns the valid episodes that it ended."""
        self._returns += reward
        first = success & (self._first_success < 0)
        self._first_success[first] = self._length[first]
        self._length += 1
        if not done.any():
            return Episodes.empty()
        ended = np.flatnonzero(done & valid)
        episodes = Episodes(
            task_id=task_id[ended].astype(np.int32),
            goal_id=goal_id[ended].astype(np.int32),
            slot=slot[ended].astype(np.int32),
            env=ended.astype(np.int32),
            returns=self._returns[ended],
            length=self._length[ended],
            success=self._first_success[ended] >= 0,
            last_step_success=success[ended],
            first_success_step=self._first_success[ended],
            adapted=np.zeros(len(ended), np.int32),
        )
        self._returns[done], self._length[done], self._first_success[done] = 0.0, 0, -1
        return episodes


def success_of_step(infos: dict[str, Any], done: Array) -> Array:
    """Returns which environments [env] succeeded at the step just made, also where it ended an episode."""
    success = np.asarray(infos["success"], np.float64) > 0.0
    if done.any() and "final_info" in infos and "success" in infos["final_info"]:
        # after an autoreset, the info of the step that ended the episode is in final_info
        success = np.where(done, np.asarray(infos["final_info"]["success"], np.float64) > 0.0, success)
    return success


def _no_previous(num_envs: int, action_dim: int) -> Previous:
    return Previous(torch.zeros(num_envs, action_dim), torch.zeros(num_envs), torch.zeros(num_envs))

"""A batch of environments, each running its own task and goals, as a gymnasium vector environment.

Episodes restart in the step in which they end (SAME_STEP): the observation returned is the first of the next episode,
the last one is in `infos["final_obs"]`. What moves the environments is a `Simulator`; this file keeps the episodes.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, cast

import numpy as np
import numpy.typing as npt
from gymnasium.spaces import Box
from gymnasium.vector import AutoresetMode, VectorEnv
from gymnasium.vector.utils import batch_space

from envs.episodes import Assignment, EpisodeStatistics, GoalStreams, check_assignment, final_infos, masked
from envs.goals import Goals, fingerprint
from envs.simulator import Actor, BoolArray, FloatArray, IntArray, RollingSimulator, Simulator, Step, Steps
from envs.unstable import ActionTrace, UnstableEpisode

Infos = dict[str, Any]
Observations = npt.NDArray[np.floating[Any]]


@dataclass(frozen=True)
class EpisodeRules:
    """When episodes end and what is added to observations.

    Attributes:
        max_episode_steps: Steps after which an episode is truncated.
        terminate_on_success: Whether the first success terminates the episode.
        task_one_hot: Whether a one-hot code of the task id follows the observation.
    """

    max_episode_steps: int = 500
    terminate_on_success: bool = False
    task_one_hot: bool = False


@dataclass(frozen=True)
class Rolled:
    """What a `roll` did.

    Attributes:
        steps: What happened, one step or more. Episodes end at the last one at most.
        obs: float64 [env, obs], from where it goes on: where an episode ended, the first of the next one.
        terminated: bool [env], of the last step.
        truncated: bool [env], of the last step.
    """

    steps: Steps
    obs: FloatArray
    terminated: BoolArray
    truncated: BoolArray


class TaskVectorEnv(VectorEnv[Observations, npt.NDArray[Any], npt.NDArray[Any]]):
    """Steps environments of several tasks together.

    Attributes:
        task_names: By task id, in the official order of the benchmark.
        task_id: Task of each environment, int32 [env]; constant between calls of `assign`.
        goal_id: Goal of the running episode of each environment, int32 [env]; already the new one after a restart.
        num_tasks: Length of `task_names`.
        goals: Task name → random vectors [goal, dim].
        assignments: What each environment runs.
        num_goals: Goals per task.
        max_episode_steps: Steps after which an episode is truncated.
        num_unstable: Episodes so far that ended because the physics broke.
    """

    def __init__(
        self,
        simulator: Simulator,
        goals: Goals,
        assignments: Sequence[Assignment],
        rules: EpisodeRules,
        seed: int,
        render_mode: str | None = None,
    ) -> None:
        """Makes the environments; `envs.make` is the usual way to do so.

        Args:
            simulator: Moves the environments; this object is its only user from now on.
            goals: Of every task, in the order of the task ids; the simulator has the same ones.
            assignments: One per environment.
            rules: When episodes end.
            seed: Of the streams that choose goals; environment i has its own stream, from (seed, i).
            render_mode: `rgb_array` or None.

        Raises:
            ValueError: If an assignment names a task, goal or order that does not exist, or the horizon is below 1.
        """
        self._simulator, self._rules, self.goals = simulator, rules, goals
        can_roll = isinstance(simulator, RollingSimulator) and not rules.task_one_hot
        self._rolling = cast("RollingSimulator", simulator) if can_roll else None
        if rules.max_episode_steps < 1:
            raise ValueError(f"max_episode_steps is {rules.max_episode_steps}; expected at least 1")
        self.task_names, self.num_tasks = tuple(goals), len(goals)
        self.num_goals = min(len(vectors) for vectors in goals.values())
        self.max_episode_steps = rules.max_episode_steps
        self.terminate_on_success = rules.terminate_on_success
        self.sample_tasks_on_reset = True
        self.num_unstable = 0
        self.num_envs = len(assignments)
        self.render_mode = render_mode
        self.metadata = {"autoreset_mode": AutoresetMode.SAME_STEP, "render_modes": ["rgb_array"], "render_fps": 80}
        self._set_spaces()
        self._streams = GoalStreams(assignments, seed)
        self.assign(assignments)

    def assign(self, assignments: Sequence[Assignment]) -> None:
        """Sets what the environments run from the next `reset` on, which must follow.

        Args:
            assignments: As many as there are environments.

        Raises:
            ValueError: If their number differs, or one names a task, goal or order that does not exist.
        """
        if len(assignments) != self.num_envs:
            raise ValueError(f"got {len(assignments)} assignments for {self.num_envs} environments")
        for assignment in assignments:
            check_assignment(assignment, self.task_names, self.num_goals)
        self.assignments = tuple(assignments)
        self.task_id: IntArray = np.array([assignment.task_id for assignment in assignments], np.int32)
        self.goal_id: IntArray = np.full(self.num_envs, -1, np.int32)
        self._streams.assign(assignments)
        self._simulator.assign(self.task_id)
        self._statistics = EpisodeStatistics(self.num_envs)
        self._active = np.ones(self.num_envs, np.bool_)
        self._trace = ActionTrace(self.num_envs, self._simulator.action_dim)
        self._needs_reset = True
        if self._rules.task_one_hot:
            self._one_hot = np.eye(self.num_tasks)[self.task_id]  # [env, task]

    def reset(
        self,
        *,
        seed: int | Sequence[int | None] | None = None,
        options: dict[str, Any] | None = None,
        out: Observations | None = None,
    ) -> tuple[Observations, Infos]:
        """Begins an episode in every environment.

        Args:
            seed: Begins the streams that choose goals anew: environment i gets the stream (seed, i), or (seed[i], 0)
                from a list, which does not depend on its place. None lets the streams go on.
            options: `{"reset_mask": bool array [env]}` restarts only some environments.
            out: Where observations are written, as for `step`.

        Returns:
            First observations, float64 [env, obs] or `out`, and no infos.

        Raises:
            RuntimeError: If the environments have been closed.
            ValueError: If the list of seeds, the mask or `out` has the wrong shape, or `out` another type.
        """
        self._check_open()
        self._check_out(out)
        self._seed_streams(seed)
        mask = self._reset_mask(options)
        for index in np.flatnonzero(mask):
            if self.sample_tasks_on_reset:
                self._streams.rewind(int(index))
            self._begin_episode(int(index), choose_goal=self.sample_tasks_on_reset)
        self._needs_reset = False
        return self._copied_obs(out), {}

    def set_active(self, active: npt.ArrayLike) -> None:
        """Lets only the environments in the mask [env] move from now on; the others stand still, with reward 0.

        It saves the simulation of environments whose share of an evaluation is done. `assign` activates all.

        Raises:
            ValueError: If the mask has the wrong shape.
        """
        mask = np.array(active, np.bool_)
        if mask.shape != (self.num_envs,):
            raise ValueError(f"active has shape {mask.shape}; expected ({self.num_envs},)")
        self._active = mask

    def step(
        self, actions: npt.NDArray[Any], *, out: Observations | None = None
    ) -> tuple[Observations, FloatArray, BoolArray, BoolArray, Infos]:
        """Moves every environment by one step and restarts those whose episode ends.

        Args:
            actions: [env, action], in -1..1; cast to float32, on which the arithmetic of the benchmark depends.
            out: float32 or float64 [env, obs]; observations are written there, rounded to its type, and no other array
                is made for them.

        Returns:
            obs float64 [env, obs] or `out`, reward float64 [env], terminated bool [env], truncated bool [env], and
            infos: the simulator's numbers of this very step, float64 [env] (`success` among them), and `unstable` bool
            [env]; if episodes ended also `final_obs`, and `final_info` with `episode` (r, l, t). Each has its mask
            `_name`.

        Raises:
            RuntimeError: If `reset` has not been called since the environments were made or assigned, or after `close`.
            ValueError: If the actions or `out` have the wrong shape, or `out` another type.
        """
        self._check_running()
        self._check_out(out)
        action = np.asarray(actions, np.float32)
        if action.shape != self._action_shape:
            raise ValueError(f"actions have shape {action.shape}; expected {self._action_shape}")
        self._trace.record(self._statistics.length, action)
        result = self._simulator.step(action, self._active)
        self._statistics.record(result.reward, self._active)
        terminated, truncated, infos = self._after(result)
        return self._copied_obs(out), result.reward, terminated, truncated, infos

    @property
    def most_steps_at_once(self) -> int:
        """Steps that a `roll` makes at most; 0 where what simulates has none, or an actor would miss the task."""
        return 0 if self._rolling is None else self._rolling.most_steps_at_once

    def roll(self, actor: Actor, num_steps: int) -> Rolled:
        """Lets a policy in compiled code act, step after step without Python, until an episode ends.

        Args:
            actor: Acts in all environments, also in those that stand still.
            num_steps: At most, 1 or more; it also ends after `most_steps_at_once`.

        Raises:
            RuntimeError: If `reset` has not been called since the environments were made or assigned, after `close`, or
                if `most_steps_at_once` is 0.
            ValueError: If the actor is made for other numbers of environments, observations or actions.
        """
        self._check_running()
        if self._rolling is None:
            raise RuntimeError(f"{self._simulator.description}: rolls are not possible; call step()")
        sizes = (*self._current_obs.shape, self._simulator.action_dim)
        if actor.sizes != sizes:
            raise ValueError(f"the actor is for (env, obs, action) = {actor.sizes}; these environments have {sizes}")
        left = self.max_episode_steps - int(self._statistics.length.max(where=self._active, initial=0))
        steps = self._rolling.roll(
            actor,
            min(num_steps, self.most_steps_at_once, left),
            self._active,
            until_success=self.terminate_on_success,
        )
        for action, reward in zip(steps.action, steps.reward, strict=True):
            self._trace.record(self._statistics.length, action)
            self._statistics.record(reward, self._active)
        terminated, truncated, _ = self._after(steps.last())
        return Rolled(steps, self._current_obs.copy(), terminated, truncated)

    def _after(self, result: Step) -> tuple[BoolArray, BoolArray, Infos]:
        """Ends episodes that a step ended and begins others; returns which were terminated and truncated, and infos."""
        truncated: BoolArray = self._statistics.length >= self.max_episode_steps
        truncated |= result.unstable
        terminated: BoolArray = np.zeros(self.num_envs, np.bool_)
        if self.terminate_on_success:
            terminated = result.info["success"] == 1.0
        self._current_obs = self._with_one_hot(result.obs)  # [env, obs]
        info = {**result.info, "unstable": result.unstable}
        infos = masked(info, np.ones(self.num_envs, np.bool_))
        finished = terminated | truncated
        if np.count_nonzero(finished):
            infos |= final_infos(self._current_obs, info, finished, self._statistics)
            for index in np.flatnonzero(result.unstable):
                self._report(int(index))
            for index in np.flatnonzero(finished):
                self._begin_episode(int(index), choose_goal=self.sample_tasks_on_reset)
        return terminated, truncated, infos

    def get_state(self) -> dict[str, Any]:
        """Returns all that decides the future, in the middle of episodes too: arrays and JSON-able values, flat.

        Raises:
            RuntimeError: If `reset` has not been called since the environments were made or assigned, or after `close`.
        """
        self._check_running()
        state = {
            "simulator": self._simulator.description,
            "goals": fingerprint(self.goals),
            "assignments": [[a.task_id, list(a.goals), a.order] for a in self.assignments],
            "goal_id": self.goal_id.copy(),
            "obs": self._current_obs.copy(),
            "sample_tasks_on_reset": self.sample_tasks_on_reset,
            "terminate_on_success": self.terminate_on_success,
            "num_unstable": self.num_unstable,
            "active": self._active.copy(),
            "goal_streams": self._streams.get_state(),
            "trace": self._trace.get_state(self._statistics.length),
        }
        state |= {f"statistics/{name}": value for name, value in self._statistics.get_state().items()}
        state |= {f"simulator/{name}": value for name, value in self._simulator.get_state().items()}
        return state

    def set_state(self, state: Mapping[str, Any]) -> None:
        """Restores what `get_state` returned, assignments too; no reset is needed afterwards.

        Raises:
            ValueError: If the state is of another simulator, other goals or another number of environments, or longer
                into an episode than episodes are here.
        """
        for name, own in (("simulator", self._simulator.description), ("goals", fingerprint(self.goals))):
            if state[name] != own:
                raise ValueError(f"the state was made with {name} {state[name]!r}; this environment has {own!r}")
        num_steps = int(np.max(state["statistics/length"], initial=0))
        if num_steps >= self.max_episode_steps:
            raise ValueError(
                f"the state is {num_steps} steps into an episode; here they end at {self.max_episode_steps}"
            )
        self.assign([Assignment(int(task), tuple(ids), order) for task, ids, order in state["assignments"]])
        self.goal_id = np.array(state["goal_id"], np.int32)
        self._current_obs = np.array(state["obs"], np.float64)
        self.sample_tasks_on_reset = bool(state["sample_tasks_on_reset"])
        self.terminate_on_success = bool(state["terminate_on_success"])
        self.num_unstable = int(state["num_unstable"])
        self._active = np.array(state["active"], np.bool_)
        self._streams.set_state(state["goal_streams"])
        self._trace.set_state(state["trace"])
        self._statistics.set_state(_part(state, "statistics/"))
        self._simulator.set_state(_part(state, "simulator/"))
        self._needs_reset = False

    def get_attr(self, name: str) -> tuple[Any, ...]:
        """Returns an attribute of each environment; `task_name` is the name of metaworld's class, as there."""
        if name == "task_name":
            return tuple(self._simulator.class_names[task] for task in self.task_id)
        return (getattr(self, name),) * self.num_envs

    def call(self, name: str, *args: Any, **kwargs: Any) -> tuple[Any, ...]:
        """Calls a method once for all environments and returns its result for each of them."""
        attribute = getattr(self, name) if name != "task_name" else None
        if not callable(attribute):
            return self.get_attr(name)
        result = attribute(*args, **kwargs)
        return tuple(result) if isinstance(result, tuple | list) else (result,) * self.num_envs

    def toggle_terminate_on_success(self, on: bool) -> None:
        """Sets whether the first success terminates an episode."""
        self.terminate_on_success = on

    def toggle_sample_tasks_on_reset(self, on: bool) -> None:
        """Sets whether every new episode chooses a goal, or keeps that of the last one."""
        self.sample_tasks_on_reset = on

    def sample_tasks(self) -> list[tuple[FloatArray, Infos]]:
        """Chooses the next goal of every environment and begins an episode in it; returns obs and info of each."""
        for index in range(self.num_envs):
            self._begin_episode(index, choose_goal=True)
        self._needs_reset = False
        return [(obs.copy(), {}) for obs in self._current_obs]

    def render(self) -> Any:
        """Returns a tuple of pictures [height, width, 3], one per environment, or None without a render mode."""
        if self.render_mode is None:
            return None
        return tuple(self._simulator.render(index) for index in range(self.num_envs))

    def close_extras(self, **kwargs: Any) -> None:
        """Frees models and data; called by `close`."""
        self._simulator.close()

    def _set_spaces(self) -> None:
        low, high = self._simulator.obs_low, self._simulator.obs_high
        if self._rules.task_one_hot:
            low = np.concatenate([low, np.zeros(self.num_tasks)])
            high = np.concatenate([high, np.ones(self.num_tasks)])
        self.single_observation_space = Box(low, high, dtype=np.float64)
        self.single_action_space = Box(-1.0, 1.0, (self._simulator.action_dim,), np.float32)
        self.observation_space = batch_space(self.single_observation_space, self.num_envs)
        self.action_space = batch_space(self.single_action_space, self.num_envs)
        self._action_shape = (self.num_envs, self._simulator.action_dim)
        self._current_obs = np.zeros((self.num_envs, len(low)))  # [env, obs]

    def _seed_streams(self, seed: int | Sequence[int | None] | None) -> None:
        if seed is None:
            return
        if isinstance(seed, int | np.integer):
            self._streams.seed_all(int(seed))
            return
        seeds = list(seed)
        if len(seeds) != self.num_envs:
            raise ValueError(f"got {len(seeds)} seeds for {self.num_envs} environments")
        for index, own in enumerate(seeds):
            if own is not None:
                self._streams.seed(index, int(own))

    def _reset_mask(self, options: dict[str, Any] | None) -> BoolArray:
        mask = (options or {}).get("reset_mask")
        if mask is None:
            return np.ones(self.num_envs, np.bool_)
        mask = np.asarray(mask)
        if mask.shape != (self.num_envs,) or mask.dtype != np.bool_ or not mask.any():
            raise ValueError(f"reset_mask must be a bool array [{self.num_envs}] with at least one True, got {mask}")
        if self._needs_reset and not mask.all():
            raise ValueError("reset_mask leaves out environments that have not been reset yet")
        return mask

    def _check_running(self) -> None:
        self._check_open()
        if self._needs_reset:
            raise RuntimeError("the environments have not been reset since they were made or assigned; call reset()")

    def _check_open(self) -> None:
        if self.closed:
            raise RuntimeError("the environments have been closed; make new ones")

    def _begin_episode(self, index: int, *, choose_goal: bool) -> None:
        if choose_goal or self.goal_id[index] < 0:
            self.goal_id[index] = self._streams.next_goal(index)
        obs = self._simulator.restart(index, int(self.goal_id[index]))
        self._current_obs[index, : len(obs)] = obs
        if self._rules.task_one_hot:
            self._current_obs[index, len(obs) :] = self._one_hot[index]
        self._statistics.begin(index)

    def _check_out(self, out: Observations | None) -> None:
        if out is None:
            return
        if out.shape != self.observation_space.shape:
            raise ValueError(f"out has shape {out.shape}; expected {self.observation_space.shape}")
        if out.dtype not in (np.float32, np.float64) or not out.flags.writeable:
            raise ValueError(f"out must be a float32 or float64 array that can be written to, got {out.dtype}")

    def _copied_obs(self, out: Observations | None) -> Observations:
        """Returns a copy of the current observations, in `out` if it is given."""
        if out is None:
            return self._current_obs.copy()
        np.copyto(out, self._current_obs, casting="same_kind")
        return out

    def _report(self, index: int) -> None:
        """Counts, logs and keeps an episode whose physics broke."""
        self.num_unstable += 1
        task, goal_id = self.task_names[self.task_id[index]], int(self.goal_id[index])
        UnstableEpisode(
            task=task,
            goal_id=goal_id,
            goal=self.goals[task][goal_id],
            seed=self._streams.seeds[index],
            environment=index,
            reason=self._simulator.breakdown(index),
            simulator=self._simulator.description,
            actions=self._trace.of(index, int(self._statistics.length[index])),
        ).report()

    def _with_one_hot(self, obs: FloatArray) -> FloatArray:
        """Returns [env, obs] or [env, obs + task]."""
        return np.concatenate([obs, self._one_hot], axis=1) if self._rules.task_one_hot else obs


def _part(state: Mapping[str, Any], prefix: str) -> dict[str, Any]:
    return {name.removeprefix(prefix): value for name, value in state.items() if name.startswith(prefix)}

"""What every vector environment keeps of its episodes: which goal comes next, return, length, and the final infos."""

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from envs.simulator import BoolArray, FloatArray

Order = Literal["random", "cycle"]


@dataclass(frozen=True)
class Assignment:
    """What one environment of a batch runs.

    Attributes:
        task_id: Index into the task names.
        goals: Ids of the goals that it may run.
        order: `random`: drawn uniformly, with replacement, from the environment's own stream at every reset.
            `cycle`: in the order given, from the first one at every `reset()`, and round again.
    """

    task_id: int
    goals: tuple[int, ...]
    order: Order = "random"


def check_assignment(assignment: Assignment, task_names: Sequence[str], num_goals: int) -> None:
    """Checks that what an assignment names exists.

    Raises:
        ValueError: If not.
    """
    if not 0 <= assignment.task_id < len(task_names):
        raise ValueError(f"task_id is {assignment.task_id}; the tasks are 0 to {len(task_names) - 1}")
    if not assignment.goals:
        raise ValueError(f"the assignment of {task_names[assignment.task_id]} has no goals")
    wrong = [goal for goal in assignment.goals if not 0 <= goal < num_goals]
    if wrong:
        raise ValueError(f"goals {wrong} do not exist; goal ids are 0 to {num_goals - 1}")
    if assignment.order not in ("random", "cycle"):
        raise ValueError(f"order is {assignment.order!r}; expected 'random' or 'cycle'")


def spread_goals(num_tasks: int, copies: int, num_goals: int) -> list[Assignment]:
    """Returns assignments in which the copies of each task share its goals out and run through them in order.

    Copy i of a task gets the goals i, i + copies, i + 2 copies, ...; together they run every goal once.

    Raises:
        ValueError: If there are more copies than goals.
    """
    if copies > num_goals:
        raise ValueError(f"{copies} copies cannot share {num_goals} goals; use at most as many copies as goals")
    shares = [tuple(range(copy, num_goals, copies)) for copy in range(copies)]
    return [Assignment(task_id, share, "cycle") for task_id in range(num_tasks) for share in shares]


class GoalStreams:
    """Chooses the goal of each next episode, for each environment from a random stream of its own.

    Attributes:
        seeds: What each environment's stream began with: a seed and a number.
    """

    def __init__(self, assignments: Sequence[Assignment], seed: int) -> None:
        """Gives environment i the stream (seed, i)."""
        self._assignments = tuple(assignments)
        self.seeds = [(seed, index) for index in range(len(assignments))]
        self._streams = [_stream(*pair) for pair in self.seeds]
        self._position = [0] * len(assignments)  # of `cycle`: place of the next goal

    def assign(self, assignments: Sequence[Assignment]) -> None:
        """Sets new assignments of the same number of environments; the streams go on."""
        self._assignments = tuple(assignments)
        self._position = [0] * len(assignments)

    def seed(self, index: int, seed: int) -> None:
        """Begins the stream of one environment anew, as (seed, 0): its place in the batch does not matter."""
        self.seeds[index] = (seed, 0)
        self._streams[index] = _stream(seed, 0)

    def seed_all(self, seed: int) -> None:
        """Begins the streams of all environments anew, environment i as (seed, i)."""
        self.seeds = [(seed, index) for index in range(len(self._streams))]
        self._streams = [_stream(*pair) for pair in self.seeds]

    def rewind(self, index: int) -> None:
        """Lets `cycle` begin with the first goal again."""
        self._position[index] = 0

    def next_goal(self, index: int) -> int:
        """Returns the id of the goal of the next episode."""
        assignment = self._assignments[index]
        if assignment.order == "random":
            return assignment.goals[int(self._streams[index].integers(len(assignment.goals)))]
        position = self._position[index]
        self._position[index] = (position + 1) % len(assignment.goals)
        return assignment.goals[position]

    def get_state(self) -> dict[str, Any]:
        """Returns JSON-able values."""
        return {
            "position": list(self._position),
            "seeds": [list(pair) for pair in self.seeds],
            "streams": [stream.bit_generator.state for stream in self._streams],
        }

    def set_state(self, state: Mapping[str, Any]) -> None:
        """Restores what `get_state` returned."""
        self._position = [int(position) for position in state["position"]]
        self.seeds = [(int(seed), int(number)) for seed, number in state["seeds"]]
        for stream, saved in zip(self._streams, state["streams"], strict=True):
            stream.bit_generator.state = saved


class EpisodeStatistics:
    """Return, length and duration of the running episode of each environment."""

    def __init__(self, num_envs: int) -> None:
        """Starts all at zero."""
        self.episode_return: FloatArray = np.zeros(num_envs)  # [env]
        self.length = np.zeros(num_envs, np.int64)  # [env], in steps
        self._start_s = np.full(num_envs, time.perf_counter())

    def begin(self, index: int) -> None:
        """Starts an episode."""
        self.episode_return[index] = 0.0
        self.length[index] = 0
        self._start_s[index] = time.perf_counter()

    def record(self, reward: FloatArray, active: BoolArray) -> None:
        """Adds a step of the active environments [env]; reward is [env], 0 for the others."""
        self.episode_return += reward
        self.length += active

    def episode_info(self, finished: BoolArray) -> dict[str, Any]:
        """Returns r, l and t of the finished environments [env], zero elsewhere, with their masks."""
        seconds = np.round(time.perf_counter() - self._start_s, 6)
        columns = {"r": self.episode_return, "l": self.length, "t": seconds}
        return masked({name: np.where(finished, column, 0) for name, column in columns.items()}, finished)

    def get_state(self) -> dict[str, Any]:
        """Returns arrays [env]; durations are not kept, they go on from the moment of `set_state`."""
        return {"return": self.episode_return.copy(), "length": self.length.copy()}

    def set_state(self, state: Mapping[str, Any]) -> None:
        """Restores what `get_state` returned."""
        self.episode_return[:] = state["return"]
        self.length[:] = state["length"]
        self._start_s[:] = time.perf_counter()


def masked(columns: Mapping[str, Any], mask: BoolArray) -> dict[str, Any]:
    """Returns the columns, each followed by its mask under the same name with `_` before it, as gymnasium has them."""
    infos: dict[str, Any] = {}
    for name, column in columns.items():
        infos[name] = column
        infos[f"_{name}"] = mask
    return infos


def final_infos(
    obs: FloatArray, info: Mapping[str, npt.NDArray[Any]], finished: BoolArray, statistics: EpisodeStatistics
) -> dict[str, Any]:
    """Returns `final_obs` and `final_info` of the environments that finished in this step, in gymnasium's form.

    Args:
        obs: The last observations of the episodes [env, obs].
        info: Numbers and flags [env] of the last step.
        finished: [env], at least one of them true.
        statistics: Of the running episodes, this step included.
    """
    final_obs = np.full(len(finished), None, dtype=object)  # [env], of arrays [obs]
    for index in np.flatnonzero(finished):
        final_obs[index] = obs[index].copy()
    last = {name: np.where(finished, column, np.zeros_like(column)) for name, column in info.items()}
    final_info = masked({**last, "episode": statistics.episode_info(finished)}, finished)
    return masked({"final_obs": final_obs, "final_info": final_info}, finished)


def _stream(seed: int, index: int) -> np.random.Generator:
    return np.random.Generator(np.random.PCG64(np.random.SeedSequence(seed, spawn_key=(index,))))

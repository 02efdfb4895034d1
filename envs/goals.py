"""The random vectors ("goals") of every task, equal to metaworld's own for the same seed, made without simulating.

metaworld seeds one generator per split and lets every task class, in order, reset 50 times. A reset draws two
accepted vectors and keeps the second; vectors that put an object too near its goal are drawn again. What the classes
draw from is in `goal_spaces.py`.
"""

import hashlib

import numpy as np
import numpy.typing as npt

from envs.benchmarks import Benchmark, Split
from envs.goal_spaces import GOAL_SPACES, GoalSpace
from envs.toy_tasks import TOY_TASKS

NUM_GOALS = 50
"""Goals per task that every benchmark draws, whatever number of them is used."""

Goals = dict[str, npt.NDArray[np.float64]]
"""Task name → random vectors [goal, dim]."""


def goals_for(benchmark: Benchmark, split: Split = "train", seed: int = 1, num_goals: int = NUM_GOALS) -> Goals:
    """Returns the goals of all tasks of a split, in the order of the split.

    Each task draws `max(50, num_goals)` goals and keeps the first `num_goals`, so that fewer goals are a prefix of the
    50. The streams follow metaworld: one for the whole split; ML1 tests with seed + 1, ML10, ML25 and ML45 with the
    same seed; in `custom` each task has its own with seed + index. There metaworld takes seed 0 for no seed and the
    goals change from run to run; here 0 is a seed like any other.

    Args:
        benchmark: From `get_benchmark`.
        split: `train` or `test`.
        seed: At least 0.
        num_goals: Goals per task, at least 1.

    Raises:
        ValueError: If the split has no tasks, or seed or num_goals are out of range.
    """
    if num_goals < 1:
        raise ValueError(f"num_goals is {num_goals}; expected at least 1")
    if seed < 0 or seed >= 2**32 - 1:
        raise ValueError(f"seed is {seed}; expected 0 to 2**32 - 2")
    names = benchmark.tasks(split)
    if benchmark.name == "custom":
        spaces = [{name: _space(name)} for name in names]
        streams = [np.random.RandomState(seed + index) for index in range(len(names))]
    else:
        spaces = [{name: _space(name) for name in names}]
        streams = [np.random.RandomState(seed + 1 if (benchmark.name, split) == ("ML1", "test") else seed)]
    goals: Goals = {}
    for group, generator in zip(spaces, streams, strict=True):
        for name, space in group.items():
            drawn = [_draw(space, generator) for _ in range(max(NUM_GOALS, num_goals))]
            goals[name] = np.stack(drawn[:num_goals])  # [goal, dim]
    return goals


def fingerprint(goals: Goals) -> str:
    """Returns a hash of the goals, to tell whether two sets of them are the same."""
    digest = hashlib.sha256()
    for name, vectors in goals.items():
        digest.update(name.encode() + vectors.tobytes())
    return digest.hexdigest()[:16]


def _space(name: str) -> GoalSpace:
    if name in TOY_TASKS:
        return GoalSpace(TOY_TASKS[name].low, TOY_TASKS[name].high)
    return GOAL_SPACES[name]


def _draw(space: GoalSpace, generator: np.random.RandomState) -> npt.NDArray[np.float64]:
    """Returns the vector that one reset of metaworld would keep: the second of two accepted ones, [dim]."""
    _draw_accepted(space, generator)
    return _draw_accepted(space, generator)


def _draw_accepted(space: GoalSpace, generator: np.random.RandomState) -> npt.NDArray[np.float64]:
    while True:
        vector = generator.uniform(space.low, space.high, size=len(space.low))  # [dim]
        if not space.min_distance:
            return vector
        goal = vector[-3:-1] if space.fixed_goal is None else np.array(space.fixed_goal)
        if not np.linalg.norm(vector[:2] - goal) < space.min_distance:
            return vector

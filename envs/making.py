"""Puts benchmark, goals, simulator and rules together into a vector environment."""

import warnings
from collections.abc import Sequence
from typing import Any

from envs.benchmarks import Benchmark, Split, get_benchmark
from envs.episodes import Assignment
from envs.goals import NUM_GOALS, Goals, goals_for
from envs.simulator import Simulator
from envs.vector import EpisodeRules, TaskVectorEnv


def make(
    name: str,
    *,
    tasks: Sequence[str] = (),
    test_tasks: Sequence[str] = (),
    split: Split = "train",
    seed: int = 1,
    copies: int = 1,
    assignments: Sequence[Assignment] | None = None,
    max_episode_steps: int | None = None,
    reward_version: str = "v2",
    terminate_on_success: bool = False,
    task_one_hot: bool = False,
    num_goals: int = NUM_GOALS,
    stream_seed: int | None = None,
    backend: str = "metaworld",
    render_mode: str | None = None,
) -> TaskVectorEnv:
    """Returns a vector environment of a benchmark: by default one environment per task, with all of its goals.

    Args:
        name: A benchmark; see `benchmarks.BENCHMARKS`.
        tasks: The task of MT1 and ML1, the tasks of custom and the training tasks of custom-ml.
        test_tasks: The test tasks of custom-ml.
        split: `train` or `test`.
        seed: Of the goals.
        copies: Environments per task, neighbours in the batch.
        assignments: What each environment runs, in place of `copies`.
        max_episode_steps: Horizon; None is 500, in the toy suite 50.
        reward_version: `v1` or `v2`.
        terminate_on_success: Whether the first success terminates the episode.
        task_one_hot: Whether a one-hot code of the task id follows the observation.
        num_goals: Goals per task.
        stream_seed: Of the streams that choose goals at each reset; None is `seed`.
        backend: What simulates: `metaworld`, its own classes. The toy suite ignores it.
        render_mode: `rgb_array` or None.

    Raises:
        ValueError: If a name or number is wrong; the message tells the right ones.
    """
    if copies < 1:
        raise ValueError(f"copies is {copies}; expected at least 1")
    if assignments is not None and copies != 1:
        raise ValueError("give either copies or assignments")
    benchmark = get_benchmark(name, tasks, test_tasks)
    _report_overlap(benchmark)
    task_names = benchmark.tasks(split)
    goals = goals_for(benchmark, split, seed, num_goals)
    if assignments is None:
        assignments = [
            Assignment(task_id, tuple(range(num_goals))) for task_id in range(len(task_names)) for _ in range(copies)
        ]
    simulator, horizon = _simulator(benchmark, task_names, goals, reward_version, backend)
    rules = EpisodeRules(horizon if max_episode_steps is None else max_episode_steps, terminate_on_success, task_one_hot)
    streams = seed if stream_seed is None else stream_seed
    return TaskVectorEnv(simulator, task_names, num_goals, assignments, rules, streams, render_mode)


def _simulator(
    benchmark: Benchmark, task_names: Sequence[str], goals: Goals, reward_version: str, backend: str
) -> tuple[Simulator, int]:
    """Returns the simulator of the tasks and its usual horizon."""
    if backend != "metaworld":
        raise ValueError(f"backend is {backend!r}; expected 'metaworld'")
    from envs.metaworld_simulator import MetaWorldSimulator  # imports mujoco, which toy tasks do without

    simulator = MetaWorldSimulator(
        task_names, goals, goal_visible=benchmark.goal_visible, reward_version=reward_version
    )
    return simulator, 500


def _report_overlap(benchmark: Benchmark) -> None:
    if benchmark.overlap:
        warnings.warn(
            f"{benchmark.name} trains on {', '.join(benchmark.overlap)} and tests on it as well (so it is defined): "
            "its test score is not that of unseen tasks only",
            stacklevel=3,
        )

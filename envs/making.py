"""Puts benchmark, goals, simulator and rules together into a vector environment."""

import logging
import warnings
from collections.abc import Sequence
from functools import cache

from envs import toy
from envs.benchmarks import Benchmark, Split, get_benchmark
from envs.episodes import Assignment
from envs.goals import NUM_GOALS, Goals, goals_for
from envs.simulator import Simulator
from envs.toy_tasks import TOY_TASKS
from envs.vector import EpisodeRules, TaskVectorEnv

_LOGGER = logging.getLogger(__name__)
BACKENDS = ("auto", "compiled", "metaworld")


def make(
    name: str,
    *,
    tasks: Sequence[str] = (),
    test_tasks: Sequence[str] = (),
    goal_visible: bool | None = None,
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
    backend: str = "auto",
    num_threads: int = 1,
    render_mode: str | None = None,
    camera: str = "corner2",
) -> TaskVectorEnv:
    """Returns a vector environment of a benchmark: by default one environment per task, with all of its goals.

    Args:
        name: A benchmark; see `benchmarks.BENCHMARKS`.
        tasks: The task of MT1 and ML1, the tasks of custom and the training tasks of custom-ml.
        test_tasks: The test tasks of custom-ml.
        goal_visible: Whether observations hold the goal or zeros; None: as the benchmark has it.
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
        backend: What simulates: `metaworld`, its own classes; `compiled`, the same numbers faster; `auto`, compiled
            where it was proved equal, else metaworld. The toy suite ignores it.
        num_threads: Threads that share the work of a step, for the compiled backend; the numbers do not depend on it.
        render_mode: `rgb_array` or None.
        camera: One of `rendering.CAMERAS`.

    Raises:
        ValueError: If a name or number is wrong; the message tells the right ones.
    """
    if num_threads < 1:
        raise ValueError(f"num_threads is {num_threads}; expected at least 1")
    if copies < 1:
        raise ValueError(f"copies is {copies}; expected at least 1")
    if assignments is not None and copies != 1:
        raise ValueError("give either copies or assignments")
    benchmark = get_benchmark(name, tasks, test_tasks)
    _report_overlap(benchmark)
    task_names = benchmark.tasks(split)
    goals = goals_for(benchmark, split, seed, num_goals)
    if assignments is None:
        every_goal = tuple(range(num_goals))
        assignments = [Assignment(task_id, every_goal) for task_id in range(len(task_names)) for _ in range(copies)]
    if max_episode_steps is None:
        max_episode_steps = toy.MAX_EPISODE_STEPS if _is_toy(task_names) else 500
    simulator = make_simulator(
        task_names,
        goals,
        goal_visible=benchmark.goal_visible if goal_visible is None else goal_visible,
        reward_version=reward_version,
        backend=backend,
        num_threads=num_threads,
        camera=camera,
    )
    rules = EpisodeRules(max_episode_steps, terminate_on_success, task_one_hot)
    streams = seed if stream_seed is None else stream_seed
    return TaskVectorEnv(simulator, goals, assignments, rules, streams, render_mode)


def make_simulator(
    task_names: Sequence[str],
    goals: Goals,
    *,
    goal_visible: bool,
    reward_version: str = "v2",
    backend: str = "auto",
    num_threads: int = 1,
    camera: str = "corner2",
) -> Simulator:
    """Returns the simulator of a list of tasks, all of them of Meta-World or all of the toy suite.

    Raises:
        ValueError: If backend, reward version or camera are unknown.
    """
    chosen = choose_backend(task_names, reward_version, backend)
    if chosen == "toy":
        return toy.ToySimulator(task_names, goals, goal_visible=goal_visible)
    # imports mujoco, which toy tasks do without
    from envs.metaworld_simulator import MetaWorldSimulator
    from envs.rendering import View

    if chosen == "compiled":
        from envs.compiled.simulator import CompiledSimulator  # takes half a second to load, a minute to compile

        return CompiledSimulator(
            task_names, goals, goal_visible=goal_visible, num_threads=num_threads, view=View(camera)
        )
    return MetaWorldSimulator(
        task_names, goals, goal_visible=goal_visible, reward_version=reward_version, view=View(camera)
    )


def choose_backend(task_names: Sequence[str], reward_version: str, backend: str) -> str:
    """Returns what will simulate: `toy`, `compiled` or `metaworld`.

    Where `auto` has to do without compiled code, the reason is logged once.

    Raises:
        ValueError: If the backend is unknown, or `compiled` cannot simulate these tasks here.
    """
    if backend not in BACKENDS:
        raise ValueError(f"backend is {backend!r}; expected one of {', '.join(BACKENDS)}")
    if _is_toy(task_names):
        return "toy"
    if backend == "metaworld":
        return backend
    from envs.compiled.obstacle import obstacle  # imports mujoco, as above

    reason = obstacle(task_names, reward_version)
    if reason is None:
        return "compiled"
    if backend == "compiled":
        raise ValueError(f"the compiled backend cannot be used: {reason}; take backend=auto or backend=metaworld")
    _tell_once(f"simulating with metaworld's own classes; the compiled backend cannot be used: {reason}")
    return "metaworld"


@cache
def _tell_once(text: str) -> None:
    _LOGGER.warning(text)


def _is_toy(task_names: Sequence[str]) -> bool:
    return task_names[0] in TOY_TASKS


def _report_overlap(benchmark: Benchmark) -> None:
    if benchmark.overlap:
        warnings.warn(
            f"{benchmark.name} trains on {', '.join(benchmark.overlap)} and tests on it as well (so it is defined): "
            "its test score is not that of unseen tasks only",
            stacklevel=3,
        )

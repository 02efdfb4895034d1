"""How long environments take: metaworld's own classes, our two backends, and the physics that none can do without."""

from __future__ import annotations

import time
import warnings
from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

import envs
from envs.benchmarks import get_benchmark
from envs.episodes import Assignment
from envs.goals import goals_for
from envs.making import choose_backend
from envs.parity import actions_from
from envs.task_objects import plain_task

Actions = NDArray[np.float32]
_BLOCK = 10  # steps that one variant makes before the next has its turn


def bench_envs(benchmark: str, source: str = "uniform", num_steps: int = 300) -> dict[str, float]:
    """Steps one environment per task, all variants in turn in one process with the same actions.

    Args:
        benchmark: Its training tasks are stepped.
        source: Of the actions, one of `envs.parity.SOURCES`.
        num_steps: Steps of each environment.

    Returns:
        For each backend `*_build_s`, until the first observation, `*_reset_s`, one reset to a stored state, and `*_s`,
        one environment step; `class_s`, a step of metaworld's classes as they are; `physics_s`, that of the bare
        physics; and ratios of these.
    """
    figures: dict[str, float] = {}
    backends = ["metaworld"]
    if choose_backend(get_benchmark(benchmark).train_tasks, "v2", "auto") == "compiled":
        backends.append("compiled")
    steps: dict[str, Callable[[Actions], object]] = {}
    for backend in backends:
        vector, figures[f"{backend}_build_s"], figures[f"{backend}_reset_s"] = _built(benchmark, backend)
        steps[backend] = vector.step
    if "compiled" in backends:
        steps["physics"] = _bare_physics(benchmark)
    steps["class"] = _classes(benchmark)
    blocks = _recorded(benchmark, source, num_steps).reshape(-1, _BLOCK, vector.num_envs, 4)
    seconds: dict[str, list[float]] = {name: [] for name in steps}
    for number, block in enumerate(blocks):
        for name, step in steps.items():
            began = time.perf_counter()
            for action in block:
                step(action)
            if number > 0:  # the first one warms up
                seconds[name].append((time.perf_counter() - began) / (_BLOCK * vector.num_envs))
    figures |= {f"{name}_s": float(np.median(times)) for name, times in seconds.items()}
    figures["class_over_metaworld"] = figures["class_s"] / figures["metaworld_s"]
    if "compiled" in backends:
        figures["class_over_compiled"] = figures["class_s"] / figures["compiled_s"]
        figures["compiled_over_physics"] = figures["compiled_s"] / figures["physics_s"]
    return figures


def _recorded(benchmark: str, source: str, num_steps: int) -> Actions:
    """Returns the actions [step, env, 4] of a source in environments of their own, so that it is not timed."""
    vector = envs.make(benchmark)
    act = [
        actions_from(source, task, np.random.default_rng([0, number]))
        for number, task in enumerate(get_benchmark(benchmark).train_tasks)
    ]
    obs, _ = vector.reset(seed=0)
    recorded = []
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # metaworld's policies warn of their own numbers
        for _ in range(num_steps):
            recorded.append(np.array([choose(row) for choose, row in zip(act, obs, strict=True)], np.float32))
            obs, *_ = vector.step(recorded[-1])
    vector.close()
    return np.array(recorded)


def _built(benchmark: str, backend: str) -> tuple[Any, float, float]:
    began = time.perf_counter()
    vector = envs.make(benchmark, backend=backend)
    vector.reset(seed=0)
    build_s = time.perf_counter() - began
    vector.assign([Assignment(task, (0,)) for task in range(vector.num_tasks)])
    vector.reset(seed=0)
    began = time.perf_counter()
    for _ in range(10):
        vector.reset()
    return vector, build_s, (time.perf_counter() - began) / (10 * vector.num_envs)


def _bare_physics(benchmark: str) -> Callable[[Actions], object]:
    from envs.compiled.simulator import CompiledSimulator  # only where it can be used

    chosen = get_benchmark(benchmark)
    tasks = chosen.train_tasks
    simulator = CompiledSimulator(tasks, goals_for(chosen, "train", 1, 1), goal_visible=True)
    simulator.assign(np.arange(len(tasks), dtype=np.int32))
    for task in range(len(tasks)):
        simulator.restart(task, 0)
    return simulator.physics


def _classes(benchmark: str) -> Callable[[Actions], object]:
    """Returns the step of metaworld's classes as they are, without a time limit."""
    made = [plain_task(name) for name in get_benchmark(benchmark).train_tasks]

    def step(actions: Actions) -> None:
        for task, action in zip(made, actions, strict=True):
            task.curr_path_length = 0  # no time limit here
            task.step(action)

    return step

"""How long environments take: metaworld's own classes, our two backends, EnvPool, and the physics that none can avoid.

All variants take the same actions and run in turn, some steps each, so that what else the machine does hits all alike.
"""

from __future__ import annotations

import time
import warnings
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

import envs
from envs.benchmarks import get_benchmark
from envs.episodes import Assignment
from envs.making import choose_backend
from envs.parity import actions_from
from envs.task_objects import plain_task
from envs.vector import TaskVectorEnv
from mtrl.bench.envpool_process import EnvPoolProcess

Actions = NDArray[np.float32]
Timer = Callable[[int], float]
"""From the number of a block to the seconds that a variant took for its steps."""
_BLOCK = 10  # steps that one variant makes before the next has its turn
_THREADS = 2


def bench_envs(
    benchmark: str, source: str = "uniform", num_steps: int = 300, envpool: Path | None = None
) -> dict[str, float]:
    """Steps one environment per task, all variants in turn with the same actions.

    Args:
        benchmark: Its training tasks are stepped.
        source: Of the actions, one of `envs.parity.SOURCES`.
        num_steps: Steps of each environment.
        envpool: A Python that has EnvPool, if it is to be compared with.

    Returns:
        For each backend `*_build_s`, until the first observation, `*_reset_s`, one reset to a stored state, and `*_s`,
        one environment step; `class_s`, a step of metaworld's classes as they are; `physics_s`, that of the bare
        physics; `compiled_2_threads_s`; `envpool_s`; and ratios of these.
    """
    figures: dict[str, float] = {}
    tasks = get_benchmark(benchmark).train_tasks
    blocks = _recorded(benchmark, source, num_steps).reshape(-1, _BLOCK, len(tasks), 4)
    variants: dict[str, Timer] = {}
    for backend in _backends(tasks):
        vector, figures[f"{backend}_build_s"], figures[f"{backend}_reset_s"] = _built(benchmark, backend)
        variants[backend] = _timer(vector.step, blocks)
    if "compiled" in variants:
        variants["physics"] = _timer(_bare_physics(vector), blocks)
        shared = envs.make(benchmark, backend="compiled", num_threads=_THREADS)
        _begin(shared)
        variants[f"compiled_{_THREADS}_threads"] = _timer(shared.step, blocks)
    variants["class"] = _timer(_classes(tasks), blocks)
    pools = None if envpool is None else EnvPoolProcess(envpool, tasks, 1, blocks.reshape(-1, len(tasks), 4))
    if pools is not None:
        variants["envpool"] = lambda block: pools.seconds(block * _BLOCK, _BLOCK)
    figures |= _take_turns(variants, len(blocks), _BLOCK * len(tasks))
    if pools is not None:
        pools.close()
    return figures | _ratios(figures)


def bench_tasks(num_steps: int = 60, copies: int = 10, envpool: Path | None = None) -> dict[str, dict[str, float]]:
    """Steps every task by itself with uniformly random actions, all variants in turn.

    Args:
        num_steps: Steps of each environment.
        copies: Environments of the task; of metaworld's class there is one.
        envpool: A Python that has EnvPool, if it is to be compared with.

    Returns:
        Task → seconds of one environment step and ratios, named as those of `bench_envs`.
    """
    found = {}
    draws = np.random.default_rng(0)
    for task in get_benchmark("MT50").train_tasks:
        blocks = draws.uniform(-1.0, 1.0, (num_steps // _BLOCK, _BLOCK, copies, 4)).astype(np.float32)
        variants: dict[str, Timer] = {}
        for backend in _backends([task]):
            vector = envs.make("MT1", tasks=[task], copies=copies, backend=backend)
            _begin(vector)
            variants[backend] = _timer(vector.step, blocks)
        if "compiled" in variants:
            variants["physics"] = _timer(_bare_physics(vector), blocks)
        alone = _timer(_classes([task]), blocks[:, :, :1])
        variants["class"] = lambda block, alone=alone: copies * alone(block)  # type: ignore[misc] # bound early
        pools = None if envpool is None else EnvPoolProcess(envpool, [task], copies, blocks.reshape(-1, copies, 4))
        if pools is not None:
            variants["envpool"] = lambda block, pools=pools: pools.seconds(block * _BLOCK, _BLOCK)  # type: ignore[misc]
        figures = _take_turns(variants, len(blocks), _BLOCK * copies)
        if pools is not None:
            pools.close()
        found[task] = figures | _ratios(figures)
    return found


def _backends(tasks: Sequence[str]) -> list[str]:
    return ["metaworld", "compiled"] if choose_backend(tasks, "v2", "auto") == "compiled" else ["metaworld"]


def _timer(step: Callable[[Actions], object], blocks: Actions) -> Timer:
    """Returns what makes the steps of a block of actions [block, step, env, 4]."""

    def seconds(number: int) -> float:
        began = time.perf_counter()
        for action in blocks[number]:
            step(action)
        return time.perf_counter() - began

    return seconds


def _take_turns(variants: Mapping[str, Timer], num_blocks: int, steps_per_block: int) -> dict[str, float]:
    """Returns the median seconds of an environment step of each variant."""
    seconds: dict[str, list[float]] = {name: [] for name in variants}
    for block in range(num_blocks):
        for name, timer in variants.items():
            seconds[name].append(timer(block) / steps_per_block)
    return {f"{name}_s": float(np.median(times[1:])) for name, times in seconds.items()}  # the first block warms up


def _ratios(figures: Mapping[str, float]) -> dict[str, float]:
    if "compiled_s" not in figures:
        return {"class_over_metaworld": figures["class_s"] / figures["metaworld_s"]}
    compiled = figures["compiled_s"]
    ratios = {
        "class_over_compiled": figures["class_s"] / compiled,
        "compiled_over_physics": compiled / figures["physics_s"],
    }
    for name, seconds in figures.items():
        if name == "envpool_s":
            ratios["envpool_over_compiled"] = seconds / compiled
        if name.endswith("_threads_s"):
            ratios[f"compiled_over_{name.removesuffix('_s')}"] = compiled / seconds
    return ratios


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


def _built(benchmark: str, backend: str) -> tuple[TaskVectorEnv, float, float]:
    began = time.perf_counter()
    vector = envs.make(benchmark, backend=backend)
    vector.reset(seed=0)
    build_s = time.perf_counter() - began
    _begin(vector)
    began = time.perf_counter()
    for _ in range(10):
        vector.reset()
    return vector, build_s, (time.perf_counter() - began) / (10 * vector.num_envs)


def _begin(vector: TaskVectorEnv) -> None:
    """Begins an episode with goal 0 in every environment."""
    vector.assign([Assignment(int(task), (0,)) for task in vector.task_id])
    vector.reset(seed=0)


def _bare_physics(vector: TaskVectorEnv) -> Callable[[Actions], object]:
    """Returns a step of the same environments' physics alone, in episodes that began as `_begin` begins them."""
    from envs.compiled.simulator import CompiledSimulator  # only where it can be used

    simulator = CompiledSimulator(vector.task_names, vector.goals, goal_visible=True)
    simulator.assign(vector.task_id)
    for env in range(vector.num_envs):
        simulator.restart(env, 0)
    return simulator.physics


def _classes(tasks: Sequence[str]) -> Callable[[Actions], object]:
    """Returns the step of metaworld's classes as they are, without a time limit."""
    made = [plain_task(name) for name in tasks]

    def step(actions: Actions) -> None:
        for task, action in zip(made, actions, strict=True):
            task.curr_path_length = 0  # no time limit here
            task.step(action)

    return step

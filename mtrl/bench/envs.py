"""How long environments take: metaworld's own classes, our two backends, EnvPool, and the physics that none can avoid.

All variants take the same actions and run in turn, some steps each, so that what else the machine does hits all alike.
"""

from __future__ import annotations

import subprocess
import sys
import time
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, closing, contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

import envs
from envs.benchmarks import get_benchmark
from envs.episodes import Assignment
from envs.making import choose_backend
from envs.parity import actions_from
from envs.task_objects import plain_task
from envs.vector import TaskVectorEnv
from mtrl.bench.envpool_process import envpool_timer

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
        num_steps: Steps of each environment, at least 20; those beyond a multiple of 10 are left out.
        envpool: A Python that has EnvPool, if it is to be compared with.

    Returns:
        For each backend `*_build_s`, from the start of a new Python until the first observation, and `*_reset_s`, one
        reset to a stored state; `*_s`, one environment step, of the backends, of metaworld's classes as they are, of
        the bare physics, of two threads, and of EnvPool; ratios of these.
    """
    figures: dict[str, float] = {}
    tasks = get_benchmark(benchmark).train_tasks
    blocks = _in_blocks(_recorded(benchmark, source, num_steps))
    variants: dict[str, Timer] = {}
    with ExitStack() as opened:
        for backend in _backends(tasks):
            figures[f"{backend}_build_s"] = _build_s(benchmark, backend)
            vector = opened.enter_context(_begun(benchmark, backend=backend))
            figures[f"{backend}_reset_s"] = _reset_s(vector)
            variants[backend] = _timer(vector.step, blocks)
        if "compiled" in variants:
            variants["physics"] = _timer(opened.enter_context(_bare_physics(vector)), blocks)
            shared = opened.enter_context(_begun(benchmark, backend="compiled", num_threads=_THREADS))
            variants[f"compiled_{_THREADS}_threads"] = _timer(shared.step, blocks)
        variants["class"] = _timer(_classes(tasks), blocks)
        if envpool is not None:
            variants["envpool"] = opened.enter_context(envpool_timer(envpool, tasks, 1, blocks))
        figures |= _take_turns(variants, len(blocks), _BLOCK * len(tasks))
    return figures | _ratios(figures)


def bench_tasks(num_steps: int = 60, copies: int = 10, envpool: Path | None = None) -> dict[str, dict[str, float]]:
    """Steps every task by itself with uniformly random actions, all variants in turn.

    Args:
        num_steps: Steps of each environment, as for `bench_envs`.
        copies: Environments of the task; of metaworld's class there is one.
        envpool: A Python that has EnvPool, if it is to be compared with.

    Returns:
        Task → seconds of one environment step and ratios, named as those of `bench_envs`.
    """
    draws = np.random.default_rng(0)
    found = {}
    for task in get_benchmark("MT50").train_tasks:
        blocks = _in_blocks(draws.uniform(-1.0, 1.0, (num_steps, copies, 4)).astype(np.float32))
        with ExitStack() as opened:
            alone = _timer(_classes([task]), blocks[:, :, :1])
            variants: dict[str, Timer] = {"class": partial(_times, copies, alone)}
            if "compiled" in _backends([task]):
                vector = opened.enter_context(_begun("MT1", tasks=[task], copies=copies, backend="compiled"))
                variants["compiled"] = _timer(vector.step, blocks)
                variants["physics"] = _timer(opened.enter_context(_bare_physics(vector)), blocks)
            if envpool is not None:
                variants["envpool"] = opened.enter_context(envpool_timer(envpool, [task], copies, blocks))
            figures = _take_turns(variants, len(blocks), _BLOCK * copies)
        found[task] = figures | _ratios(figures)
    return found


def _in_blocks(actions: Actions) -> Actions:
    """Returns actions [step, env, 4] as [block, step, env, 4]."""
    num_blocks = len(actions) // _BLOCK
    return actions[: num_blocks * _BLOCK].reshape(num_blocks, _BLOCK, *actions.shape[1:])


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


def _times(factor: int, timer: Timer, block: int) -> float:
    return factor * timer(block)


def _take_turns(variants: Mapping[str, Timer], num_blocks: int, steps_per_block: int) -> dict[str, float]:
    """Returns the median seconds of an environment step of each variant; the first block warms up."""
    seconds: dict[str, list[float]] = {name: [] for name in variants}
    for block in range(num_blocks):
        for name, timer in variants.items():
            seconds[name].append(timer(block) / steps_per_block)
    return {f"{name}_s": float(np.median(times[1:])) for name, times in seconds.items()}


def _ratios(figures: Mapping[str, float]) -> dict[str, float]:
    """Returns those of the ratios that the figures allow."""
    wanted = {
        "class_over_metaworld": ("class_s", "metaworld_s"),
        "class_over_compiled": ("class_s", "compiled_s"),
        "compiled_over_physics": ("compiled_s", "physics_s"),
        "envpool_over_compiled": ("envpool_s", "compiled_s"),
        f"compiled_over_{_THREADS}_threads": ("compiled_s", f"compiled_{_THREADS}_threads_s"),
    }
    return {
        name: figures[above] / figures[below]
        for name, (above, below) in wanted.items()
        if above in figures and below in figures
    }


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


def _build_s(benchmark: str, backend: str) -> float:
    """Returns how long a new Python takes until the first observation, imports included."""
    code = (
        "import time; began = time.perf_counter(); import sys, envs; "
        "envs.make(sys.argv[1], backend=sys.argv[2]).reset(seed=0); print(time.perf_counter() - began)"
    )
    command = [sys.executable, "-c", code, benchmark, backend]
    return float(subprocess.run(command, capture_output=True, text=True, check=True).stdout)


def _reset_s(vector: TaskVectorEnv) -> float:
    began = time.perf_counter()
    for _ in range(10):
        vector.reset()
    return (time.perf_counter() - began) / (10 * vector.num_envs)


@contextmanager
def _begun(benchmark: str, **keywords: Any) -> Iterator[TaskVectorEnv]:
    """Gives environments at the start of an episode with goal 0 in each."""
    vector = envs.make(benchmark, **keywords)
    vector.assign([Assignment(int(task), (0,)) for task in vector.task_id])
    vector.reset(seed=0)
    with closing(vector):
        yield vector


@contextmanager
def _bare_physics(vector: TaskVectorEnv) -> Iterator[Callable[[Actions], object]]:
    """Gives a step of the same environments' physics alone, in episodes that begin as those of `_begun` do."""
    from envs.compiled.simulator import CompiledSimulator  # only where it can be used

    simulator = CompiledSimulator(vector.task_names, vector.goals, goal_visible=True)
    simulator.assign(vector.task_id)
    for env in range(vector.num_envs):
        simulator.restart(env, 0)
    with closing(simulator):
        yield simulator.physics


def _classes(tasks: Sequence[str]) -> Callable[[Actions], object]:
    """Returns the step of metaworld's classes as they are, without a time limit."""
    made = [plain_task(name) for name in tasks]

    def step(actions: Actions) -> None:
        for task, action in zip(made, actions, strict=True):
            task.curr_path_length = 0  # no time limit here
            task.step(action)

    return step

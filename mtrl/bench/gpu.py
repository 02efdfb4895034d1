"""Updates on a GPU: operation by operation against CUDA graphs, plain against PCGrad.

Without a GPU the same is rehearsed on the CPU with small networks, where all updates are eager.
"""

from __future__ import annotations

import gc
import time
from collections.abc import Callable

import numpy as np
import torch

from mtrl.bench.filled import filled_learner
from mtrl.config import LearnerConfig, NetworkConfig, ReplayConfig, RunConfig, SacConfig, SurgeryConfig
from mtrl.data import Metrics
from mtrl.learners.mtsac import MultiTaskSac

_SIZES = ((10, 400), (10, 1024), (50, 400), (50, 1024))
"""Tasks and width of three layers."""
_REHEARSED = ((3, 16), (4, 16))
_UPDATES_PER_GRAPH = 8


def bench_gpu() -> dict[str, dict[str, float]]:
    """Returns the figures of all sizes, and whether graphs give the numbers of single operations."""
    if not torch.cuda.is_available():
        return {
            f"rehearsal, {tasks} tasks, 3x{width}": _figures(tasks, width, 8, repeats=1) for tasks, width in _REHEARSED
        }
    return {
        f"gpu, MT{tasks}, 3x{width}, {tasks}x128": _figures(tasks, width, 200, repeats=5) for tasks, width in _SIZES
    }


def _figures(num_tasks: int, width: int, num_updates: int, repeats: int) -> dict[str, float]:
    return {**bench_size(num_tasks, width, num_updates, repeats), **compare(num_tasks, width, num_updates=100)}


def bench_size(num_tasks: int, width: int, num_updates: int, repeats: int) -> dict[str, float]:
    """Times updates in all ways in turn.

    Args:
        num_tasks: Tasks, with 128 transitions of each.
        width: Of three hidden layers.
        num_updates: Updates that are timed together, a multiple of those of a graph.
        repeats: Times that each way has its turn.

    Returns:
        Updates per second, medians: `{eager,graph}_{plain,pcgrad}_per_s`, `graph_pcgrad_tf32_per_s`; `graph_speedup`,
        how many times faster graphs are with PCGrad; `pcgrad_over_plain`, seconds over seconds, with graphs;
        `gpu_memory_bytes` of all five learners.

    Raises:
        RuntimeError: If there is a GPU, and graphs cannot be recorded.
    """
    if torch.cuda.is_available():  # what was before must not count
        gc.collect()
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()
    ways = {
        f"{compile_}_{name}": _learner(num_tasks, width, method, compile_)
        for compile_ in ("eager", "graph")
        for name, method in (("plain", "mean"), ("pcgrad", "pcgrad"))
    }
    graphs = torch.cuda.is_available()
    runs: dict[str, Callable[[], None]] = {
        name: _runner(learner, num_updates, in_graphs=graphs and name.startswith("graph"))
        for name, learner in ways.items()
    }
    rounded = _learner(num_tasks, width, "pcgrad", "graph")
    runs["graph_pcgrad_tf32"] = _rounded(_runner(rounded, num_updates, in_graphs=graphs))
    speeds: dict[str, list[float]] = {name: [] for name in runs}
    for repeat in range(repeats + 1):
        for name, run in runs.items():
            began = time.perf_counter()
            run()
            if repeat:  # the first one warms up and records graphs
                speeds[name].append(num_updates / (time.perf_counter() - began))
    found = {f"{name}_per_s": float(np.median(values)) for name, values in speeds.items()}
    found["graph_speedup"] = found["graph_pcgrad_per_s"] / found["eager_pcgrad_per_s"]
    found["pcgrad_over_plain"] = found["graph_plain_per_s"] / found["graph_pcgrad_per_s"]
    if torch.cuda.is_available():
        found["gpu_memory_bytes"] = float(torch.cuda.max_memory_reserved())
    return found


def compare(num_tasks: int, width: int, num_updates: int) -> dict[str, float]:
    """Makes the same updates operation by operation and with graphs.

    Returns:
        `largest_difference` of any number in networks and optimizers, 0 if they are equal bit for bit; `graphs`, the
        share of the updates that graphs made.
    """
    eager, graphed = (_learner(num_tasks, width, "pcgrad", compile_) for compile_ in ("eager", "graph"))
    in_graphs = 0
    for learner in (eager, graphed):
        while learner.gradient_steps < num_updates:
            metrics = _updated(learner)
            in_graphs += metrics.num_updates if metrics.num_updates > 1 else 0
    while eager.gradient_steps < graphed.gradient_steps:  # the last graph went beyond
        _updated(eager)
    pairs = zip(_tensors(eager), _tensors(graphed), strict=True)
    differences = [(a.double() - b.double()).abs().max().cpu() for a, b in pairs]
    return {
        "largest_difference": float(torch.stack(differences).max()),  # NaN if any is
        "graphs": in_graphs / graphed.gradient_steps,
    }


def _learner(num_tasks: int, width: int, method: str, compile_: str) -> MultiTaskSac:
    widths = (width,) * 3
    config = RunConfig(
        device="auto",
        network=NetworkConfig(actor_widths=widths, critic_widths=widths),
        sac=SacConfig(batch_size=128),
        surgery=SurgeryConfig(method=method),
        replay=ReplayConfig(device="auto"),
        learner=LearnerConfig(
            compile=compile_ if torch.cuda.is_available() else "eager", updates_per_graph=_UPDATES_PER_GRAPH
        ),
    )
    return filled_learner(config, num_tasks)


def _runner(learner: MultiTaskSac, num_updates: int, *, in_graphs: bool) -> Callable[[], None]:
    def run() -> None:
        until = learner.gradient_steps + num_updates
        while learner.gradient_steps < until:
            metrics = _updated(learner)
        if in_graphs and metrics.num_updates == 1:
            raise RuntimeError("graphs cannot be recorded here, so they cannot be timed; a line above says why")
        if torch.cuda.is_available():
            torch.cuda.synchronize()

    return run


def _updated(learner: MultiTaskSac) -> Metrics:
    metrics = learner.update()
    assert metrics is not None, "updates are due for ever"
    return metrics


def _rounded(run: Callable[[], None]) -> Callable[[], None]:
    """Lets matrix products round as learner.tf32 does."""

    def rounded() -> None:
        before = torch.get_float32_matmul_precision()
        torch.set_float32_matmul_precision("high")
        try:
            run()
        finally:
            torch.set_float32_matmul_precision(before)

    return rounded


def _tensors(learner: MultiTaskSac) -> list[torch.Tensor]:
    state = learner.state_dict()
    optimizers = [state[name] for name in ("actor_optimizer", "critic_optimizer", "alpha_optimizer")]
    kept = [tensor for optimizer in optimizers for own in optimizer.values() for tensor in own.values()]
    networks = [tensor for name in ("actor", "critics", "target_critics") for tensor in state[name].values()]
    return [*networks, *kept, state["log_alpha"]]

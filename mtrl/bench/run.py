"""`mtrl bench`: measurements of this machine, printed as a table and written as JSON."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from rich.console import Console
from rich.table import Table

from mtrl.bench.checkpoint import bench_row
from mtrl.bench.envs import bench_envs, bench_tasks
from mtrl.bench.gpu import bench_gpu
from mtrl.bench.loop import bench_loops
from mtrl.bench.meta import bench_iterations
from mtrl.bench.overlap import bench_overlaps
from mtrl.bench.training import bench_trainings
from mtrl.bench.update import bench_updates
from mtrl.bench.workers import bench_workers
from mtrl.config import ConfigError, RunConfig
from mtrl.runlog import versions

Figures = dict[str, dict[str, float]]
"""Measurement → name of the figure → value."""
_TASK_COLUMNS = {
    "class_s": "class",
    "compiled_s": "compiled",
    "physics_s": "physics",
    "envpool_s": "EnvPool",
    "class_over_compiled": "speed-up",
    "compiled_over_physics": "/physics",
}


@dataclass(frozen=True)
class BenchOptions:
    """What some benches need to know."""

    envpool: Path | None
    """A Python that has EnvPool, if environments are to be compared with it."""
    folder: Path
    """Where a bench that measures the disk may write for a while."""


def _update(options: BenchOptions) -> Figures:
    return bench_updates()


def _envs(options: BenchOptions) -> Figures:
    return {
        f"environments, {benchmark}, {source} actions": bench_envs(benchmark, source, envpool=options.envpool)
        for benchmark in ("MT10", "MT50")
        for source in ("uniform", "expert")
    }


def _tasks(options: BenchOptions) -> Figures:
    return bench_tasks(envpool=options.envpool)


def _loop(options: BenchOptions) -> Figures:
    return bench_loops()


def _training(options: BenchOptions) -> Figures:
    return bench_trainings()


def _overlap(options: BenchOptions) -> Figures:
    return bench_overlaps()


def _gpu(options: BenchOptions) -> Figures:
    return bench_gpu()


def _workers(options: BenchOptions) -> Figures:
    return bench_workers()


def _meta(options: BenchOptions) -> Figures:
    return bench_iterations()


def _checkpoint(options: BenchOptions) -> Figures:
    return bench_row(options.folder)


BENCHES: dict[str, Callable[[BenchOptions], Figures]] = {
    "update": _update,
    "envs": _envs,
    "tasks": _tasks,
    "loop": _loop,
    "training": _training,
    "workers": _workers,
    "overlap": _overlap,
    "gpu": _gpu,
    "meta": _meta,
    "checkpoint": _checkpoint,
}
# overlap comes last of all, as torch's threads that begin in it keep to its cores
# the first needs a GPU; the others ask for gigabytes of memory, or disk, for want of which the others' figures must not
# be lost, and measure the process's memory, to which what other benches left behind would be added
_LEFT_OUT_OF_ALL = ("gpu", "meta", "checkpoint")


def run_benches(what: str, out: Path | None, envpool: Path | None = None) -> None:
    """Runs one bench or all, prints the figures and writes them to `out`.

    Args:
        what: One of `BENCHES`, or all, which leaves out gpu, meta and checkpoint.
        out: A JSON file, if one is wanted; checkpoint measures the disk that it is on, else that of the current folder.
        envpool: A Python that has EnvPool, if environments are to be compared with it.

    Raises:
        ConfigError: If there is no such bench, no EnvPool, or too little space on the disk.
    """
    if what not in (*BENCHES, "all"):
        raise ConfigError("bench", f"{what} is not one of {', '.join(BENCHES)}, all")
    if out is not None:
        out.parent.mkdir(parents=True, exist_ok=True)
    options = BenchOptions(envpool, folder=Path() if out is None else out.parent)
    found: Figures = {}
    console = Console(highlight=False)
    for name in [name for name in BENCHES if name not in _LEFT_OUT_OF_ALL] if what == "all" else [what]:
        figures = BENCHES[name](options)
        console.print(_by_task(figures) if name == "tasks" else _one_by_one(figures))
        found |= figures
    if out is not None:
        out.write_text(json.dumps({"machine": versions(RunConfig()), "figures": found}, indent=1) + "\n")


def _one_by_one(found: Figures) -> Table:
    table = Table("measurement", "figure", "value", box=None, pad_edge=False)
    for title, figures in found.items():
        for figure, value in figures.items():
            shown = f"{value / 1e6:,.1f} MB" if figure.endswith("_bytes") else f"{value:,.4g}"
            table.add_row(title, figure, shown)
    return table


def _by_task(found: Figures) -> Table:
    """Returns a row per task: microseconds of one environment step, and ratios."""
    columns = [name for name in _TASK_COLUMNS if any(name in figures for figures in found.values())]
    table = Table(box=None, pad_edge=False, collapse_padding=True)
    table.caption = "µs of an environment step, uniform actions; speed-up: class / compiled; /physics: compiled"
    table.add_column("task")
    for name in columns:
        table.add_column(_TASK_COLUMNS[name], justify="right")
    for task, figures in found.items():
        table.add_row(task, *(_cell(name, figures) for name in columns))
    return table


def _cell(name: str, figures: dict[str, float]) -> str:
    if name not in figures:
        return "–"
    return f"{1e6 * figures[name]:.0f}" if name.endswith("_s") else f"{figures[name]:.2f}"

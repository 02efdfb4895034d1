"""`mtrl bench`: measurements of this machine, printed as a table and written as JSON."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

from rich.console import Console
from rich.table import Table

from mtrl.bench.envs import bench_envs
from mtrl.bench.update import UpdateBench, bench_update
from mtrl.config import ConfigError, RunConfig
from mtrl.runlog import versions


def _update() -> dict[str, dict[str, float]]:
    return {"update, MT10, 3x400, 10x128": bench_update(UpdateBench())}


def _envs() -> dict[str, dict[str, float]]:
    return {
        f"environments, {benchmark}, {source} actions": bench_envs(benchmark, source)
        for benchmark in ("MT10", "MT50")
        for source in ("uniform", "expert")
    }


BENCHES: dict[str, Callable[[], dict[str, dict[str, float]]]] = {"update": _update, "envs": _envs}


def run_benches(what: str, out: Path | None) -> None:
    """Runs one bench or all, prints the figures and writes them to `out`.

    Raises:
        ConfigError: If there is no such bench.
    """
    if what not in (*BENCHES, "all"):
        raise ConfigError("bench", f"{what} is not one of {', '.join(BENCHES)}, all")
    found: dict[str, dict[str, float]] = {}
    for name, bench in BENCHES.items():
        if what in (name, "all"):
            found |= bench()
    table = Table("measurement", "figure", "value", box=None, pad_edge=False)
    for title, figures in found.items():
        for figure, value in figures.items():
            table.add_row(title, figure, f"{value:,.4g}")
    Console(highlight=False).print(table)
    if out is not None:
        out.write_text(json.dumps({"machine": versions(RunConfig()), "figures": found}, indent=1))

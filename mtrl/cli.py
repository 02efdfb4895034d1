"""The command line: each verb is one call. The only file that prints to the terminal or sets an exit code."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console

from mtrl.config import ConfigError, RunConfig

if TYPE_CHECKING:
    from mtrl.train import Ended

app = typer.Typer(
    name="mtrl",
    help="Multi-task and meta reinforcement learning on Meta-World.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)

Overrides = Annotated[
    list[str] | None, typer.Argument(metavar="[KEY=VALUE]...", help="Settings that replace the file's.")
]
Config = Annotated[Path, typer.Argument(metavar="CONFIG", help="A YAML file, as in configs/.")]
Run = Annotated[Path, typer.Argument(metavar="RUN", help="A run directory.")]


@app.command()
def train(
    config: Config,
    overrides: Overrides = None,
    seeds: Annotated[str | None, typer.Option(help="Seeds to run one after the other: 1-5 or 1,3,7.")] = None,
    engine: Annotated[str | None, typer.Option(help="local or rllib; the same as engine=...")] = None,
) -> None:
    """Train a configuration."""
    from mtrl import train as training  # torch takes seconds to import, and `mtrl --help` needs none of it

    settings = [*(overrides or []), *([f"engine={engine}"] if engine else [])]
    chosen = [*parse_seeds(seeds)] if seeds else [None]
    configs = [_load(config, settings if seed is None else [*settings, f"seed={seed}"]) for seed in chosen]
    for loaded in configs:
        with _display(loaded) as display:
            ended = training.train(loaded, display)
        _conclude(ended)


@app.command()
def resume(run: Run, overrides: Overrides = None) -> None:
    """Go on with a run from its newest good checkpoint."""
    from mtrl import train as training  # as above

    config = training.resumed_config(run, overrides or [])
    with _display(config) as display:
        ended = training.resume(run, overrides or [], display)
    _conclude(ended)


@app.command()
def evaluate(
    run: Run,
    episodes: Annotated[
        int | None, typer.Option(help="Goals per task, each once; the run's eval.final_goals if empty.")
    ] = None,
) -> None:
    """Evaluate the newest good checkpoint of a run."""
    from mtrl import train as training  # as above

    config = training.resumed_config(run, [])
    with _display(config) as display:
        training.evaluate(run, episodes, display)
    _print_table([run])


@app.command()
def checkpoints(run: Run) -> None:
    """List the checkpoints of a run: size, state, and the success last measured before each."""
    from rich.table import Table  # as above

    from mtrl import train as training  # as above
    from mtrl.checkpoint import describe_checkpoints  # as above
    from mtrl.report.runs import success_by_steps  # as above

    training.resumed_config(run, [])  # refuses what is no run
    success = success_by_steps(run)
    table = Table(box=None, pad_edge=False)
    for heading in ("env steps", "success", "size", "with replay", "state"):
        table.add_column(heading, justify="left" if heading == "state" else "right")
    for found in describe_checkpoints(run):
        measured = [rate for env_steps, rate in success if env_steps <= found.env_steps]
        table.add_row(
            f"{found.env_steps:,}",
            f"{measured[-1]:.3f}" if measured else "–",
            f"{found.num_bytes / 1e6:,.1f} MB",
            f"{(found.num_bytes + found.replay_bytes) / 1e6:,.1f} MB",
            "whole" if found.damage is None else found.damage,
        )
    Console(highlight=False, soft_wrap=True).print(table)


@app.command()
def show(config: Config, overrides: Overrides = None) -> None:
    """Print every setting of a configuration: value, where it comes from, what it means."""
    from rich.table import Table  # only this verb draws such a table
    from rich.text import Text  # as above

    from mtrl.config_io import describe, load_with_sources  # as above
    from mtrl.config_keys import shown  # as above
    from mtrl.rollout.build import task_names  # as above

    loaded, sources = load_with_sources(config, overrides or [])
    task_names(loaded)  # refuses what is not known
    table = Table("setting", "value", "from", "meaning", box=None, pad_edge=False)
    for row in describe(loaded, sources):
        table.add_row(*(Text(cell) for cell in (row.key, shown(row.value), row.source, row.sentence)))
    Console(highlight=False).print(table)


@app.command(name="list")
def list_known(
    what: Annotated[str, typer.Argument(help="benchmarks, tasks, algorithms or configs.")] = "benchmarks",
) -> None:
    """List what there is."""
    lines = {
        "benchmarks": _benchmarks,
        "tasks": _tasks,
        "algorithms": _algorithms,
        "configs": _configs,
    }
    if what not in lines:
        raise ConfigError("list", f"{what} is not one of {', '.join(lines)}")
    Console(highlight=False, soft_wrap=True).print("\n".join(lines[what]()), markup=False)


@app.command()
def report(
    runs: Annotated[list[Path], typer.Argument(metavar="RUN...", help="Run directories.")],
    out: Annotated[Path, typer.Option(help="Folder for table, curves and text.")] = Path("report"),
) -> None:
    """Write table and curves of runs as Markdown, CSV and PNG."""
    from mtrl.report.write import write_report  # matplotlib takes a second to import

    _print_table(runs)
    for path in write_report(runs, out):
        Console(highlight=False, soft_wrap=True).print(str(path), markup=False)


@app.command()
def bench(
    what: Annotated[
        str,
        typer.Argument(
            help="update, envs, tasks, loop, training, workers, overlap, gpu, meta, checkpoint, or all but the last "
            "three."
        ),
    ] = "all",
    out: Annotated[
        Path | None, typer.Option(help="Write the figures to this JSON file too; checkpoint measures its disk.")
    ] = None,
    envpool: Annotated[
        Path | None, typer.Option(help="A Python with EnvPool; environments are compared with it.")
    ] = None,
) -> None:
    """Measure how fast the parts are on this machine."""
    from mtrl.bench.run import run_benches  # as above

    run_benches(what, out, envpool)


def main() -> None:
    """Runs the command line; mistakes of the user end in one line and exit code 2."""
    try:
        # without its standalone mode, typer hands back the code of typer.Exit
        sys.exit(app(standalone_mode=False) or 0)
    except (ValueError, RuntimeError, OSError) as error:
        if not _is_users(error):
            raise
        _fail(str(error))
    except KeyboardInterrupt:
        sys.exit(130)
    except Exception as error:
        # click's own complaints (unknown option, missing argument) carry a message for the user
        if not hasattr(error, "format_message"):
            raise
        _fail(error.format_message())


def parse_seeds(text: str) -> list[int]:
    """Returns the seeds of `1-5` or `1,3,7`.

    Raises:
        ConfigError: If the text is neither.
    """
    try:
        if "-" in text:
            first, last = (int(part) for part in text.split("-"))
            seeds = list(range(first, last + 1))
        else:
            seeds = [int(part) for part in text.split(",")]
    except ValueError as error:
        raise ConfigError("--seeds", f"{text!r} is neither a range as 1-5 nor a list as 1,3,7") from error
    if not seeds:
        raise ConfigError("--seeds", f"{text!r} is an empty range; give the lower seed first")
    return seeds


def _load(path: Path, overrides: list[str]) -> RunConfig:
    from mtrl.config_io import load_config  # as above

    return load_config(path, overrides)


def _display(config: RunConfig) -> Any:
    from mtrl.display import ConsoleDisplay  # as above

    return ConsoleDisplay(config.total_env_steps)


def _print_table(runs: list[Path]) -> None:
    from mtrl.report.results import load_results  # as above
    from mtrl.report.table import tables  # as above

    # where nobody's window sets the width, as in a file, no column needs to be cut
    Console(highlight=False, width=None if sys.stdout.isatty() else 160).print(tables(load_results(runs)).to_rich())


def _conclude(ended: Ended) -> None:
    """Prints the table of a run that came to its end; one stopped by a signal ends the command, all seeds included."""
    if ended.stopped_by is not None:
        raise typer.Exit(128 + ended.stopped_by)
    _print_table([ended.run])


def _is_users(error: Exception) -> bool:
    from mtrl.checkpoint import CheckpointError  # as above
    from mtrl.engine.progress import WorkersLostError  # as above
    from mtrl.learners.mtsac import NonFiniteError  # as above

    if isinstance(error, OSError):
        return error.filename is not None  # a file or folder that cannot be used, named in the text
    told = ConfigError | CheckpointError | NonFiniteError | WorkersLostError
    return isinstance(error, told) or type(error) is ValueError


def _fail(text: str) -> None:
    Console(stderr=True, highlight=False, soft_wrap=True).print(f"mtrl: {' '.join(text.split())}", markup=False)
    sys.exit(2)


def _benchmarks() -> list[str]:
    from envs.benchmarks import BENCHMARKS  # as above

    return [
        f"{name:8} {len(b.train_tasks):3} training tasks, {len(b.test_tasks):2} test tasks"
        for name, b in BENCHMARKS.items()
    ]


def _tasks() -> list[str]:
    from envs.benchmarks import ALL_TASKS  # as above

    return list(ALL_TASKS)


def _algorithms() -> list[str]:
    from mtrl.config import ALGORITHMS  # as above

    return list(ALGORITHMS)


def _configs() -> list[str]:
    return [str(path) for path in sorted(Path("configs").rglob("*.yaml"))]

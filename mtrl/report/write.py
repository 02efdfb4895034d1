"""`mtrl report`: runs to a folder with tables, pictures and a page that says how the numbers were made."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from mtrl.config import META_ALGORITHMS
from mtrl.report import plots
from mtrl.report.published import Published, published
from mtrl.report.results import Result, load_results
from mtrl.report.runs import Run
from mtrl.report.table import per_task, summary, tables, to_csv
from mtrl.report.text import Grid, count, spread


def write_report(runs: Sequence[Path], out: Path) -> list[Path]:
    """Writes `report.md`, `table.md`, `table.csv`, `curves.png`, `time.png` and `tasks.png`; returns their paths.

    Raises:
        ValueError: As `load_results`, and for a folder that cannot be written.
    """
    found = load_results(runs)
    pictures = {"curves.png": plots.success_curves, "time.png": plots.time_curves, "tasks.png": plots.task_bars}
    files = [out / name for name in ("report.md", "table.md", "table.csv", *pictures)]
    try:
        out.mkdir(parents=True, exist_ok=True)
        files[0].write_text(report_page(found), encoding="utf-8")
        files[1].write_text(tables(found).to_markdown(), encoding="utf-8")
        files[2].write_text(to_csv(found), encoding="utf-8")
        for name, picture in pictures.items():
            plots.save(picture(found), out / name)
    except OSError as error:
        raise ValueError(f"{out}: cannot be written: {error.strerror}") from None
    return files


def report_page(found: Sequence[Result]) -> str:
    """Returns the page `report.md`."""
    parts = [
        "# Results",
        summary(found).to_markdown(),
        "![Learning curves](curves.png)",
        "![Success over wall time](time.png)",
        "## Per task",
        per_task(found).to_markdown(),
        "![Success per task](tasks.png)",
        "## Protocol",
        "\n".join(f"- {protocol(result)}" for result in found) + "\n",
        "## Software and hardware",
        versions(found).to_markdown(),
    ]
    for benchmark in dict.fromkeys(result.benchmark for result in found):
        numbers = published(benchmark)
        if numbers:
            parts += [f"## Published numbers on {benchmark}", _published_grid(numbers).to_markdown()]
    return "\n\n".join(part.rstrip("\n") for part in parts) + "\n"


def protocol(result: Result) -> str:
    """Returns in one sentence everything that must be known to compare the numbers of a row."""
    run = result.runs[0]
    env, evaluation = run.config.env, run.result
    low, high = result.env_steps
    goals = f"{'the first' if evaluation.goals < env.num_goals else 'all'} {evaluation.goals} of {env.num_goals}"
    cut = " (episodes end at the first success, which cuts returns short)" if run.config.eval.stop_at_success else ""
    actions = "mean actions" if run.config.eval.deterministic else "sampled actions"
    return (
        f"**{result.name}**: {result.benchmark} ({_counted(len(result.tasks), 'task')}) on {_environments(run)}, "
        f"reward {env.reward_version}, horizon {env.max_episode_steps}, {goals} stored goals per task, {_times(run)}"
        f"{cut}; {actions}; an episode is a success if any of its steps is; every episode counts (`mtrl`), beside "
        f"it metaworld's own rule; {spread(count(low), count(high))} env steps over all tasks, {_seeds(result)}; "
        f"{_hardware(result)}."
    )


def _times(run: Run) -> str:
    if run.config.algorithm not in META_ALGORITHMS:
        return "each once"
    meta = run.config.meta
    tested = _counted(meta.test_episodes, "episode")
    return f"{tested} of each after {_counted(meta.adaptation_episodes, 'episode')} of adaptation"


def versions(found: Sequence[Result]) -> Grid:
    """Returns recorded versions and hardware, one column per row; several values where seeds or resumptions differ."""
    keys = dict.fromkeys(key for result in found for run in result.runs for key in run.versions)
    lines = [(key, *(_recorded(result, key) for result in found)) for key in keys]
    return Grid("Software and hardware", ("", *(result.name for result in found)), tuple(lines))


def _recorded(result: Result, key: str) -> str:
    values = [value for run in result.runs for value in _recorded_in(run, key)]
    return ", ".join(dict.fromkeys("–" if value is None else str(value) for value in values))


def _recorded_in(run: Run, key: str) -> list[Any]:
    resumed = run.versions.get("resumed", [])
    if key == "resumed":
        return [f"at {one['env_steps']:,} env steps" for one in resumed] or [None]
    return [run.versions.get(key), *(one.get(key) for one in resumed)]


def _environments(run: Run) -> str:
    if run.config.env.benchmark == "toy":
        return "the toy suite"
    return f"metaworld {run.versions.get('metaworld') or '(version not recorded)'}"


def _counted(number: int, noun: str) -> str:
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"


def _seeds(result: Result) -> str:
    seeds = ", ".join(map(str, result.seeds))
    return f"seed {seeds}" if len(result.seeds) == 1 else f"{len(result.seeds)} seeds ({seeds})"


def _hardware(result: Result) -> str:
    machines = dict.fromkeys(_machine(run) for run in result.runs)
    return " and ".join(machines)


def _machine(run: Run) -> str:
    cpu, cores, gpu = (run.versions.get(key) for key in ("cpu", "num_cpus", "gpu"))
    if cpu is None:
        return "hardware not recorded"
    return f"{cpu}, {cores} cores, {gpu or 'no GPU'}"


def _published_grid(numbers: Sequence[Published]) -> Grid:
    header = ("Method", "Success", "Interval", "Reward", "Horizon", "Env steps", "Seeds", "Statistic", "Source")
    return Grid(
        "Published numbers",
        header,
        tuple(_published_lines(numbers)),
        ("–: the source does not say.",),
        text_columns=(0, 7, 8),
    )


def _published_lines(numbers: Sequence[Published]) -> Iterator[tuple[str, ...]]:
    for number in numbers:
        terms = number.protocol
        yield (
            number.method,
            f"{number.success:.3g}",
            "–" if number.interval is None else f"[{number.interval[0]:.3g}, {number.interval[1]:.3g}]",
            terms.reward_version or "–",
            "–" if terms.horizon is None else str(terms.horizon),
            "–" if terms.env_steps is None else count(terms.env_steps),
            "–" if terms.seeds is None else str(terms.seeds),
            terms.statistic,
            number.source,
        )

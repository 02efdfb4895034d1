"""Results to tables: a line per row and a line per task, for the terminal, Markdown and CSV."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from rich.console import Group

from mtrl.report.results import Result
from mtrl.report.scores import Interval
from mtrl.report.text import Grid, count, duration, spread

_MOST_TURNED = 3  # results side by side in the 80 columns of a terminal
_ONE_SEED = (
    "‡ One seed: the interval is over the episodes of this one policy. It says how well the policy was measured, not "
    "how another seed would come out."
)
_FEW_SEEDS = "Fewer than 5 seeds: the intervals over seeds are too narrow to be relied on."
_NO_WIDTH = "An interval over seeds without width says that the seeds agree, not that another one must."
_UNFINISHED = "† Not all seeds have reached the row's number of steps; their latest evaluation is shown."
_INTERVALS = (
    "[ ]: 95 % interval; over seeds by the bootstrap stratified by task, per task over the episodes of all seeds "
    "(Wilson). IQM: interquartile mean over seeds and tasks."
)


_CSV_COLUMNS = (
    "row",
    "benchmark",
    "task",
    "seeds",
    "env_steps",
    "finished",
    "success",
    "low",
    "high",
    "interval_over",
    "metaworld_success",
    "last_step_success",
    "return",
    "length",
    "published",
    "published_source",
    "wall_s",
)


@dataclass(frozen=True)
class Tables:
    """The two tables of a report."""

    summary: Grid
    per_task: Grid

    def to_rich(self) -> Group:
        """Returns both for a terminal, the tasks first and the whole at the end, where eyes are."""
        turned = len(self.summary.lines) <= _MOST_TURNED
        return Group(self.per_task.to_rich(), (self.summary.turned() if turned else self.summary).to_rich())

    def to_markdown(self) -> str:
        """Returns both as Markdown."""
        return f"{self.summary.to_markdown()}\n{self.per_task.to_markdown()}"


def tables(found: Sequence[Result]) -> Tables:
    """Returns the tables of results."""
    return Tables(summary(found), per_task(found))


def summary(found: Sequence[Result]) -> Grid:
    """Returns the table with one line per row."""
    header = (
        "Row",
        "Seeds",
        "Env steps",
        "Success",
        "IQM",
        "metaworld's rule",
        "Last step",
        "Published",
        "Time per seed",
    )
    return Grid("Success rates", header, tuple(_summary_line(result) for result in found), tuple(_notes(found)))


def per_task(found: Sequence[Result]) -> Grid:
    """Returns the table with one line per task and one column per row."""
    tasks = tuple(dict.fromkeys(task for result in found for task in result.tasks))
    lines = [(task, *(_task_cell(result, task) for result in found)) for task in tasks]
    lines.append(("mean", *(f"{result.scores.mean:.3f}" for result in found)))
    return Grid("Success rate per task", ("Task", *(result.name for result in found)), tuple(lines))


def to_csv(found: Sequence[Result]) -> str:
    """Returns everything as CSV: for each row a line per task, and lines for `mean` and `iqm`."""
    text = io.StringIO()
    writer = csv.DictWriter(text, _CSV_COLUMNS, restval="", lineterminator="\n")
    writer.writeheader()
    for result in found:
        writer.writerows(_csv_lines(result))
    return text.getvalue()


def _summary_line(result: Result) -> tuple[str, ...]:
    expected = result.expected
    found = result.scores
    low, high = result.env_steps
    published = "–" if expected.success_rate is None else f"{expected.success_rate:.3f}"
    if expected.success_rate is not None and expected.env_steps is not None:
        published += f" at {count(expected.env_steps)}"
    return (
        result.name,
        str(len(result.seeds)),
        spread(count(low), count(high)) + ("" if result.finished else " †"),
        f"{found.mean:.3f} {_interval(found.mean_interval, 3)}" + (" ‡" if len(result.seeds) == 1 else ""),
        f"{found.iqm:.3f}" + (f" {_interval(found.iqm_interval, 3)}" if found.iqm_interval else ""),
        f"{np.mean(result.metaworld):.3f}",
        f"{np.mean(result.last_step_success):.3f}",
        published,
        "–" if result.wall_s is None else duration(result.wall_s),
    )


def _task_cell(result: Result, task: str) -> str:
    if task not in result.tasks:
        return "–"
    index = result.tasks.index(task)
    return f"{result.scores.per_task[index]:.2f} {_interval(result.scores.per_task_intervals[index], 2)}"


def _interval(interval: Interval, digits: int) -> str:
    return f"[{interval.low:.{digits}f}, {interval.high:.{digits}f}]"


def _notes(found: Sequence[Result]) -> Iterator[str]:
    yield _INTERVALS
    if any(len(result.seeds) == 1 for result in found):
        yield _ONE_SEED
    if any(1 < len(result.seeds) < 5 for result in found):
        yield _FEW_SEEDS
    if any(_without_width(result.scores.mean_interval) for result in found):
        yield _NO_WIDTH
    if not all(result.finished for result in found):
        yield _UNFINISHED
    for result in found:
        if result.expected.success_rate is not None:
            yield f"Published number of {result.name}: {result.expected.source}."


def _without_width(interval: Interval) -> bool:
    return interval.over == "seeds" and interval.low == interval.high


def _csv_lines(result: Result) -> Iterator[dict[str, object]]:
    found, expected = result.scores, result.expected
    row = {
        "row": result.name,
        "benchmark": result.benchmark,
        "seeds": " ".join(map(str, result.seeds)),
        "env_steps": result.env_steps[1],
        "finished": result.finished,
    }
    for index, task in enumerate(result.tasks):
        yield row | {
            "task": task,
            "success": found.per_task[index],
            **_csv_interval(found.per_task_intervals[index]),
            "metaworld_success": result.metaworld[index],
            "last_step_success": result.last_step_success[index],
            "return": result.episode_return[index],
            "length": result.length[index],
        }
    yield row | {
        "task": "mean",
        "success": found.mean,
        **_csv_interval(found.mean_interval),
        "metaworld_success": np.mean(result.metaworld),
        "last_step_success": np.mean(result.last_step_success),
        "return": np.mean(result.episode_return),
        "length": np.mean(result.length),
        "published": "" if expected.success_rate is None else expected.success_rate,
        "published_source": expected.source,
        "wall_s": "" if result.wall_s is None else result.wall_s,
    }
    yield row | {
        "task": "iqm",
        "success": found.iqm,
        **(_csv_interval(found.iqm_interval) if found.iqm_interval else {}),
    }


def _csv_interval(interval: Interval) -> dict[str, object]:
    return {"low": interval.low, "high": interval.high, "interval_over": interval.over}

"""Runs to tables: one result per row name, over its seeds, per task and on the whole."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from mtrl.config import ExpectedConfig
from mtrl.config_io import difference, flatten
from mtrl.config_keys import shown
from mtrl.report.runs import Run
from mtrl.report.scores import Interval, Scores, scores
from mtrl.report.text import Grid, count, duration, spread

_SEED_ONLY = (
    "seed",
    "runs_dir",
    "device",
    "torch_threads",
    "log_every_env_steps",
    "checkpoint.",
    "rllib.",
    "expected.",
)
"""Settings, or their beginnings, in which two seeds of one row may differ."""

_ONE_SEED = (
    "‡ One seed: the interval is over the episodes of this one policy. It says how well the policy was measured, not how "
    "another seed would come out."
)
_FEW_SEEDS = "Fewer than 5 seeds: the intervals over seeds are too narrow to be relied on."
_UNFINISHED = "† Not all seeds have reached the row's number of steps; their latest evaluation is shown."
_INTERVALS = (
    "[ ]: 95 % interval; over seeds by the bootstrap stratified by task, per task over the episodes of all seeds (Wilson). "
    "IQM: interquartile mean over seeds and tasks."
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
class Result:
    """The result of one row: its runs, one per seed, and their scores.

    Attributes:
        name: Name of the row, with the settings in which it differs from another of the same name.
        runs: One per seed, by seed.
        tasks: Task names in their order.
        scores: Of the estimator `mtrl`, in which every episode counts.
        metaworld: Success by metaworld's own rule, mean over seeds [task].
        last_step_success: Success of the last step, mean over seeds [task].
        episode_return: Mean over seeds [task].
        length: Of an episode, mean over seeds [task].
    """

    name: str
    runs: tuple[Run, ...]
    tasks: tuple[str, ...]
    scores: Scores
    metaworld: tuple[float, ...]
    last_step_success: tuple[float, ...]
    episode_return: tuple[float, ...]
    length: tuple[float, ...]

    @property
    def benchmark(self) -> str:
        """Name of the benchmark."""
        return self.runs[0].config.env.benchmark

    @property
    def seeds(self) -> tuple[int, ...]:
        """Seeds of the runs."""
        return tuple(run.config.seed for run in self.runs)

    @property
    def env_steps(self) -> tuple[int, int]:
        """Fewest and most environment steps at which a seed was evaluated."""
        steps = [run.result.env_steps for run in self.runs]
        return min(steps), max(steps)

    @property
    def finished(self) -> bool:
        """Whether every seed was evaluated after all its steps."""
        return all(run.result.env_steps >= run.config.total_env_steps for run in self.runs)

    @property
    def wall_s(self) -> float | None:
        """Seconds per seed, in the mean; `None` where a seed has none on record."""
        seconds = [run.wall_s for run in self.runs if run.wall_s is not None]
        return float(np.mean(seconds)) if len(seconds) == len(self.runs) else None

    @property
    def expected(self) -> ExpectedConfig:
        """What the row's paper claims."""
        return self.runs[0].config.expected


def results(runs: Sequence[Run], generator: np.random.Generator) -> list[Result]:
    """Groups runs by the name of their row and scores each group, in the order of the runs.

    Runs of one name whose settings differ in more than the seed become rows of their own, named after the difference.

    Raises:
        ValueError: For no runs, for two runs of one row with the same seed, or for runs of one row over different tasks.
    """
    if not runs:
        raise ValueError("no runs to report; name at least one run directory")
    groups: dict[str, list[Run]] = {}
    for run in runs:
        namesake = next((other for other in runs if other.config.name == run.config.name), run)
        groups.setdefault(run.config.name + _differing(namesake, run), []).append(run)
    return [_result(name, group, generator) for name, group in groups.items()]


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


def _differing(first: Run, run: Run) -> str:
    keys = [key for key in difference(first.config, run.config) if not key.startswith(_SEED_ONLY)]
    values = flatten(run.config)
    return f" ({', '.join(f'{key}={shown(values[key])}' for key in keys)})" if keys else ""


def _result(name: str, runs: Sequence[Run], generator: np.random.Generator) -> Result:
    runs = sorted(runs, key=lambda run: run.config.seed)
    tasks = runs[0].result.tasks
    for earlier, later in zip(runs, runs[1:], strict=False):
        if earlier.config.seed == later.config.seed:
            raise ValueError(
                f"{earlier.path} and {later.path} are both {name} with seed {later.config.seed}; leave one out"
            )
        if later.result.tasks != tasks:
            raise ValueError(f"{earlier.path} and {later.path} are both {name} but were evaluated on different tasks")
    counts = np.array([[_counts(run, task) for task in tasks] for run in runs])  # [seed, task, (successes, episodes)]
    return Result(
        name=name,
        runs=tuple(runs),
        tasks=tasks,
        scores=scores(counts[..., 0], counts[..., 1], generator),
        metaworld=_over_seeds(runs, tasks, "metaworld", "success"),
        last_step_success=_over_seeds(runs, tasks, "mtrl", "last_step_success"),
        episode_return=_over_seeds(runs, tasks, "mtrl", "return"),
        length=_over_seeds(runs, tasks, "mtrl", "length"),
    )


def _counts(run: Run, task: str) -> tuple[int, int]:
    successes = [episode.success for episode in run.result.episodes if episode.task == task]
    return sum(successes), len(successes)


def _over_seeds(runs: Sequence[Run], tasks: Sequence[str], estimator: str, quantity: str) -> tuple[float, ...]:
    values = [run.result.estimators[estimator][quantity] for run in runs]
    return tuple(float(np.mean([value[task] for value in values])) for task in tasks)


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
    if not all(result.finished for result in found):
        yield _UNFINISHED
    for result in found:
        if result.expected.success_rate is not None:
            yield f"Published number of {result.name}: {result.expected.source}."


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

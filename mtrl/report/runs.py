"""Reads run directories: settings, versions, metrics and evaluations. Nothing is written here.

RUN/config.yaml                      all settings
RUN/versions.json                    software and hardware
RUN/metrics.jsonl                    one record a line
RUN/evaluations/000000200000-0010.json  one evaluation each, named by its env_steps and goals per task
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mtrl.config import RunConfig
from mtrl.config_io import load_config


@dataclass(frozen=True)
class Episode:
    """One evaluation episode; `episode_return` is the sum of its unscaled rewards."""

    task: str
    goal: int
    episode_return: float
    length: int
    success: bool
    last_step_success: bool
    first_success_step: int
    """-1 if there was none."""


@dataclass(frozen=True)
class Evaluation:
    """One evaluation: what was estimated, and the episodes behind it."""

    env_steps: int
    gradient_steps: int
    final: bool
    goals: int
    """Goals per task."""
    estimators: Mapping[str, Mapping[str, Mapping[str, float]]]
    """Estimator (mtrl, metaworld) → quantity (success, return, ...) → task → value."""
    episodes: tuple[Episode, ...]

    @property
    def tasks(self) -> tuple[str, ...]:
        """Task names in their order."""
        return tuple(self.estimators["mtrl"]["success"])


@dataclass(frozen=True)
class Record:
    """One line of `metrics.jsonl`; `kind` is train or eval."""

    kind: str
    env_steps: int
    gradient_steps: int
    wall_s: float
    values: Mapping[str, float]


@dataclass(frozen=True)
class Run:
    """One run directory, read."""

    path: Path
    config: RunConfig
    versions: Mapping[str, Any]
    evaluations: tuple[Evaluation, ...]
    """At least one, by env_steps."""
    wall_s: float | None
    """Seconds up to the last record; `None` where nothing was logged."""
    success_over_time: tuple[tuple[float, float], ...]
    """Seconds and mean success of the evaluations in the log, in its order."""

    @property
    def result(self) -> Evaluation:
        """The latest evaluation; that of the end where the run has ended."""
        return self.evaluations[-1]


def read_run(path: Path) -> Run:
    """Reads a run directory.

    Raises:
        ValueError: For a folder that is no run, a run without evaluations, or a file that cannot be made sense of;
            the text names it.
    """
    if not path.is_dir():
        raise ValueError(f"{path}: no such folder; expected a run directory")
    if not (path / "config.yaml").is_file():
        raise ValueError(f"{path}: is no run directory; there is no config.yaml in it{_runs_inside(path)}")
    evaluations = tuple(read_evaluations(path))
    if not evaluations:
        raise ValueError(f"{path}: has no evaluations yet; `mtrl evaluate {path}` makes one")
    versions = path / "versions.json"
    records = list(read_metrics(path)) if (path / "metrics.jsonl").exists() else []
    return Run(
        path=path,
        config=load_config(path / "config.yaml"),
        versions=_mapping(versions, versions.read_text(encoding="utf-8")) if versions.exists() else {},
        evaluations=evaluations,
        wall_s=max((record.wall_s for record in records), default=None),
        success_over_time=tuple((record.wall_s, success) for record, success in _evaluated(records)),
    )


def read_evaluations(path: Path) -> Iterator[Evaluation]:
    """Yields the evaluations of a run directory by env_steps."""
    for file in sorted((path / "evaluations").glob("*.json")):
        values = _mapping(file, file.read_text(encoding="utf-8"))
        try:
            evaluation = _evaluation(values)
        except (KeyError, TypeError, AttributeError) as error:
            raise ValueError(f"{file}: is no evaluation: {type(error).__name__} at {error}") from error
        without = set(evaluation.tasks) - {episode.task for episode in evaluation.episodes}
        if without:
            raise ValueError(f"{file}: has no episodes of {', '.join(sorted(without))}")
        yield evaluation


def success_by_steps(path: Path) -> list[tuple[int, float]]:
    """Returns env_steps and mean success of every evaluation in the log of a run directory, in its order."""
    if not (path / "metrics.jsonl").exists():
        return []
    return [(record.env_steps, success) for record, success in _evaluated(read_metrics(path))]


def _evaluated(records: Iterable[Record]) -> Iterator[tuple[Record, float]]:
    """Yields the records of evaluations with their mean success."""
    for record in records:
        if record.kind == "eval":
            yield record, record.values["eval/success/mean"]


def read_metrics(path: Path) -> Iterator[Record]:
    """Yields the records of a run directory's `metrics.jsonl`.

    A last line without its end is left out: it is what a killed run leaves behind.
    """
    file = path / "metrics.jsonl"
    with file.open(encoding="utf-8") as lines:
        for number, line in enumerate(lines, start=1):
            if not line.endswith("\n"):
                return
            values = _mapping(f"{file}:{number}", line)
            try:
                yield Record(
                    kind=values["kind"],
                    env_steps=int(values["env_steps"]),
                    gradient_steps=int(values["gradient_steps"]),
                    wall_s=float(values["wall_s"]),
                    values=dict(values["values"]),
                )
            except (KeyError, TypeError, ValueError) as error:
                raise ValueError(f"{file}:{number}: is no record: {type(error).__name__} at {error}") from error


def _evaluation(values: Mapping[str, Any]) -> Evaluation:
    estimators = values["estimators"]
    for name in ("mtrl", "metaworld"):
        if set(estimators[name]["success"]) != set(estimators["mtrl"]["success"]):
            raise KeyError(f"estimators.{name}.success")
    return Evaluation(
        env_steps=values["env_steps"],
        gradient_steps=values["gradient_steps"],
        final=values["final"],
        goals=values["goals"],
        estimators=estimators,
        episodes=tuple(
            Episode(
                task=episode["task"],
                goal=episode["goal"],
                episode_return=episode["return"],
                length=episode["length"],
                success=episode["success"],
                last_step_success=episode["last_step_success"],
                first_success_step=episode["first_success_step"],
            )
            for episode in values["episodes"]
        ),
    )


def _mapping(place: Path | str, text: str) -> dict[str, Any]:
    try:
        values = json.loads(text)
    except json.JSONDecodeError as error:
        raise ValueError(f"{place}: is not JSON: {error}") from None
    if not isinstance(values, dict):
        raise ValueError(f"{place}: expected a JSON object, got {type(values).__name__}")
    return values


def _runs_inside(path: Path) -> str:
    inside = sorted(config.parent.name for config in path.glob("*/config.yaml"))
    if not inside:
        return ""
    more = f" and {len(inside) - 1} more" if len(inside) > 1 else ""
    return f", but the run {inside[0]}{more}; name the runs, as in {path}/*"

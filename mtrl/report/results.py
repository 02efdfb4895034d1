"""Runs to results: one per row name, over its seeds, with the scores of every task."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from mtrl.config import ExpectedConfig
from mtrl.config_io import difference, flatten
from mtrl.config_keys import shown
from mtrl.report.runs import Run, read_run
from mtrl.report.scores import Scores, scores
from mtrl.seeding import numpy_generator

_SEED_ONLY = (
    "seed",
    "runs_dir",
    "device",
    "torch_threads",
    "log_every_env_steps",
    "profile",
    "learner.compile",
    "learner.updates_per_graph",
    "checkpoint.",
    "rllib.",
    "expected.",
)
"""Settings, or their beginnings, in which two seeds of one row may differ."""


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
        ValueError: For no runs, or if two runs of one row have the same seed or different tasks.
    """
    if not runs:
        raise ValueError("no runs to report; name at least one run directory")
    groups: dict[str, list[Run]] = {}
    for run in runs:
        namesake = next((other for other in runs if other.config.name == run.config.name), run)
        groups.setdefault(run.config.name + _differing(namesake, run), []).append(run)
    return [_result(name, group, generator) for name, group in groups.items()]


def load_results(paths: Sequence[Path]) -> list[Result]:
    """Reads run directories and scores them row by row; the same runs give the same intervals.

    Raises:
        ValueError: For a folder that is no run, a run without evaluations, or a seed given twice.
    """
    return results([read_run(path) for path in paths], numpy_generator(0, "report bootstrap"))


def _differing(first: Run, run: Run) -> str:
    keys = [key for key in difference(first.config, run.config) if not key.startswith(_SEED_ONLY)]
    values = flatten(run.config)
    return f" ({', '.join(f'{key}={shown(values[key])}' for key in keys)})" if keys else ""


def _result(name: str, runs: Sequence[Run], generator: np.random.Generator) -> Result:
    runs = sorted(runs, key=lambda run: run.config.seed)
    tasks = runs[0].result.tasks
    for earlier, later in itertools.pairwise(runs):
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

"""What happened between two records of the log, added up without waiting for the learner's device."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, fields
from typing import Any

import numpy as np
import torch

from mtrl.data import Block, Episodes, Metrics
from mtrl.learners.protocol import Learner
from mtrl.profiling import named


@dataclass
class Progress:
    """Metrics, episodes and seconds of one stretch of a run."""

    metrics: list[Metrics] = field(default_factory=list)
    episodes: list[Episodes] = field(default_factory=list)
    seconds: dict[str, float] = field(default_factory=dict)
    """Part of the loop (request, collect, receive, update) → seconds."""
    env_steps: int = 0
    """Environment steps received."""
    num_unstable: int = 0
    num_restarts: int = 0
    """Workers that died and came back."""
    largest_lag: int = 0
    """Versions of the weights between those that a block was collected with and the newest when it was received."""
    earlier: Mapping[str, Any] = field(
        default_factory=lambda: {"values": {}, "matrices": {}, "updates": 0, "samples": 0}
    )
    """Of what was before a resume: name → sum and number of its values; numbers of updates and of samples."""

    def state_dict(self) -> dict[str, Any]:
        """Returns arrays and JSON-able values from which the stretch goes on after a resume, its means bit for bit."""
        return {
            "values": self._sums_of_values(),
            "matrices": self._sums_of_matrices(),
            "updates": self.num_updates(),
            "samples": self.num_samples(),
            "episodes": {f.name: getattr(Episodes.concatenate(self.episodes), f.name) for f in fields(Episodes)},
            "seconds": dict(self.seconds),
            "env_steps": self.env_steps,
            "num_unstable": self.num_unstable,
            "num_restarts": self.num_restarts,
            "largest_lag": self.largest_lag,
        }

    @staticmethod
    def from_state(state: Mapping[str, Any]) -> Progress:
        """Returns the stretch that a state was made of."""
        return Progress(
            episodes=[Episodes(**state["episodes"])],
            seconds=dict(state["seconds"]),
            env_steps=state["env_steps"],
            num_unstable=state["num_unstable"],
            num_restarts=state["num_restarts"],
            largest_lag=state["largest_lag"],
            earlier={name: state[name] for name in ("values", "matrices", "updates", "samples")},
        )

    def merge(self, later: Progress) -> None:
        """Adds a later stretch to this one."""
        self.metrics += later.metrics
        self.episodes += later.episodes
        for part, seconds in later.seconds.items():
            self.seconds[part] = self.seconds.get(part, 0.0) + seconds
        self.env_steps += later.env_steps
        self.num_unstable += later.num_unstable
        self.num_restarts += later.num_restarts
        self.largest_lag = max(self.largest_lag, later.largest_lag)

    def count(self, blocks: Sequence[Block], version: int) -> None:
        """Counts blocks that were received while the newest weights had a version."""
        self.episodes += [block.episodes for block in blocks]
        self.env_steps += sum(block.env_steps() for block in blocks)
        self.num_unstable += sum(block.num_unstable for block in blocks)
        self.largest_lag = max([self.largest_lag, *(version - block.weights_version for block in blocks)])

    @contextmanager
    def timed(self, part: str) -> Iterator[None]:
        """Adds the seconds that the body takes to a part of the loop, and names it in a trace."""
        began = time.perf_counter()
        with named(part):
            yield
        self.seconds[part] = self.seconds.get(part, 0.0) + time.perf_counter() - began

    def num_updates(self) -> int:
        """Returns the number of updates."""
        return int(self.earlier["updates"]) + sum(metrics.num_updates for metrics in self.metrics)

    def num_samples(self) -> int:
        """Returns the number of transitions that all updates together learned from."""
        return int(self.earlier["samples"]) + sum(metrics.num_samples for metrics in self.metrics)

    def mean_values(self) -> dict[str, torch.Tensor]:
        """Returns tag → mean over the updates that gave it, on the CPU."""
        return _means(self._sums_of_values())

    def mean_matrices(self) -> dict[str, torch.Tensor]:
        """Returns each measured matrix's mean [task, task] over the updates that measured it, on the CPU."""
        return _means(self._sums_of_matrices())

    def _sums_of_values(self) -> dict[str, dict[str, Any]]:
        return _sums([(metrics.values, metrics.num_updates) for metrics in self.metrics], self.earlier["values"])

    def _sums_of_matrices(self) -> dict[str, dict[str, Any]]:
        return _sums([(metrics.matrices, metrics.num_updates) for metrics in self.metrics], self.earlier["matrices"])


class WorkersLostError(RuntimeError):
    """Workers died and are waited for no longer; the learner stands as it did before what they were asked for."""

    progress: Progress | None = None
    """What happened before, in the stretch that they were lost in."""


@contextmanager
def kept_if_lost(progress: Progress) -> Iterator[None]:
    """Lets a WorkersLostError of the body bear what happened before it."""
    try:
        yield
    except WorkersLostError as error:
        error.progress = progress
        raise


def _means(sums: Mapping[str, Mapping[str, Any]]) -> dict[str, torch.Tensor]:
    return {name: torch.from_numpy(np.asarray(one["sum"] / one["count"])) for name, one in sums.items()}


def _sums(
    records: Sequence[tuple[Mapping[str, torch.Tensor], int]], earlier: Mapping[str, Any]
) -> dict[str, dict[str, Any]]:
    """Returns name → float64 `sum` and `count` of its values, added one after the other to those of `earlier`.

    Args:
        records: Values by name, and of how many updates they are the means.
        earlier: As what is returned.
    """
    found: dict[str, list[torch.Tensor]] = {}
    counts: dict[str, list[int]] = {}
    for record, count in records:
        for name, value in record.items():
            found.setdefault(name, []).append(value)
            counts.setdefault(name, []).append(count)
    sums = dict(earlier)
    for name, values in found.items():
        numbers = torch.stack(values).double().cpu().numpy()
        numbers *= np.reshape(counts[name], (-1, *(1,) * (numbers.ndim - 1)))
        begin = earlier.get(name, {"sum": np.zeros(numbers.shape[1:]), "count": 0})
        # in order, so that where a run was interrupted does not show
        total = np.cumsum(np.concatenate([begin["sum"][np.newaxis], numbers]), axis=0)[-1]
        sums[name] = {"sum": np.asarray(total), "count": begin["count"] + sum(counts[name])}
    return sums


def run_rounds(
    learner: Learner,
    collect: Callable[..., list[Block]],
    until_env_steps: int,
    pause: Callable[[], bool],
) -> Progress:
    """Runs the synchronous loop: request → collect → receive → updates until none is due, and again.

    Args:
        learner: Learns.
        collect: CollectRequest → the blocks of all workers, in order.
        until_env_steps: Stops at the first round that reaches this many.
        pause: Asked after every round; True stops there.
    """
    progress = Progress()
    with progress.timed("update"):  # what asynchronous collection has left, before a resume
        _update_all(learner, progress)
    while learner.env_steps < until_env_steps:
        with progress.timed("request"):
            request = learner.request()
        with kept_if_lost(progress), progress.timed("collect"):
            blocks = collect(request)
        with progress.timed("receive"):
            learner.receive(blocks)
        with progress.timed("update"):
            _update_all(learner, progress)
        progress.count(blocks, request.version)
        if pause():
            break
    return progress


def named_update(learner: Learner) -> Metrics | None:
    """Calls the learner's `update` and names it in a trace."""
    with named("single_update"):
        return learner.update()


def _update_all(learner: Learner, progress: Progress) -> None:
    while (metrics := named_update(learner)) is not None:
        progress.metrics.append(metrics)

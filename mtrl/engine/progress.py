"""What happened between two records of the log, added up without waiting for the learner's device."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field

import torch

from mtrl.data import Block, Episodes, Metrics
from mtrl.learners.protocol import Learner


@dataclass
class Progress:
    """Metrics, episodes and seconds of one stretch of a run."""

    metrics: list[Metrics] = field(default_factory=list)
    episodes: list[Episodes] = field(default_factory=list)
    seconds: dict[str, float] = field(default_factory=dict)
    """Part of the loop (collect, receive, update) → seconds."""
    num_unstable: int = 0
    largest_lag: int = 0
    """Versions of the weights between those that a block was collected with and the newest when it was received."""

    def merge(self, later: Progress) -> None:
        """Adds a later stretch to this one."""
        self.metrics += later.metrics
        self.episodes += later.episodes
        for part, seconds in later.seconds.items():
            self.seconds[part] = self.seconds.get(part, 0.0) + seconds
        self.num_unstable += later.num_unstable
        self.largest_lag = max(self.largest_lag, later.largest_lag)

    @contextmanager
    def timed(self, part: str) -> Iterator[None]:
        """Adds the seconds that the body takes to a part of the loop."""
        began = time.perf_counter()
        yield
        self.seconds[part] = self.seconds.get(part, 0.0) + time.perf_counter() - began

    def num_samples(self) -> int:
        """Returns the number of transitions that all updates together learned from."""
        return sum(metrics.num_samples for metrics in self.metrics)

    def mean_values(self) -> dict[str, torch.Tensor]:
        """Returns tag → mean over the updates that gave it, on the CPU."""
        return _means([metrics.values for metrics in self.metrics])

    def mean_matrices(self) -> dict[str, torch.Tensor]:
        """Returns each measured matrix's mean [task, task] over the updates that measured it, on the CPU."""
        return _means([metrics.matrices for metrics in self.metrics])


def _means(records: Sequence[Mapping[str, torch.Tensor]]) -> dict[str, torch.Tensor]:
    found: dict[str, list[torch.Tensor]] = {}
    for record in records:
        for name, value in record.items():
            found.setdefault(name, []).append(value)
    return {name: torch.stack(values).double().mean(dim=0).cpu() for name, values in found.items()}


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
    while learner.env_steps < until_env_steps:
        request = learner.request()
        with progress.timed("collect"):
            blocks = collect(request)
        with progress.timed("receive"):
            learner.receive(blocks)
        with progress.timed("update"):
            while (metrics := learner.update()) is not None:
                progress.metrics.append(metrics)
        progress.episodes += [block.episodes for block in blocks]
        progress.largest_lag = max(progress.largest_lag, *(request.version - block.weights_version for block in blocks))
        progress.num_unstable += sum(block.num_unstable for block in blocks)
        if pause():
            break
    return progress

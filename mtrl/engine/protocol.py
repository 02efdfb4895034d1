"""What `train.py` needs of an engine. Both engines execute the same learner's requests in the same order."""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

from mtrl.data import Episodes
from mtrl.engine.progress import Progress
from mtrl.learners.protocol import Learner


class Engine(Protocol):
    """Collects what a learner requests, lets it learn, and evaluates its policy."""

    @property
    def learner(self) -> Learner:
        """The learner, in this process."""

    def advance(self, until_env_steps: int, pause: Callable[[], bool]) -> Progress:
        """Runs rounds of request, collection, reception and updates.

        Args:
            until_env_steps: Stops at the first round that reaches this many environment steps.
            pause: Asked after every round; True stops there.

        Returns:
            What happened since the last call.
        """

    def evaluate(self, num_goals: int) -> Episodes:
        """Runs the current policy once on the first `num_goals` goals of every task."""

    def close(self) -> None:
        """Frees environments and workers."""

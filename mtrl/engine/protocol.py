"""What `train.py` needs of an engine. Both engines execute the same learner's requests in the same order."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Protocol

from mtrl.data import Array, Episodes
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

        Raises:
            WorkersLostError: If workers died and did not come back.
        """

    def evaluate(self, num_goals: int) -> Episodes:
        """Runs the current policy once on the first `num_goals` goals of every task."""

    def begin_evaluation(self, weights: Mapping[str, Array], num_goals: int) -> None:
        """Begins an evaluation of a policy beside training, on environments of its own; one at a time."""

    def finished_evaluation(self, *, wait: bool) -> Episodes | None:
        """Returns the episodes of the evaluation that was begun; None while it goes on, unless told to wait."""

    def settle(self) -> Progress:
        """Finishes what is under way with asynchronous collection, so that nothing is lost by a checkpoint.

        What dead workers had under way is given up.

        Returns:
            What the learner received; it may have updates due then.
        """

    def collection_state(self) -> dict[str, Any]:
        """Returns where collection stands, in mid-episode too: each worker's collector by its number."""

    def restore_collection(self, state: Mapping[str, Any]) -> bool:
        """Goes on collecting from a `collection_state`.

        Returns:
            False if the environments are shared out among another number of workers; they begin anew then, with random
            streams that were not used before.

        Raises:
            ValueError: If the environments are others, or simulated by something else.
        """

    def processes(self) -> dict[str, list[dict[str, Any]]]:
        """Returns what they do → `worker`, `pid` and `host` of the processes beside this one that have answered."""

    def hurry(self) -> None:
        """Tells that the run is to stop: dead workers are not waited for any more. Signal handlers may call it."""

    def close(self) -> None:
        """Frees environments and workers."""

"""Calls to rollout workers: who gets which arguments, how failures come back with their traceback, and dead workers."""

from __future__ import annotations

import faulthandler
import functools
import logging
import os
import platform
import time
import traceback
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

from ray.rllib.env.env_runner_group import EnvRunnerGroup

from mtrl.engine.progress import WorkersLostError

_LOGGER = logging.getLogger(__name__)
_TAG = "submitted"
_WAIT_S = 0.01
LAST_WORDS = "what it said last is in Ray's logs on its machine, session_latest/logs/worker-*.err"
"""Where to look when a worker died."""
RESTART_TIMEOUT_S = 120.0
"""How long a worker may take to come back."""
MOST_ATTEMPTS = 3
"""How often one call may cost a worker its life before it is given up."""
PROBE_TIMEOUT_S = 1.0
"""How long the answer to a look at a dead worker is waited for, where nothing goes on without it."""
PROBE_EVERY_S = 2.0
"""How often a look is taken at dead workers while the others go on."""
SHORT_PROBE_S = 0.1
"""How long the answer is waited for then."""
FEWEST_PROBES = 5
"""Looks without an answer before a worker may count as lost."""


@dataclass(frozen=True)
class Answer:
    """What a worker hands back."""

    worker: int
    """Its number, from 0."""
    result: Any = None
    """What the call returned."""
    failure: str | None = None
    """Where it was running and the traceback, if it raised."""
    seconds: float = 0.0
    """How long the call took there."""
    pid: int = field(default_factory=os.getpid)
    """Of the process that answers."""
    host: str = field(default_factory=platform.node)
    """Of the same."""


class Worker(Protocol):
    """What `answered` needs to know of a worker."""

    worker: int
    """Its number, from 0."""

    timeout_s: float | None
    """How long a call may take, None for a worker in the driver."""

    def describe(self) -> str:
        """Names worker, tasks, goals and seed."""


def answered(method: Callable[..., Any]) -> Callable[..., Answer]:
    """Makes a worker's method return an Answer, also when it fails.

    An exception that left the method would end the worker's process, and the driver would see only that it died. A call
    that takes longer than `rllib.worker_timeout_s` does end it: it hangs, and another process will take its place.
    """

    @functools.wraps(method)
    def call(worker: Worker, **kwargs: Any) -> Answer:
        if worker.timeout_s is not None:
            faulthandler.dump_traceback_later(worker.timeout_s, exit=True)
        began = time.perf_counter()
        try:
            result = method(worker, **kwargs)
            return Answer(worker.worker, result, seconds=time.perf_counter() - began)
        except Exception:
            return Answer(worker.worker, failure=f"{worker.describe()} failed:\n{traceback.format_exc()}")
        finally:
            if worker.timeout_s is not None:
                faulthandler.cancel_dump_traceback_later()

    return call


class Calls:
    """Calls the workers of a group, and looks after those that died until Ray has started them again.

    Attributes:
        deaths: By worker, how often it was found dead so far; what was under way there is lost then.
        num_restarts: How often a worker came back.
        busy_s: Seconds that the slowest worker took for its part, all calls of `all` to remote workers together.
        probing_s: Seconds that looks at dead workers took, during which nobody did anything else.
    """

    def __init__(self, group: EnvRunnerGroup) -> None:
        """Takes the group whose workers are called."""
        self._group = group
        self.deaths = [0] * group.num_remote_env_runners()
        self.num_restarts = 0
        self.busy_s = self.probing_s = 0.0
        self._processes: dict[int, tuple[int, str]] = {}  # by worker: pid and host, of the newest answer
        self._died_at: dict[int, float] = {}  # of those that are dead
        self._probes: dict[int, int] = {}  # of the same, looks without an answer
        self._hurried = False
        self._probed = -PROBE_EVERY_S

    def all(
        self,
        method: Callable[..., Answer],
        arguments: Sequence[dict[str, Any]],
        patience_s: float = RESTART_TIMEOUT_S,
    ) -> list[Any]:
        """Calls an `answered` method of every worker, in the driver if there is no remote one, and waits for all.

        A worker that dies over it is called again when it is back; it has lost its environments then.

        Args:
            method: As `BlockEnvRunner.collect`, unbound.
            arguments: Keyword arguments of each worker, in order.
            patience_s: How long dead workers are waited for.

        Returns:
            The results in the order of the workers.

        Raises:
            RuntimeError: If a worker failed, with its traceback.
            WorkersLostError: If one did not come back in time, or died over it again and again.
        """
        if not self.deaths:
            answers = self._group.foreach_env_runner(lambda worker: method(worker, **arguments[0]))
            return [_result(answers[0])]
        found: dict[int, Any] = {}
        before = list(self.deaths)
        while missing := [worker for worker in range(len(arguments)) if worker not in found]:
            self._wait_for(missing, method.__name__, patience_s)
            for worker in missing:
                refuse_deadly(worker, self.deaths[worker] - before[worker], method.__name__)
            # RLlib keeps arguments with their worker only if functions and arguments are lists and the ids are given
            answers = self._group.foreach_env_runner(
                [method] * len(missing),
                kwargs=[arguments[worker] for worker in missing],
                local_env_runner=False,
                remote_worker_ids=[worker + 1 for worker in missing],
            )
            self._remember(answers)
            found |= {answer.worker: _result(answer) for answer in answers}
            self.busy_s += max((answer.seconds for answer in answers), default=0.0)
        return [found[worker] for worker in range(len(arguments))]

    def submit(self, worker: int, method: Callable[..., Answer], arguments: dict[str, Any]) -> bool:
        """Calls an `answered` method of a remote worker without waiting; returns False if it cannot take the call."""
        if worker + 1 not in self._group.healthy_env_runner_ids():
            return False
        made = self._group.foreach_env_runner_async(
            [method], tag=_TAG, kwargs=[arguments], remote_worker_ids=[worker + 1]
        )
        return bool(made)

    def ready(self) -> list[tuple[int, Any]]:
        """Returns worker and result of the submitted calls that are complete.

        Raises:
            RuntimeError: If a worker failed, with its traceback.
        """
        # RLlib has calls of its own under way, without a tag
        answers: list[tuple[int, Answer]] = self._group.fetch_ready_async_reqs(tags=_TAG, timeout_seconds=0.0)
        self._remember([answer for _, answer in answers])
        return [(answer.worker, _result(answer)) for _, answer in answers]

    def begin(self, method: Callable[..., Answer], arguments: dict[str, Any]) -> CallToAll:
        """Calls an `answered` method of every remote worker with the same arguments, without waiting."""
        return CallToAll(self, method, arguments, len(self.deaths))

    def dead(self) -> set[int]:
        """Returns the workers that do not answer; looks at them at most once in `PROBE_EVERY_S`."""
        self._take_note()
        if self._died_at and time.monotonic() > self._probed + PROBE_EVERY_S:
            self._probe(SHORT_PROBE_S)
        return set(self._died_at)

    def processes(self) -> list[dict[str, Any]]:
        """Returns `worker`, `pid` and `host` of the remote workers that have answered, in their order."""
        found = sorted(self._processes.items())
        return [{"worker": worker, "pid": pid, "host": host} for worker, (pid, host) in found]

    def refuse_lost(self) -> None:
        """Checks that no worker has been dead for too long.

        Raises:
            WorkersLostError: If one has.
        """
        for worker, died_at in self._died_at.items():
            waited = self._probes[worker] >= FEWEST_PROBES and time.monotonic() - died_at >= RESTART_TIMEOUT_S
            if waited or self._hurried:
                raise WorkersLostError(self._loss(worker))

    def hurry(self) -> None:
        """Waits for dead workers no longer."""
        self._hurried = True

    def _remember(self, answers: Sequence[Answer]) -> None:
        self._processes |= {answer.worker: (answer.pid, answer.host) for answer in answers}

    def _wait_for(self, workers: Sequence[int], during: str, patience_s: float) -> None:
        """Waits until workers that are dead answer again, and looks at them once at least."""
        began = time.monotonic()
        self._take_note()
        while not self._died_at.keys().isdisjoint(workers):
            self._probe(PROBE_TIMEOUT_S)
            lost = self._died_at.keys() & set(workers)
            if lost and (self._hurried or time.monotonic() - began >= patience_s):
                raise WorkersLostError(self._loss(min(lost), f" during {during}"))

    def _probe(self, timeout_s: float) -> None:
        """Looks whether dead workers are back."""
        began = time.monotonic()
        self._group.probe_unhealthy_env_runners(timeout_seconds=timeout_s)
        self._probed = time.monotonic()
        self.probing_s += self._probed - began
        self._probes = {worker: self._probes.get(worker, 0) + 1 for worker in self._died_at}
        self._take_note()

    def _take_note(self) -> None:
        """Compares who is dead with who was, and tells."""
        healthy = self._group.healthy_env_runner_ids()
        for worker in range(len(self.deaths)):
            if worker + 1 not in healthy and worker not in self._died_at:
                self.deaths[worker] += 1
                self._died_at[worker] = time.monotonic()
                self._probes[worker] = 0
                _LOGGER.warning("rollout worker %d died; waiting for Ray to start it again", worker)
            elif worker + 1 in healthy and worker in self._died_at:
                away_s = time.monotonic() - self._died_at.pop(worker)
                self.num_restarts += 1
                _LOGGER.warning("rollout worker %d is back after %.1f s and begins new episodes", worker, away_s)

    def _loss(self, worker: int, during: str = "") -> str:
        away_s = time.monotonic() - self._died_at[worker]
        waited = "is not waited for" if self._hurried else f"did not come back within {away_s:.0f} s"
        return f"rollout worker {worker} died{during} and {waited}; {LAST_WORDS}"


class CallToAll:
    """A call to every worker that is under way; workers that die over it are called again when they are back."""

    def __init__(
        self, calls: Calls, method: Callable[..., Answer], arguments: dict[str, Any], num_workers: int
    ) -> None:
        """Begins the call."""
        self._calls, self._method, self._arguments = calls, method, arguments
        self._called: set[int] = set()
        self._found: dict[int, Any] = {}
        self._num_workers = num_workers
        self._deaths = list(calls.deaths)  # of each worker when it was called last
        self._deaths_before = list(calls.deaths)
        self.look()

    def look(self) -> bool:
        """Takes in what is complete and returns whether all of it is.

        Raises:
            RuntimeError: If a worker failed, with its traceback.
            WorkersLostError: If one did not come back, or died over it again and again.
        """
        self._found |= dict(self._calls.ready())
        dead = self._calls.dead()
        self._calls.refuse_lost()
        self._called = {worker for worker in self._called - dead if self._calls.deaths[worker] == self._deaths[worker]}
        for worker in set(range(self._num_workers)) - self._called - set(self._found):
            refuse_deadly(worker, self._calls.deaths[worker] - self._deaths_before[worker], self._method.__name__)
            self._deaths[worker] = self._calls.deaths[worker]
            if self._calls.submit(worker, self._method, self._arguments):
                self._called.add(worker)
        return len(self._found) == self._num_workers

    def wait(self) -> list[Any]:
        """Returns the results in the order of the workers when all are there."""
        while not self.look():
            time.sleep(_WAIT_S)
        return [self._found[worker] for worker in range(self._num_workers)]


def refuse_deadly(worker: int, deaths: int, what: str) -> None:
    """Checks that a call has not cost a worker its life too often.

    Raises:
        WorkersLostError: If it has.
    """
    if deaths >= MOST_ATTEMPTS:
        raise WorkersLostError(f"rollout worker {worker} died {deaths} times over one {what}; {LAST_WORDS}")


def _result(answer: Answer) -> Any:
    if answer.failure is not None:
        raise RuntimeError(answer.failure)
    return answer.result

"""The asynchronous loop: workers collect with weights that may be a little old while the learner learns.

The number of samples per collected step is held from both sides. The learner makes no update that is not due; nothing
new is requested while more updates are due than one delivery ever brought.
"""

from __future__ import annotations

import math
import os
import queue
import threading
import time
from collections.abc import Callable, Set
from contextlib import suppress
from dataclasses import replace
from typing import Protocol

import torch

from mtrl.config import ConfigError
from mtrl.data import Block
from mtrl.engine.progress import Progress, kept_if_lost, named_update
from mtrl.engine.threads import compute_with_one_thread
from mtrl.learners.protocol import CollectRequest, Learner, Unit
from mtrl.rollout.collector import Collector

_LOOK_EVERY_S = 0.02
"""How long updates go on before somebody looks for new blocks."""


class Source(Protocol):
    """Workers that collect in the background."""

    largest_delivery: float
    """Most updates that one delivery made due; the memory of old deliveries fades."""

    @property
    def env_steps_under_way(self) -> int:
        """Environment steps that were requested and not delivered."""

    def has_room(self) -> bool:
        """Returns whether a worker can take a request.

        Raises:
            WorkersLostError: If a worker died and is waited for no longer.
        """

    def submit(self, request: CollectRequest, most_env_steps: int) -> bool:
        """Hands a request to a worker that has room for it; returns False if that came to nothing.

        Args:
            request: Counted in steps; the source may ask for more or fewer of them at a time.
            most_env_steps: That are wanted, of all environments together.
        """

    def ready(self, timeout_s: float) -> list[Block]:
        """Returns the blocks that are complete; waits so long for the first."""


def require_asynchronous(learner: Learner) -> None:
    """Refuses learners for which old weights would be wrong.

    Raises:
        ConfigError: If the learner is one.
    """
    if learner.on_policy:
        raise ConfigError("collection", "async collects with old weights, which this algorithm must not; take sync")


def run_asynchronously(
    learner: Learner, source: Source, until_env_steps: int, total_env_steps: int, pause: Callable[[], bool]
) -> Progress:
    """Runs the loop: request where there is room, receive what is ready, update while updates are due.

    Args:
        learner: Learns.
        source: Collects.
        until_env_steps: Stops when so many are received.
        total_env_steps: Nothing is requested beyond; there it stops when all updates are made that are due.
        pause: Asked after at most `_LOOK_EVERY_S` of updates; True stops there, with requests still under way.
    """
    progress = Progress()
    with kept_if_lost(progress):
        _run(learner, source, until_env_steps, total_env_steps, pause, progress)
    return progress


def _run(
    learner: Learner,
    source: Source,
    until_env_steps: int,
    total_env_steps: int,
    pause: Callable[[], bool],
    progress: Progress,
) -> None:
    while learner.env_steps < until_env_steps or (learner.env_steps >= total_env_steps and learner.behind()):
        with progress.timed("request"):
            _request(learner, source, total_env_steps)
        with progress.timed("collect"):
            blocks = source.ready(0.0 if learner.behind() else _LOOK_EVERY_S)
        before = learner.behind()
        deliver(learner, blocks, progress)
        if blocks:
            source.largest_delivery = max(1.0, 0.9 * source.largest_delivery, learner.behind() - before)
        with progress.timed("update"):
            _update(learner, progress)
        if pause():
            break


def _request(learner: Learner, source: Source, total_env_steps: int) -> None:
    """Requests as long as there is room, the learner keeps up, and something is wanted."""
    while (
        source.has_room()
        and learner.behind() <= source.largest_delivery
        and (wanted := total_env_steps - learner.env_steps - source.env_steps_under_way) > 0
        and source.submit(_counted_in_steps(learner.request()), wanted)
    ):
        pass


def deliver(learner: Learner, blocks: list[Block], progress: Progress) -> None:
    """Lets the learner receive blocks, if there are any, and writes down what they were."""
    if not blocks:
        return
    with progress.timed("receive"):
        learner.receive(blocks)
        version = learner.request().version
    progress.count(blocks, version)


class BackgroundCollector:
    """A collector in a thread of this process; while it is in compiled code, the learner has Python to itself."""

    def __init__(
        self,
        collector: Collector,
        num_envs: int,
        requests_in_flight: int,
        steps_per_request: int,
        cores: Set[int] | None = None,
    ) -> None:
        """Starts the thread.

        Args:
            collector: Nobody else may use it while anything is under way.
            num_envs: Its environments.
            requests_in_flight: Requests that it takes at once.
            steps_per_request: Least steps of each environment in a request, if so many are wanted.
            cores: To which the thread keeps, and those that simulate for it if they are not there yet; None: to any.
        """
        self._cores = cores
        self._steps_per_request = steps_per_request
        self._collector, self._num_envs, self._room = collector, num_envs, requests_in_flight
        self._requests: queue.Queue[CollectRequest | None] = queue.Queue()
        self._done: queue.Queue[Block | Exception] = queue.Queue()
        self.env_steps_under_way = 0
        self.largest_delivery = 1.0
        torch.get_num_threads()  # a thread that asks late would get the one that collection sets
        self._thread = threading.Thread(target=self._work, name="collection", daemon=True)
        self._thread.start()

    def has_room(self) -> bool:
        """Returns whether it can take a request."""
        return self._room > 0

    def submit(self, request: CollectRequest, most_env_steps: int) -> bool:
        """Takes a request."""
        most = math.ceil(most_env_steps / self._num_envs)
        request = replace(request, amount=min(max(request.amount, self._steps_per_request), most))
        self._room -= 1
        self.env_steps_under_way += request.amount * self._num_envs
        self._requests.put(request)
        return True

    def ready(self, timeout_s: float) -> list[Block]:
        """Returns the blocks that are complete; waits so long for the first.

        Raises:
            Exception: What collection raised.
        """
        blocks: list[Block] = []
        try:
            while True:
                done = self._done.get(timeout=timeout_s) if timeout_s and not blocks else self._done.get_nowait()
                if isinstance(done, Exception):
                    raise done
                self._room += 1
                self.env_steps_under_way -= done.env_steps()
                blocks.append(done)
        except queue.Empty:
            return blocks

    def close(self) -> None:
        """Ends the thread, after the request that it is at."""
        with suppress(queue.Empty):
            while True:
                self._requests.get_nowait()
        self._requests.put(None)
        self._thread.join()

    def _work(self) -> None:
        try:
            if self._cores is not None:
                # of this thread, and of the simulator's, which its first step starts
                os.sched_setaffinity(0, self._cores)
            compute_with_one_thread()
            while (request := self._requests.get()) is not None:
                self._done.put(self._collector.collect(request))
        except Exception as error:  # raised by `ready`, in the thread that can end the run
            self._done.put(error)


def settle(learner: Learner, source: Source) -> Progress:
    """Waits for everything under way and lets the learner receive it; the learner makes no updates."""
    progress = Progress()
    while source.env_steps_under_way:
        with progress.timed("collect"):
            blocks = source.ready(_LOOK_EVERY_S)
        deliver(learner, blocks, progress)
    return progress


def _update(learner: Learner, progress: Progress) -> None:
    until = time.monotonic() + _LOOK_EVERY_S
    while (metrics := named_update(learner)) is not None:
        progress.metrics.append(metrics)
        if time.monotonic() > until:
            return


def _counted_in_steps(request: CollectRequest) -> CollectRequest:
    if request.unit is not Unit.STEPS or request.assignments is not None:
        raise ConfigError("collection", "async collects steps of the environments as they are assigned; take sync")
    return request

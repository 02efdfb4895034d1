"""The threads that step a batch together."""

from __future__ import annotations

import os
import threading
import weakref
from typing import Any

import numpy as np
import numpy.typing as npt

from envs.compiled import engine
from envs.compiled.native import Semaphores

_STEPS_BETWEEN_ORDERS = 8


class Crew:
    """Shares the environments of a batch out among threads.

    Each thread takes one environment after the other, those first that took longest in a recent step, so that no thread
    is left alone with a slow one at the end. The calling thread is one of them; the others wait in compiled code, so
    that waking them needs neither Python nor its lock. They end with the crew or the process; a forked process, in
    which they are missing, makes its own.
    """

    def __init__(self, num_threads: int, num_envs: int, batch: engine.Batch | None) -> None:
        """Starts no thread yet.

        Args:
            num_threads: At least 1.
            num_envs: Environments of the batch.
            batch: Its arrays; None for a crew that has nothing to step.
        """
        self._num_threads, self._batch = num_threads, batch
        self._order = np.arange(num_envs)
        self._ticks = np.zeros(num_envs, np.int64)
        self._current = np.full((num_threads, 2), -1, np.int64)  # environment and thread
        self._counter = np.zeros(1, np.int64)
        self._gates = np.zeros(1, np.int64)
        self._stop = np.zeros(1, np.bool_)
        self._helpers_of = 0  # the process in which they were started
        self._steps = 0

    def step(self) -> None:
        """Steps all environments."""
        if self._num_threads > 1:
            if self._helpers_of != os.getpid():
                self._start_helpers()
            if self._steps % _STEPS_BETWEEN_ORDERS == 1:
                self._order[:] = np.argsort(-self._ticks)
            self._steps += 1
        engine.step(0, *self._arguments())

    def environment_of(self, thread: int) -> int | None:
        """Returns the environment that a thread (`threading.get_ident`) is at, None if it is at none."""
        for env, identity in self._current:
            if env >= 0 and identity == thread:
                return int(env)
        return None

    def close(self) -> None:
        """Ends the threads; a step would start new ones."""
        if self._helpers_of:
            self._end()
            self._helpers_of = 0

    def _start_helpers(self) -> None:
        semaphores = Semaphores(self._num_threads)
        self._gates = np.array([semaphores.address(member) for member in range(self._num_threads)])
        self._stop = np.zeros(1, np.bool_)
        arguments = self._arguments()
        helpers = [
            threading.Thread(target=engine.step, args=(member, *arguments), daemon=True, name=f"simulation-{member}")
            for member in range(1, self._num_threads)
        ]
        for helper in helpers:
            helper.start()
        self._helpers_of = os.getpid()
        # also when the crew is forgotten, and before the interpreter ends
        self._end = weakref.finalize(self, _end, semaphores, self._stop, helpers, os.getpid())

    def _arguments(self) -> tuple[Any, ...]:
        return (self._gates, self._stop, self._counter, self._order, self._current, self._ticks, self._batch)


def _end(semaphores: Semaphores, stop: npt.NDArray[np.bool_], helpers: list[threading.Thread], process: int) -> None:
    if process != os.getpid():
        return  # forked: there are none here
    stop[0] = True
    for member, helper in enumerate(helpers, start=1):
        semaphores.post(member)
        helper.join()

"""The threads that step a batch together."""

from __future__ import annotations

import os
from concurrent.futures import ThreadPoolExecutor, wait
from typing import Any

import numpy as np

from envs.compiled import engine

_STEPS_BETWEEN_ORDERS = 8


class Crew:
    """Shares the environments of a batch out among threads.

    Each thread takes one environment after the other, those first that took longest in a recent step, so that no thread
    is left alone with a slow one at the end. The calling thread is one of them; the others live until `close` or the
    end of the process. A forked process, in which they are missing, makes its own.
    """

    def __init__(self, num_threads: int) -> None:
        """Starts no thread yet.

        Args:
            num_threads: At least 1.
        """
        self._num_threads = num_threads
        self._helpers: ThreadPoolExecutor | None = None
        self._process = os.getpid()
        self._counter = np.zeros(1, np.int64)
        self._counter_address = self._counter.__array_interface__["data"][0]
        self._current = np.full((num_threads, 2), -1, np.int64)  # environment and thread
        self.assign(0)

    def assign(self, num_envs: int) -> None:
        """Sets the number of environments."""
        self._order = np.arange(num_envs)
        self._ticks = np.zeros(num_envs, np.int64)
        self._steps = 0

    def step(self, *batch: Any) -> None:
        """Steps all environments.

        Args:
            *batch: What `engine.step` takes from `places` to `unstable`.
        """
        self._counter[0] = 0
        if self._num_threads == 1:
            engine.step(self._counter_address, self._order, self._current[0], self._ticks, *batch)
            return
        if self._steps % _STEPS_BETWEEN_ORDERS == 1:
            self._order = np.argsort(-self._ticks)
        self._steps += 1
        shares = [(self._counter_address, self._order, current, self._ticks, *batch) for current in self._current]
        helping = [self._pool().submit(engine.step, *share) for share in shares[1:]]
        try:
            engine.step(*shares[0])
        finally:
            wait(helping)  # whatever happens here, they use the arrays of this step
        for helper in helping:
            helper.result()

    def environment_of(self, thread: int) -> int | None:
        """Returns the environment that a thread (`threading.get_ident`) is at, None if it is at none."""
        for env, identity in self._current:
            if env >= 0 and identity == thread:
                return int(env)
        return None

    def close(self) -> None:
        """Ends the threads."""
        if self._helpers is not None and self._process == os.getpid():
            self._helpers.shutdown()
        self._helpers = None

    def _pool(self) -> ThreadPoolExecutor:
        if self._helpers is None or self._process != os.getpid():
            self._helpers = ThreadPoolExecutor(self._num_threads - 1, thread_name_prefix="simulation")
            self._process = os.getpid()
        return self._helpers

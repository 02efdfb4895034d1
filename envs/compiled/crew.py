"""The threads that step a batch together."""

from __future__ import annotations

import os
import threading
import weakref

import numpy as np
import numpy.typing as npt

from envs.compiled import engine
from envs.compiled.native import Semaphores
from envs.simulator import Actor

_CALLS_BETWEEN_ORDERS = 8


class Crew:
    """Shares the environments of a batch out among threads.

    Each thread takes one environment after the other, those first that took longest in a recent step, so that no thread
    is left alone with a slow one at the end. An actor's groups are shared out in the same way. The calling thread is
    one of them; the others wait in compiled code, so that waking them needs neither Python nor its lock. They end with
    the crew or the process; a forked process, in which they are missing, makes its own.
    """

    def __init__(self, num_threads: int, num_envs: int, batch: engine.Batch | None) -> None:
        """Starts no thread yet.

        Args:
            num_threads: At least 1.
            num_envs: Environments of the batch.
            batch: Its arrays; None for a crew that has nothing to step.
        """
        self._num_threads, self._batch = num_threads, batch
        self._shared = engine.Crew(
            gates=np.zeros(1, np.int64),
            stop=np.zeros(1, np.bool_),
            counters=np.zeros(3, np.int64),
            order=np.arange(num_envs),
            current=np.full((num_threads, 2), -1, np.int64),
            ticks=np.zeros(num_envs, np.int64),
        )
        self._orders = engine.Orders(np.zeros(2, np.int64), np.zeros(3, np.int64), np.zeros(1, np.bool_))
        self._helpers_of = 0  # the process in which they were started
        self._calls = 0

    def step(self) -> None:
        """Steps all environments with the actions of the first turn."""
        self._orders.actor[:] = 0
        self._run(1)

    def roll(self, actor: Actor, num_steps: int, *, until_success: bool) -> int:
        """Steps all environments with an actor's actions and returns how often; see `envs.simulator`."""
        self._orders.actor[:] = actor.function, actor.context, actor.num_groups
        self._orders.until_success[0] = until_success
        self._run(num_steps)
        return int(self._orders.turns[1])

    def environment_of(self, thread: int) -> int | None:
        """Returns the environment that a thread (`threading.get_ident`) is at, None if it is at none."""
        for env, identity in self._shared.current:
            if env >= 0 and identity == thread:
                return int(env)
        return None

    def close(self) -> None:
        """Ends the threads; a step would start new ones."""
        if self._helpers_of:
            self._end()
            self._helpers_of = 0

    def _run(self, num_turns: int) -> None:
        if self._num_threads > 1:
            if self._helpers_of != os.getpid():
                self._start_helpers()
            if self._calls % _CALLS_BETWEEN_ORDERS == 1:
                self._shared.order[:] = np.argsort(-self._shared.ticks)
            self._calls += 1
        self._orders.turns[0] = num_turns
        assert self._batch is not None
        engine.run(0, self._shared, self._orders, self._batch)

    def _start_helpers(self) -> None:
        semaphores = Semaphores(self._num_threads)
        gates = np.array([semaphores.address(member) for member in range(self._num_threads)])
        self._shared = self._shared._replace(gates=gates, stop=np.zeros(1, np.bool_))
        arguments = (self._shared, self._orders, self._batch)
        helpers = [
            threading.Thread(target=engine.run, args=(member, *arguments), daemon=True, name=f"simulation-{member}")
            for member in range(1, self._num_threads)
        ]
        for helper in helpers:
            helper.start()
        self._helpers_of = os.getpid()
        # also when the crew is forgotten, and before the interpreter ends
        self._end = weakref.finalize(self, _end, semaphores, self._shared.stop, helpers, os.getpid())


def _end(semaphores: Semaphores, stop: npt.NDArray[np.bool_], helpers: list[threading.Thread], process: int) -> None:
    if process != os.getpid():
        return  # forked: there are none here
    stop[0] = True
    for member, helper in enumerate(helpers, start=1):
        semaphores.post(member)
        helper.join()

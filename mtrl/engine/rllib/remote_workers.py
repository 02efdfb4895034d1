"""Rollout workers as a source of blocks for the asynchronous loop."""

from __future__ import annotations

import math
import operator
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace

from mtrl.data import Block, Episodes
from mtrl.engine.rllib.calls import Calls, refuse_deadly
from mtrl.learners.protocol import CollectRequest

_POLL_S = 0.001
_MOST_AHEAD = 2000
"""Steps that an environment may be ahead of another one, so that tasks get equal shares, and a restart is bridged."""


class RemoteWorkers:
    """Keeps workers busy, their environments in step with one another, and forgets what was under way at dead ones.

    Attributes:
        largest_delivery: Most updates that one delivery ever made due.
    """

    def __init__(
        self,
        calls: Calls,
        submit: Callable[[CollectRequest, int], bool],
        num_envs: Sequence[int],
        requests_in_flight: int,
        steps_per_request: int,
    ) -> None:
        """Starts with nothing under way.

        Args:
            calls: To the workers.
            submit: Hands a request to a worker; False if it cannot take it.
            num_envs: Environments of each worker.
            requests_in_flight: Requests that each worker has at once.
            steps_per_request: Least steps of each environment in a request, if so many are wanted.
        """
        self._calls, self._submit, self._num_envs = calls, submit, num_envs
        self._most, self._steps_per_request = requests_in_flight, steps_per_request
        self._under_way: list[dict[int, int]] = [{} for _ in num_envs]  # by worker: number of the request → its steps
        self._early: list[dict[int, Block]] = [{} for _ in num_envs]  # blocks that came before an earlier one
        self._number = 0  # of the last request
        self._delivered = [0] * len(num_envs)  # steps of each environment, by worker
        self._aim = 0.0  # of the same
        self._dead: set[int] = set()
        self._deaths = list(calls.deaths)
        self._deaths_then = list(calls.deaths)  # when the worker delivered last
        self.largest_delivery = 1.0

    def aim_at(self, env_steps: int) -> None:
        """Sets how many environment steps are wanted from now on, all environments alike."""
        delivered = sum(map(operator.mul, self._delivered, self._num_envs))
        self._aim = (delivered + env_steps) / sum(self._num_envs)

    @property
    def env_steps_under_way(self) -> int:
        """Environment steps that were requested and not delivered."""
        pairs = zip(self._under_way, self._num_envs, strict=True)
        return sum(sum(requests.values()) * count for requests, count in pairs)

    def has_room(self) -> bool:
        """Returns whether a worker can take a request.

        Raises:
            WorkersLostError: If one has been dead for too long, or died over every request.
        """
        self._look_for_dead()
        self._calls.refuse_lost()
        for worker, deaths in enumerate(self._deaths):
            refuse_deadly(worker, deaths - self._deaths_then[worker], "request after another")
        return self._next() is not None

    def submit(self, request: CollectRequest, most_env_steps: int) -> bool:
        """Hands a request to the worker that needs it most; returns False if it died in the meantime."""
        worker = self._next()
        assert worker is not None, "has_room comes before submit"
        wanted = min(most_env_steps / self._num_envs[worker], self._aim - self._steps()[worker])
        amount = min(max(request.amount, self._steps_per_request), math.ceil(wanted))
        self._number += 1
        if not self._submit(replace(request, amount=amount, number=self._number), worker):
            self._look_for_dead()
            return False
        self._under_way[worker][self._number] = amount
        return True

    def ready(self, timeout_s: float) -> list[Block]:
        """Returns the blocks that are complete, those of a worker in the order of its requests.

        What dead workers had under way is forgotten; a block that arrives after all is dropped: it was requested again.
        """
        until = time.monotonic() + timeout_s
        while True:
            for worker, block in self._calls.ready():
                if block.number in self._under_way[worker]:
                    self._early[worker][block.number] = without_views(block)
            blocks = [block for worker in range(len(self._early)) for block in self._in_order(worker)]
            self._look_for_dead()
            if blocks or time.monotonic() >= until:
                return blocks
            time.sleep(_POLL_S)

    def _in_order(self, worker: int) -> Iterator[Block]:
        """Yields a worker's blocks up to the first request that is not answered."""
        requests, early = self._under_way[worker], self._early[worker]
        while requests and (number := next(iter(requests))) in early:
            self._delivered[worker] += requests.pop(number)
            self._deaths_then[worker] = self._deaths[worker]
            yield early.pop(number)

    def _next(self) -> int | None:
        """Returns the worker whose environments have the fewest steps, of those that can take a request."""
        steps = self._steps()
        limit = min(self._aim, min(steps) + _MOST_AHEAD)
        able = [
            worker
            for worker, requests in enumerate(self._under_way)
            if worker not in self._dead and len(requests) < self._most and steps[worker] < limit
        ]
        return min(able, key=steps.__getitem__, default=None)

    def _steps(self) -> list[int]:
        """Returns the steps of each environment, by worker, that are delivered or under way."""
        return [done + sum(found.values()) for done, found in zip(self._delivered, self._under_way, strict=True)]

    def _look_for_dead(self) -> None:
        """Forgets what was under way at workers that died since the last look."""
        self._dead = self._calls.dead()
        for worker, deaths in enumerate(self._calls.deaths):
            if deaths != self._deaths[worker]:
                self._under_way[worker].clear()
                self._early[worker].clear()
                self._deaths[worker] = deaths


def without_views(block: Block) -> Block:
    """Returns the block with episodes of its own.

    They are kept for the log, and as views into the object store they would keep whole blocks in it.
    """
    return replace(block, episodes=Episodes.concatenate([block.episodes]))

"""One call to every rollout worker: who gets which arguments, and how a failure comes back with its traceback."""

from __future__ import annotations

import functools
import traceback
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from ray.exceptions import RayError
from ray.rllib.env.env_runner_group import EnvRunnerGroup


@dataclass(frozen=True)
class Answer:
    """What a worker hands back."""

    worker: int
    """Its number, from 0."""
    result: Any = None
    """What the call returned."""
    failure: str | None = None
    """Where it was running and the traceback, if it raised."""


class Worker(Protocol):
    """What `answered` needs to know of a worker."""

    worker: int
    """Its number, from 0."""

    def describe(self) -> str:
        """Names worker, tasks and seed."""


def answered(method: Callable[..., Any]) -> Callable[..., Answer]:
    """Makes a worker's method return an Answer, also when it fails.

    An exception that left the method would end the worker's process, and the driver would see only that it died.
    """

    @functools.wraps(method)
    def call(worker: Worker, **kwargs: Any) -> Answer:
        try:
            return Answer(worker.worker, method(worker, **kwargs))
        except Exception:
            return Answer(worker.worker, failure=f"{worker.describe()} failed:\n{traceback.format_exc()}")

    return call


def call_workers(
    group: EnvRunnerGroup, method: Callable[..., Answer], arguments: Sequence[dict[str, Any]]
) -> list[Any]:
    """Calls an `answered` method of every worker, in the driver if there is no remote one, and waits for all.

    Args:
        group: The workers.
        method: As `BlockEnvRunner.collect`, unbound.
        arguments: Keyword arguments of each worker, in order.

    Returns:
        The results in the order of the workers.

    Raises:
        RuntimeError: If a worker failed or died; the text names it and holds its traceback.
    """
    if group.num_remote_env_runners() == 0:
        answers = group.foreach_env_runner(lambda worker: method(worker, **arguments[0]))
    else:
        answers = _call_remote(group, method, arguments)
    for answer in answers:
        if answer.failure is not None:
            raise RuntimeError(answer.failure)
    found = {answer.worker: answer.result for answer in answers}
    missing = [worker for worker in range(len(arguments)) if worker not in found]
    if missing:
        raise RuntimeError(f"rollout workers {missing} gave no answer to {method.__name__}: they died before")
    return [found[worker] for worker in range(len(arguments))]


def _call_remote(
    group: EnvRunnerGroup, method: Callable[..., Answer], arguments: Sequence[dict[str, Any]]
) -> list[Answer]:
    try:
        # RLlib keeps arguments with their worker only if functions and arguments are lists and the ids are given
        return group.foreach_env_runner(
            [method] * len(arguments),
            kwargs=list(arguments),
            local_env_runner=False,
            remote_worker_ids=[worker + 1 for worker in range(len(arguments))],
        )
    except RayError as error:
        alive = group.healthy_env_runner_ids()
        dead = [worker for worker in range(len(arguments)) if worker + 1 not in alive]
        raise RuntimeError(f"rollout workers {dead} died during {method.__name__}: {error}") from error

"""Which tasks a meta-learner trains on: a batch of sampled tasks, each a task class with one of its goals."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from envs.episodes import Assignment
from mtrl.config import ConfigError, RunConfig
from mtrl.networks.build import Suite
from mtrl.seeding import numpy_generator


class TaskSampler:
    """Draws batches in which every task class stands equally often, each time with another goal of its own."""

    def __init__(self, config: RunConfig, suite: Suite) -> None:
        """Begins the stream of the run.

        Raises:
            ConfigError: If the batch does not divide by the number of task classes.
        """
        self._per_class = tasks_per_class(config, suite.num_tasks)
        self._num_tasks, self._num_goals = suite.num_tasks, config.env.num_goals
        self._draws = numpy_generator(config.seed, "meta tasks")

    def sample(self) -> tuple[Assignment, ...]:
        """Returns a batch; slot i is of task class i mod the number of classes."""
        goals = [self._draws.permutation(self._num_goals) for _ in range(self._num_tasks)]
        return tuple(
            Assignment(task, (int(goals[task][copy % self._num_goals]),))
            for copy in range(self._per_class)
            for task in range(self._num_tasks)
        )

    def state_dict(self) -> dict[str, Any]:
        """Returns the state of the stream, JSON-able."""
        return dict(self._draws.bit_generator.state)

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Takes over a state made by `state_dict`."""
        self._draws.bit_generator.state = state


def tasks_per_class(config: RunConfig, num_tasks: int) -> int:
    """Returns how many sampled tasks of each class are in a batch.

    Raises:
        ConfigError: If the batch does not divide by the number of task classes.
    """
    size = config.meta.batch_size
    if size % num_tasks:
        nearest = max(num_tasks, round(size / num_tasks) * num_tasks)
        raise ConfigError(
            "meta.batch_size",
            f"{size} sampled tasks cannot be shared evenly by the {num_tasks} task classes of {config.env.benchmark}; "
            f"take a multiple of {num_tasks}, as {nearest}",
        )
    return size // num_tasks

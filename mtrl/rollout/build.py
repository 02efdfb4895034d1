"""From the configuration to environments and collectors; the same environments however many workers share them."""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import Any

import envs
from envs.benchmarks import get_benchmark, sizes
from envs.costs import step_cost_us
from envs.episodes import Assignment
from envs.making import choose_backend
from mtrl.config import ConfigError, RunConfig
from mtrl.learners.build import build_policy
from mtrl.networks.build import Suite
from mtrl.rollout.collector import Collector
from mtrl.rollout.shares import balanced
from mtrl.seeding import stream_seed, torch_generator


def task_names(config: RunConfig) -> tuple[str, ...]:
    """Returns the training tasks in official order.

    Raises:
        ConfigError: If benchmark or tasks are not known.
    """
    try:
        return get_benchmark(config.env.benchmark, config.env.tasks).train_tasks
    except ValueError as error:
        key = "env.tasks" if "task" in str(error) else "env.benchmark"
        raise ConfigError(key, str(error)) from error


def build_suite(config: RunConfig) -> Suite:
    """Returns what a learner must know of the training environments, without building any.

    Raises:
        ConfigError: If benchmark or tasks are not known, or the backend cannot simulate them here.
    """
    names = task_names(config)
    try:
        choose_backend(names, config.env.reward_version, config.env.backend)
    except ValueError as error:
        raise ConfigError("env.backend", str(error)) from error
    obs_dim, action_dim = sizes(names)
    return Suite(names, obs_dim, action_dim)


def build_envs(config: RunConfig, assignments: list[Assignment], *, terminate_on_success: bool) -> Any:
    """Returns a vector environment of the training tasks with one environment per assignment."""
    return envs.make(
        config.env.benchmark,
        tasks=config.env.tasks,
        seed=config.seed if config.env.goal_seed is None else config.env.goal_seed,
        assignments=assignments,
        max_episode_steps=config.env.max_episode_steps,
        reward_version=config.env.reward_version,
        backend=config.env.backend,
        num_threads=config.env.num_threads or (1 if config.engine == "rllib" else _usable_cores()),
        num_goals=config.env.num_goals,
        terminate_on_success=terminate_on_success,
    )


def _usable_cores() -> int:
    # not every system can say which cores a process may use
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def training_assignments(config: RunConfig) -> list[Assignment]:
    """Returns what each training environment runs: every task with all its goals, all tasks before the next copy."""
    goals = tuple(range(config.env.num_goals))
    return [Assignment(task, goals) for _ in range(config.env.copies) for task in range(len(task_names(config)))]


def shares(config: RunConfig, assignments: Sequence[Assignment], num_workers: int) -> list[list[int]]:
    """Shares environments out so that all workers take about as long for as many steps of all of theirs.

    What a run learns depends on it, so it depends on the settings alone, and not on the machine at hand.

    Returns:
        By worker, the numbers of its environments in ascending order.
    """
    names = task_names(config)
    costs = [step_cost_us(names[one.task_id], config.env.backend) * len(one.goals) for one in assignments]
    return balanced(costs, num_workers)


def build_collector(
    config: RunConfig, suite: Suite, worker: int = 0, num_workers: int = 1, streams_of: int | None = None
) -> Collector:
    """Returns a worker's collector; goals of an environment do not depend on the number of workers.

    Args:
        config: Of the run.
        suite: Of its environments.
        worker: Number of the worker.
        num_workers: How many share the environments.
        streams_of: A number that no other collector of this worker had; so are its random streams and episode numbers.
    """
    everything = training_assignments(config)
    mine = shares(config, everything, num_workers)[worker]
    again = () if streams_of is None else (streams_of,)
    return Collector(
        build_envs(config, [everything[env] for env in mine], terminate_on_success=False),
        build_policy(config, suite),
        torch_generator(config.seed, "policy noise", worker, *again),
        seeds=[stream_seed(config.seed, "training goals", env, *again) for env in mine],
        first_episode_id=streams_of or 0,  # so that no episode has the number of an earlier one
    )

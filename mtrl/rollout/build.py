"""From the configuration to environments and collectors; the same environments however many workers share them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import envs
from envs.benchmarks import Benchmark, Split, get_benchmark, sizes
from envs.costs import step_cost_us
from envs.episodes import Assignment
from envs.making import choose_backend
from mtrl.config import META_ALGORITHMS, ConfigError, RunConfig
from mtrl.learners.build import build_policy
from mtrl.learners.meta_tasks import tasks_per_class
from mtrl.networks.build import Suite
from mtrl.rollout.collector import Collector
from mtrl.rollout.shares import balanced
from mtrl.seeding import stream_seed, torch_generator


def benchmark_of(config: RunConfig) -> Benchmark:
    """Returns the benchmark of a run.

    Raises:
        ConfigError: If benchmark or tasks are not known.
    """
    try:
        return get_benchmark(config.env.benchmark, config.env.tasks, config.env.test_tasks)
    except ValueError as error:
        key = "env.tasks" if "task" in str(error) else "env.benchmark"
        raise ConfigError(key, str(error)) from error


def task_names(config: RunConfig) -> tuple[str, ...]:
    """Returns the training tasks in official order.

    Raises:
        ConfigError: If benchmark or tasks are not known.
    """
    return benchmark_of(config).train_tasks


def build_suite(config: RunConfig) -> Suite:
    """Returns what a learner must know of the training environments, without building any.

    Raises:
        ConfigError: If benchmark or tasks are not known, the backend cannot simulate them here, or the algorithm is for
            benchmarks of another kind.
    """
    benchmark = benchmark_of(config)
    names = benchmark.train_tasks
    try:
        choose_backend((*names, *benchmark.test_tasks), config.env.reward_version, config.env.backend)
    except ValueError as error:
        raise ConfigError("env.backend", str(error)) from error
    if config.algorithm in META_ALGORITHMS:
        _refuse_for_meta_learning(config, benchmark)
    obs_dim, action_dim = sizes(names)
    return Suite(names, obs_dim, action_dim, benchmark.test_tasks)


def _refuse_for_meta_learning(config: RunConfig, benchmark: Benchmark) -> None:
    if not benchmark.test_tasks:
        raise ConfigError(
            "algorithm",
            f"{config.algorithm} adapts to held-out tasks, and {benchmark.name} holds none out; take "
            "env.benchmark=ML1, ML10, ML45 or custom-ml, or algorithm=mtsac",
        )
    if benchmark.overlap and not config.meta.allow_overlap:
        raise ConfigError(
            "env.benchmark",
            f"{benchmark.name} tests on {', '.join(benchmark.overlap)}, which it also trains on; take ML10 or ML45, "
            "name tasks and test tasks of your own with custom-ml, or set meta.allow_overlap=true",
        )


def build_envs(
    config: RunConfig, assignments: list[Assignment], *, terminate_on_success: bool, split: Split = "train"
) -> Any:
    """Returns a vector environment of the tasks of a split with one environment per assignment."""
    return envs.make(
        config.env.benchmark,
        tasks=config.env.tasks,
        test_tasks=config.env.test_tasks,
        goal_visible=config.env.goal_visible,
        split=split,
        seed=config.seed if config.env.goal_seed is None else config.env.goal_seed,
        assignments=assignments,
        max_episode_steps=config.env.max_episode_steps,
        reward_version=config.env.reward_version,
        backend=config.env.backend,
        num_threads=config.simulation_threads(),
        num_goals=config.env.num_goals,
        terminate_on_success=terminate_on_success,
    )


def training_assignments(config: RunConfig) -> list[Assignment]:
    """Returns what each training environment runs: every task with all its goals, all tasks before the next copy.

    For meta-learning it is where environments begin; their learner assigns them sampled tasks of the same classes.

    Raises:
        ConfigError: If a batch of sampled tasks does not divide by the number of task classes.
    """
    goals, num_tasks = tuple(range(config.env.num_goals)), len(task_names(config))
    sampled = tasks_per_class(config, num_tasks) if config.algorithm in META_ALGORITHMS else 1
    return [Assignment(task, goals) for _ in range(config.env.copies * sampled) for task in range(num_tasks)]


def shares(
    config: RunConfig, assignments: Sequence[Assignment], num_workers: int, names: Sequence[str] = ()
) -> list[list[int]]:
    """Shares environments out so that all workers take about as long for as many steps of all of theirs.

    What a run learns depends on it, so it depends on the settings alone, and not on the machine at hand.

    Args:
        config: Of the run.
        assignments: What each environment runs.
        num_workers: How many share them.
        names: Name of each task id, if these are not the training tasks.

    Returns:
        By worker, the numbers of its environments in ascending order.
    """
    names = names or task_names(config)
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

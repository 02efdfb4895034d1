"""The AlgorithmConfig: a run in RLlib's words. The settings themselves are in `mtrl.config`."""

from __future__ import annotations

from dataclasses import replace
from typing import Self

from ray.rllib.algorithms.algorithm_config import AlgorithmConfig
from ray.rllib.core.rl_module.rl_module import RLModuleSpec

from envs.making import choose_backend
from mtrl.config import META_ALGORITHMS, ConfigError, RunConfig
from mtrl.engine.rllib.env_runner import BlockEnvRunner
from mtrl.engine.rllib.learner import CoreLearner
from mtrl.engine.rllib.module import PolicyModule
from mtrl.networks.build import Suite
from mtrl.rollout.build import training_assignments


class MtrlConfig(AlgorithmConfig):
    """Carries the run and its suite to every process, and sets what the adapters need of RLlib."""

    def __init__(self, algo_class: type | None = None) -> None:
        super().__init__(algo_class=algo_class)
        self.run: RunConfig | None = None
        self.suite: Suite | None = None
        self.env_runners(
            env_runner_cls=BlockEnvRunner,
            # connectors work on RLlib's episodes; blocks need none, so there are no states of theirs to merge
            add_default_connectors_to_env_to_module_pipeline=False,
            add_default_connectors_to_module_to_env_pipeline=False,
            merge_env_runner_states=False,
        )
        self.learners(num_learners=0, add_default_connectors_to_learner_pipeline=False)
        # Ray starts a lost worker again, at once; `calls.py` waits for it
        self.fault_tolerance(restart_failed_env_runners=True, delay_between_env_runner_restarts_s=1.0)
        self.debugging(log_level="ERROR")

    def for_run(self, run: RunConfig, suite: Suite) -> Self:
        """Takes over what a run asks for, with the backend that this machine chooses for all.

        Raises:
            ConfigError: If there are more workers than environments.
        """
        refuse_idle_workers(run)
        self.run, self.suite = _with_one_backend(run, suite), suite
        self.evaluation(
            evaluation_num_env_runners=run.rllib.num_evaluators if run.eval.parallel else 0, evaluation_interval=None
        )
        self.resources(num_cpus_for_main_process=run.torch_threads or 1)  # reserved by Tune, else nobody asks
        return self.env_runners(
            num_env_runners=run.rllib.num_env_runners,
            max_requests_in_flight_per_env_runner=run.requests_in_flight,
            num_cpus_per_env_runner=run.rllib.num_cpus_per_env_runner,  # type: ignore[arg-type]  # takes fractions too
            create_local_env_runner=run.rllib.num_env_runners == 0,
        )

    def run_and_suite(self) -> tuple[RunConfig, Suite]:
        """Returns the run and its suite.

        Raises:
            ValueError: If `for_run` was not called.
        """
        if self.run is None or self.suite is None:
            raise ValueError("this MtrlConfig carries no run; call for_run(config, suite) before building from it")
        return self.run, self.suite

    def validate(self) -> None:
        """Checks that there is a run, and RLlib's settings."""
        self.run_and_suite()
        super().validate()

    def get_default_learner_class(self) -> type[CoreLearner]:
        """Returns the class of the learner."""
        return CoreLearner

    def get_default_rl_module_spec(self) -> RLModuleSpec:
        """Returns how the module is made."""
        return RLModuleSpec(module_class=PolicyModule)


def refuse_idle_workers(run: RunConfig) -> None:
    """Checks that every worker has an environment.

    Raises:
        ConfigError: If one has none.
    """
    num_envs = len(training_assignments(run))
    more = "meta.batch_size" if run.algorithm in META_ALGORITHMS else "env.copies"
    if run.rllib.num_env_runners > num_envs:
        raise ConfigError(
            "rllib.num_env_runners",
            f"{run.rllib.num_env_runners} workers would share {num_envs} environments; "
            f"set it to at most {num_envs}, or raise {more}",
        )


def _with_one_backend(run: RunConfig, suite: Suite) -> RunConfig:
    """Returns the run with what `auto` means here: elsewhere it might mean something else, and numbers would differ."""
    tasks = (*suite.task_names, *suite.test_task_names)
    backend = choose_backend(tasks, run.env.reward_version, run.env.backend)
    return run if backend == "toy" else replace(run, env=replace(run.env, backend=backend))

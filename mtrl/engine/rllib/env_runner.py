"""The EnvRunner: a collector and an evaluator in a rollout worker. It executes requests and knows no algorithm."""

from __future__ import annotations

import math
import time
from collections.abc import Collection, Mapping
from dataclasses import replace
from functools import cached_property
from typing import TYPE_CHECKING, Any

import gymnasium as gym
import numpy as np
import ray
import torch
from ray.rllib.core import COMPONENT_RL_MODULE, DEFAULT_MODULE_ID
from ray.rllib.env import INPUT_ENV_SINGLE_SPACES, INPUT_ENV_SPACES
from ray.rllib.env.env_runner import EnvRunner
from ray.rllib.utils.checkpoints import Checkpointable
from ray.rllib.utils.metrics import NUM_ENV_STEPS_SAMPLED_LIFETIME, NUM_EPISODES

from mtrl.data import Array, Block, Episodes
from mtrl.engine.rllib.calls import answered
from mtrl.engine.rllib.module import policy_weights
from mtrl.engine.threads import one_thread
from mtrl.evaluators import build_evaluator
from mtrl.learners.protocol import CollectRequest, Mode, Unit
from mtrl.rollout.build import build_collector, shares, training_assignments
from mtrl.rollout.collector import Collector

if TYPE_CHECKING:
    from mtrl.engine.rllib.config import MtrlConfig


class BlockEnvRunner(EnvRunner, Checkpointable):
    """Runs one worker's share of the environments.

    The engine calls `build`, `collect` and `evaluate`; weights come with each call. `sample` is for RLlib's own callers
    and acts with the weights that RLlib synchronised last.
    """

    def __init__(self, *, config: MtrlConfig, **kwargs: Any) -> None:
        """Takes its place among the workers; environments are built by `build`, where a failure can be told."""
        super().__init__(config=config, **kwargs)
        self._run, self._suite = config.run_and_suite()
        remote = bool(self.worker_index)  # RLlib counts remote workers from 1; 0 is a worker in the driver
        self.worker, self._num_shares = (self.worker_index - 1, self.num_workers) if remote else (0, 1)
        self.timeout_s = self._run.rllib.worker_timeout_s if remote else None
        if remote:
            # workers share the machine; more threads each would only compete
            torch.set_num_threads(1)
        self._mine = shares(self._run, training_assignments(self._run), self._num_shares)[self.worker]
        self._evaluator = build_evaluator(self._run, self._suite, self.worker, self._num_shares)
        self._synced: dict[str, Array] = {}
        self._synced_version = -1

    def describe(self) -> str:
        """Names worker, tasks, the goals that they run, and the seed."""
        names = self._suite.task_names
        if "_collector" in self.__dict__:
            found = [f"{names[task]} goal {goal}" for task, goal in self._collector.running()]
        else:
            everything = training_assignments(self._run)
            found = [names[task] for task in sorted({everything[env].task_id for env in self._mine})]
        return f"rollout worker {self.worker} ({', '.join(found)}; seed {self._run.seed})"

    @answered
    def build(self) -> None:
        """Builds the environments, if they are not there yet."""
        _ = self._collector

    @answered
    def collect(self, *, request: CollectRequest, weights: Mapping[str, Array]) -> Block:
        """Executes this worker's part of a request.

        Args:
            request: Without weights.
            weights: The request's weights; views of shared memory, so that they cannot be written to.
        """
        with one_thread():
            block = self._collector.collect(replace(request, weights=_copied(weights)))
        return replace(block, worker=self.worker)

    @answered
    def evaluate(self, *, weights: Mapping[str, Array], num_goals: int) -> Episodes:
        """Runs this worker's part of an evaluation."""
        with one_thread():
            return self._evaluator.run(_copied(weights), num_goals)

    @answered
    def collector_state(self) -> dict[str, Any]:
        """Returns where this worker's collection stands."""
        return self._collector.get_state()

    @answered
    def begin_anew(self, *, streams_of: int) -> None:
        """Builds the environments anew, with random streams of their own."""
        if "_collector" in self.__dict__:
            self._collector.close()
        self._collector = self._built(streams_of)

    @answered
    def restore_collector(self, *, state: Mapping[str, Any]) -> None:
        """Goes on collecting from a state."""
        self._collector.set_state(state)

    def sample(
        self,
        *,
        num_timesteps: int | None = None,
        num_episodes: int | None = None,
        explore: bool | None = None,
        random_actions: bool = False,
        **kwargs: Any,
    ) -> list[Block]:
        """Collects at least so many steps or episodes, all environments together, with the synchronised weights."""
        unit, wanted = (Unit.STEPS, num_timesteps) if num_episodes is None else (Unit.EPISODES, num_episodes)
        mode = Mode.DETERMINISTIC if explore is False else Mode.EXPLORE
        request = CollectRequest(
            weights=self._synced,
            version=self._synced_version,
            unit=unit,
            amount=math.ceil((wanted or 1) / len(self._mine)),
            mode=Mode.RANDOM if random_actions else mode,
        )
        block = self._collector.collect(request)
        self.metrics.log_value(NUM_ENV_STEPS_SAMPLED_LIFETIME, block.env_steps(), reduce="lifetime_sum")
        self.metrics.log_value(NUM_EPISODES, len(block.episodes), reduce="sum")
        return [block]

    def get_metrics(self) -> Any:
        """Returns what `sample` counted since the last call."""
        return self.metrics.reduce()

    def assert_healthy(self) -> None:
        """Passes if the constructor has finished."""
        assert self._evaluator is not None

    def get_spaces(self) -> dict[str, tuple[gym.Space[Any], gym.Space[Any]]]:
        """Returns the spaces of one environment under all names that RLlib asks for."""
        obs = gym.spaces.Box(-np.inf, np.inf, (self._suite.obs_dim,), np.float32)
        action = gym.spaces.Box(-1.0, 1.0, (self._suite.action_dim,), np.float32)
        return dict.fromkeys((INPUT_ENV_SPACES, INPUT_ENV_SINGLE_SPACES, DEFAULT_MODULE_ID), (obs, action))

    def get_state(
        self,
        components: str | Collection[str] | None = None,
        *,
        not_components: str | Collection[str] | None = None,
        **kwargs: Any,
    ) -> dict[str, Any]:
        """Returns the synchronised weights; environments in mid-episode belong to the run's own checkpoints."""
        return {COMPONENT_RL_MODULE: {DEFAULT_MODULE_ID: dict(self._synced)}}

    def set_state(self, state: Any) -> None:
        """Takes over the weights in a state, whatever their version; all of it or its weights may be an ObjectRef."""
        state = _resolved(state)
        if COMPONENT_RL_MODULE in state:
            modules = _resolved(state[COMPONENT_RL_MODULE])
            self._synced = _copied(policy_weights(modules[DEFAULT_MODULE_ID]))
            # negative and never the same twice, so that it is no version of a learner
            self._synced_version -= 1

    def get_ctor_args_and_kwargs(self) -> tuple[tuple[Any, ...], dict[str, Any]]:
        """Returns what a runner like this one is made from."""
        return (), {"config": self.config, "worker_index": self.worker_index}

    def stop(self) -> None:
        """Closes all environments."""
        if "_collector" in self.__dict__:
            self._collector.close()
        self._evaluator.close()

    @cached_property
    def _collector(self) -> Collector:
        # a worker that was started again has used its first streams already
        again = self.timeout_s is not None and ray.get_runtime_context().was_current_actor_reconstructed
        return self._built(time.time_ns() if again else None)

    def _built(self, streams_of: int | None) -> Collector:
        return build_collector(self._run, self._suite, self.worker, self._num_shares, streams_of)


def _copied(weights: Mapping[str, Array]) -> dict[str, Array]:
    """Returns copies: views of shared memory would keep it in use, and torch warns of memory it must not write to."""
    return {name: np.array(array) for name, array in weights.items()}


def _resolved(value: Any) -> Any:
    return ray.get(value) if isinstance(value, ray.ObjectRef) else value

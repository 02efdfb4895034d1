"""Multi-task learning from the newest episodes: one policy for all tasks, which is told the task.

A round collects whole episodes of every task with the newest policy and lets an `Improvement` learn from them: PPO
(`ppo.py`), TRPO (`trpo.py`) or PPO with task embeddings (`te_ppo.py`). Every task counts the same, however long its
episodes.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from mtrl.config import RunConfig
from mtrl.data import Array, Block, Metrics, Trajectories
from mtrl.learners.descent import TaskNetwork
from mtrl.learners.episodes import PolicyBatch
from mtrl.learners.protocol import CollectRequest, Mode, Unit
from mtrl.losses.policy_gradient import masked_mean
from mtrl.networks.build import Suite
from mtrl.networks.gaussian import kl_divergence
from mtrl.networks.plasticity import parameter_norm


class PolicyNetwork(TaskNetwork, Protocol):
    """A Gaussian policy for many tasks; `TaskGaussian` is one."""

    @property
    def log_std(self) -> Tensor:
        """The log standard deviation of each action dimension, [action_dim], without gradient."""

    def __call__(self, obs: Tensor, task_id: Tensor, numbers: Sequence[Tensor] | None = None) -> tuple[Tensor, Tensor]:
        """Returns mean and log standard deviation as `TaskGaussian.forward` does."""


class Improvement(Protocol):
    """What an algorithm does with the episodes of a round."""

    def batch(self, trajectories: Trajectories) -> PolicyBatch:
        """Returns what to learn from the episodes [task, episode, step, ...] of the policy as it is."""

    def improve(self, batch: PolicyBatch, gradient_steps: int, env_steps: int) -> tuple[Metrics, int]:
        """Changes the policy by what a batch [task, step, ...] says.

        Args:
            batch: From `batch`.
            gradient_steps: Made so far, which decides whether conflict of gradients is measured.
            env_steps: Of the run before those of the batch, which may decide the learning rate.

        Returns:
            What it found, and how many gradient steps it made.
        """

    def state_dict(self) -> dict[str, Any]:
        """Returns optimizer and streams."""

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Takes over a state made by `state_dict`."""


class MultiTaskOnPolicy:
    """Learns one policy for all tasks of a suite from its newest episodes."""

    on_policy = True
    replay = None

    def __init__(self, config: RunConfig, suite: Suite, network: nn.Module, improvement: Improvement) -> None:
        self._config, self._suite = config, suite
        self.network, self._improvement = network, improvement
        self._batch: PolicyBatch | None = None
        self._sent: dict[str, Array] | None = None
        self._version = 0
        self.env_steps = 0
        self.gradient_steps = 0

    @property
    def policy_network(self) -> nn.Module:
        """The policy."""
        return self.network

    def request(self) -> CollectRequest:
        """Asks for whole episodes of every environment."""
        return CollectRequest(
            weights=self.policy_weights(),
            version=self._version,
            unit=Unit.EPISODES,
            amount=self._config.on_policy.episodes,
            mode=Mode.EXPLORE,
        )

    def receive(self, blocks: Sequence[Block]) -> None:
        """Takes in the episodes of a round."""
        self._batch = self._improvement.batch(Trajectories.from_blocks(blocks, self._suite.num_tasks))
        self.env_steps += sum(block.env_steps() for block in blocks)

    def behind(self) -> int:
        """Returns 1 when the episodes of a round are there."""
        return int(self._batch is not None)

    def update(self) -> Metrics | None:
        """Makes all gradient steps of a round whose episodes are there."""
        if self._batch is None:
            return None
        env_steps = self.env_steps - int(self._batch.mask.sum())
        metrics, made = self._improvement.improve(self._batch, self.gradient_steps, env_steps)
        self.gradient_steps += made
        self._version += 1
        self._batch = self._sent = None
        return metrics

    def diagnostics(self) -> dict[str, Tensor]:
        """Returns the norm of the policy's parameters."""
        return {"plasticity/param_norm/policy": parameter_norm(self.network)}

    def policy_weights(self) -> dict[str, Array]:
        """Returns the policy's numbers; the same object until they change."""
        if self._sent is None:
            self._sent = {name: value.cpu().numpy().copy() for name, value in self.network.state_dict().items()}
        return self._sent

    def state_dict(self) -> dict[str, Any]:
        """Returns network, optimizer, streams, counters and the episodes of a round that has yet to be learned from."""
        return {
            "network": self.network.state_dict(),
            "improvement": self._improvement.state_dict(),
            "batch": {} if self._batch is None else self._batch.state_dict(),
            "env_steps": self.env_steps,
            "gradient_steps": self.gradient_steps,
            "version": self._version,
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Takes over a state made by `state_dict` of a learner of the same configuration."""
        self.load_weights(state)
        self._improvement.load_state_dict(state["improvement"])
        device = next(self.network.parameters()).device
        batch = {name: column.to(device) for name, column in state["batch"].items()}
        self._batch = PolicyBatch(**batch) if batch else None
        self.env_steps, self.gradient_steps = int(state["env_steps"]), int(state["gradient_steps"])
        self._version = int(state["version"])

    def forget_unfinished(self) -> None:
        """Does nothing: what is kept are whole episodes."""

    def load_weights(self, state: Mapping[str, Any]) -> None:
        """Takes over the policy only."""
        self.network.load_state_dict(state["network"])
        self._version += 1
        self._sent = None


@torch.no_grad()
def distribution(
    network: PolicyNetwork, batch: PolicyBatch, numbers: Sequence[Tensor] | None = None
) -> tuple[Tensor, Tensor]:
    """Returns mean [task, step, action_dim] and log standard deviation [1, 1, action_dim] in all states of a batch.

    Task by task, as the hidden layers of all states together may not fit into memory.

    Args:
        network: Of the policy.
        batch: [task, step, ...], row k of task k.
        numbers: In place of the network's own, [1, ...] each.
    """
    task_ids = torch.split(torch.arange(network.num_tasks, device=batch.obs.device), 1)
    states = torch.split(batch.obs, 1)
    parts = [network(obs, task_id, numbers) for obs, task_id in zip(states, task_ids, strict=True)]
    return torch.cat([mean for mean, _ in parts]), parts[0][1]


def mean_kl(old: tuple[Tensor, Tensor], new: tuple[Tensor, Tensor], mask: Tensor) -> Tensor:
    """Returns the divergence KL(old ‖ new) of policies given by `distribution`, mean over tasks of the mean of each."""
    return masked_mean(kl_divergence(*old, *new), mask).mean()


def continue_stream(stream: torch.Generator, state: Tensor) -> None:
    """Takes over the state of a stream, unless it was drawn from on another kind of device."""
    if state.shape == stream.get_state().shape:
        stream.set_state(state)

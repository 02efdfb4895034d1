"""From the configuration to networks."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from mtrl.config import NetworkConfig
from mtrl.networks.actor import Actor
from mtrl.networks.critic import NUM_CRITICS, Critics
from mtrl.networks.stack import StackShape

ACTOR_HEAD_RANGE = 1e-3
CRITIC_HEAD_RANGE = 3e-3


@dataclass(frozen=True)
class Suite:
    """What a learner must know of the environments."""

    task_names: tuple[str, ...]
    obs_dim: int
    action_dim: int

    @property
    def num_tasks(self) -> int:
        """The number of task classes."""
        return len(self.task_names)


def build_actor(config: NetworkConfig, suite: Suite, generator: torch.Generator) -> Actor:
    """Returns an actor for the suite; all random numbers come from `generator`."""
    multi_head = config.architecture == "multi_head"
    shape = StackShape(
        num_networks=1,
        num_tasks=suite.num_tasks,
        in_features=suite.obs_dim,
        out_features=2 * suite.action_dim,
        widths=config.actor_widths,
        activation=config.activation,
        layer_norm=config.actor_layer_norm,
        multi_head=multi_head,
        head_range=ACTOR_HEAD_RANGE,
    )
    return Actor(shape, generator)


def build_critics(config: NetworkConfig, suite: Suite, generator: torch.Generator) -> Critics:
    """Returns twin critics for the suite; all random numbers come from `generator`."""
    shape = StackShape(
        num_networks=NUM_CRITICS,
        num_tasks=suite.num_tasks,
        in_features=suite.obs_dim + suite.action_dim,
        out_features=1,
        widths=config.critic_widths,
        activation=config.activation,
        layer_norm=config.critic_layer_norm,
        multi_head=config.architecture == "multi_head",
        head_range=CRITIC_HEAD_RANGE,
    )
    return Critics(shape, generator)

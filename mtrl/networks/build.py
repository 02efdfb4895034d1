"""From the configuration to networks."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from mtrl.config import NetworkConfig, OnPolicyConfig, PearlConfig, Rl2Config, TePpoConfig
from mtrl.networks.actor import Actor
from mtrl.networks.context import ContextEncoder
from mtrl.networks.critic import NUM_CRITICS, Critics
from mtrl.networks.gaussian import GaussianNetwork, GaussianShape
from mtrl.networks.recurrent import RecurrentGaussian, RecurrentShape
from mtrl.networks.stack import NetworkStack, StackShape
from mtrl.networks.task_embedding import TaskEmbeddingGaussian
from mtrl.networks.task_gaussian import TaskGaussian

ACTOR_HEAD_RANGE = 1e-3
CRITIC_HEAD_RANGE = 3e-3


@dataclass(frozen=True)
class Suite:
    """What a learner must know of the environments."""

    task_names: tuple[str, ...]
    obs_dim: int
    action_dim: int
    test_task_names: tuple[str, ...] = ()
    """Task classes that are held out for meta-test; ML1 has its training task there, with other goals."""

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


def build_gaussian(
    config: NetworkConfig, on_policy: OnPolicyConfig, suite: Suite, generator: torch.Generator
) -> GaussianNetwork:
    """Returns a Gaussian policy that knows no tasks; all random numbers come from `generator`."""
    return GaussianNetwork(_gaussian_shape(config, on_policy, suite), generator)


def build_task_gaussian(
    config: NetworkConfig, on_policy: OnPolicyConfig, suite: Suite, generator: torch.Generator
) -> TaskGaussian:
    """Returns a Gaussian policy that is told the task; all random numbers come from `generator`."""
    return TaskGaussian(_gaussian_shape(config, on_policy, suite), suite.num_tasks, generator)


def build_recurrent(
    config: NetworkConfig, on_policy: OnPolicyConfig, rl2: Rl2Config, suite: Suite, generator: torch.Generator
) -> RecurrentGaussian:
    """Returns a policy with memory that sees the last action, reward and done beside the observation."""
    shape = RecurrentShape(
        in_features=suite.obs_dim + suite.action_dim + 2,
        action_dim=suite.action_dim,
        widths=config.actor_widths,
        activation=config.activation,
        hidden_size=rl2.hidden_size,
        initial_std=on_policy.initial_std,
        min_std=on_policy.min_std,
        max_std=rl2.max_std,
    )
    return RecurrentGaussian(shape, generator)


def build_latent_actor(config: NetworkConfig, suite: Suite, latent_dim: int, generator: torch.Generator) -> Actor:
    """Returns an actor that sees a latent variable behind the observation, and no task."""
    shape = StackShape(
        num_networks=1,
        num_tasks=0,
        in_features=suite.obs_dim + latent_dim,
        out_features=2 * suite.action_dim,
        widths=config.actor_widths,
        activation=config.activation,
        layer_norm=config.actor_layer_norm,
        multi_head=False,
        head_range=ACTOR_HEAD_RANGE,
    )
    return Actor(shape, generator)


def build_latent_critics(config: NetworkConfig, suite: Suite, latent_dim: int, generator: torch.Generator) -> Critics:
    """Returns twin critics of observation, latent variable and action, that are not told the task."""
    in_features = suite.obs_dim + latent_dim + suite.action_dim
    return Critics(_latent_critic_shape(config, NUM_CRITICS, in_features), generator)


def build_latent_value(
    config: NetworkConfig, suite: Suite, latent_dim: int, generator: torch.Generator
) -> NetworkStack:
    """Returns one value function of observation and latent variable, shaped like a critic."""
    return NetworkStack(_latent_critic_shape(config, 1, suite.obs_dim + latent_dim), generator)


def build_context_encoder(
    config: NetworkConfig, pearl: PearlConfig, suite: Suite, generator: torch.Generator
) -> ContextEncoder:
    """Returns PEARL's encoder of single transitions; all random numbers come from `generator`."""
    num_obs = 2 if pearl.next_obs_in_context else 1
    shape = StackShape(
        num_networks=1,
        num_tasks=0,
        in_features=num_obs * suite.obs_dim + suite.action_dim + 1,
        out_features=2 * pearl.latent_dim,
        widths=pearl.encoder_widths,
        activation=config.activation,
        layer_norm=False,
        multi_head=False,
        head_range=CRITIC_HEAD_RANGE,
    )
    return ContextEncoder(shape, generator)


def _latent_critic_shape(config: NetworkConfig, num_networks: int, in_features: int) -> StackShape:
    return StackShape(
        num_networks=num_networks,
        num_tasks=0,
        in_features=in_features,
        out_features=1,
        widths=config.critic_widths,
        activation=config.activation,
        layer_norm=config.critic_layer_norm,
        multi_head=False,
        head_range=CRITIC_HEAD_RANGE,
    )


def build_task_embedding(
    config: NetworkConfig, on_policy: OnPolicyConfig, te_ppo: TePpoConfig, suite: Suite, generator: torch.Generator
) -> TaskEmbeddingGaussian:
    """Returns a Gaussian policy with task embeddings; all random numbers come from `generator`."""
    shape = _gaussian_shape(config, on_policy, suite)
    return TaskEmbeddingGaussian(shape, suite.num_tasks, te_ppo.latent_dim, te_ppo.max_std, generator)


def build_inference(te_ppo: TePpoConfig, suite: Suite, generator: torch.Generator) -> NetworkStack:
    """Returns what predicts mean and log standard deviation of embeddings; all random numbers come from `generator`."""
    shape = StackShape(
        num_networks=1,
        num_tasks=0,
        in_features=te_ppo.window * suite.obs_dim + suite.action_dim,
        out_features=2 * te_ppo.latent_dim,
        widths=te_ppo.inference_widths,
        activation="tanh",
        layer_norm=False,
        multi_head=False,
        head_range=ACTOR_HEAD_RANGE,
    )
    return NetworkStack(shape, generator)


def _gaussian_shape(config: NetworkConfig, on_policy: OnPolicyConfig, suite: Suite) -> GaussianShape:
    return GaussianShape(
        in_features=suite.obs_dim,
        action_dim=suite.action_dim,
        widths=config.actor_widths,
        activation=config.activation,
        initial_std=on_policy.initial_std,
        min_std=on_policy.min_std,
    )

"""Name of an algorithm → its learner and its policy. A new algorithm is one entry here."""

from __future__ import annotations

from collections.abc import Callable

import torch

from mtrl.config import RunConfig
from mtrl.learners.maml import MamlAdapter, maml_ppo, maml_trpo
from mtrl.learners.mtsac import MultiTaskSac
from mtrl.learners.pearl import Pearl
from mtrl.learners.pearl_policy import PearlAdapter, PearlPolicy
from mtrl.learners.policies import GaussianPolicy, SacPolicy, TaskGaussianPolicy
from mtrl.learners.ppo import multi_task_ppo
from mtrl.learners.protocol import Adapter, Learner, Policy
from mtrl.learners.rl2 import Rl2
from mtrl.learners.rl2_policy import Rl2Adapter, Rl2Policy
from mtrl.learners.te_policy import TaskEmbeddingPolicy
from mtrl.learners.te_ppo import task_embedding_ppo
from mtrl.learners.trpo import multi_task_trpo
from mtrl.networks.build import Suite

LEARNERS: dict[str, Callable[[RunConfig, Suite, torch.device], Learner]] = {
    "mtsac": MultiTaskSac,
    "mtppo": multi_task_ppo,
    "mttrpo": multi_task_trpo,
    "te_ppo": task_embedding_ppo,
    "maml_trpo": maml_trpo,
    "maml_ppo": maml_ppo,
    "rl2_ppo": Rl2,
    "pearl": Pearl,
}
POLICIES: dict[str, Callable[[RunConfig, Suite], Policy]] = {
    "mtsac": lambda config, suite: SacPolicy(config.network, suite),
    "mtppo": TaskGaussianPolicy,
    "mttrpo": TaskGaussianPolicy,
    "te_ppo": TaskEmbeddingPolicy,
    "maml_trpo": GaussianPolicy,
    "maml_ppo": GaussianPolicy,
    "rl2_ppo": Rl2Policy,
    "pearl": PearlPolicy,
}
ADAPTERS: dict[str, Callable[[RunConfig, Suite], Adapter]] = {
    "maml_trpo": MamlAdapter,
    "maml_ppo": MamlAdapter,
    "rl2_ppo": Rl2Adapter,
    "pearl": PearlAdapter,
}
"""What adapts at meta-test; an algorithm that has none is evaluated as it is."""


def build_learner(config: RunConfig, suite: Suite, device: torch.device) -> Learner:
    """Returns the learner that the configuration names."""
    return LEARNERS[config.algorithm](config, suite, device)


def build_policy(config: RunConfig, suite: Suite) -> Policy:
    """Returns the policy that acts with weights of the configured learner."""
    return POLICIES[config.algorithm](config, suite)


def build_adapter(config: RunConfig, suite: Suite) -> Adapter:
    """Returns what adapts the configured algorithm's policy at meta-test."""
    return ADAPTERS[config.algorithm](config, suite)

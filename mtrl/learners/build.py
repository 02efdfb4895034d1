"""Name of an algorithm → its learner and its policy. A new algorithm is one entry here."""

from __future__ import annotations

from collections.abc import Callable

import torch

from mtrl.config import RunConfig
from mtrl.learners.mtsac import MultiTaskSac
from mtrl.learners.policies import SacPolicy
from mtrl.learners.protocol import Learner, Policy
from mtrl.networks.build import Suite

LEARNERS: dict[str, Callable[[RunConfig, Suite, torch.device], Learner]] = {"mtsac": MultiTaskSac}
POLICIES: dict[str, Callable[[RunConfig, Suite], Policy]] = {
    "mtsac": lambda config, suite: SacPolicy(config.network, suite),
}


def build_learner(config: RunConfig, suite: Suite, device: torch.device) -> Learner:
    """Returns the learner that the configuration names."""
    return LEARNERS[config.algorithm](config, suite, device)


def build_policy(config: RunConfig, suite: Suite) -> Policy:
    """Returns the policy that acts with weights of the configured learner."""
    return POLICIES[config.algorithm](config, suite)

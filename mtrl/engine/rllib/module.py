"""The RLModule: holds the learner's policy network for RLlib. It does not act; the policies of `mtrl.learners` do."""

from __future__ import annotations

from collections.abc import Mapping

from ray.rllib.core.rl_module.apis import InferenceOnlyAPI
from ray.rllib.core.rl_module.torch import TorchRLModule
from torch import nn

from mtrl.data import Array


class PolicyModule(TorchRLModule, InferenceOnlyAPI):
    """The weights that RLlib synchronises and saves; empty until a learner attaches its policy network."""

    def attach(self, network: nn.Module) -> None:
        """Shares the policy network of a learner: the same parameters, not a copy."""
        self.network = network

    def get_non_inference_attributes(self) -> list[str]:
        """Returns nothing: critics stay in the learner and never enter the module."""
        return []


def policy_weights(module_state: Mapping[str, Array]) -> dict[str, Array]:
    """Returns the weights that a policy loads, out of the state of a PolicyModule."""
    return {name.removeprefix("network."): array for name, array in module_state.items()}

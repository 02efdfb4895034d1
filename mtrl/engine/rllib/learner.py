"""The Learner: a shell around a learner of `mtrl.learners`, which brings its own losses, surgery and optimizers."""

from __future__ import annotations

from collections.abc import Collection
from typing import TYPE_CHECKING, Any

from ray.rllib.core import DEFAULT_MODULE_ID
from ray.rllib.core.learner.torch.torch_learner import TorchLearner

from mtrl.engine.rllib.module import PolicyModule
from mtrl.learners import protocol
from mtrl.learners.build import build_learner
from mtrl.learners.device import choose_device

if TYPE_CHECKING:
    from mtrl.engine.rllib.config import MtrlConfig

COMPONENT_CORE = "core"
"""Name of the state of the learner of the run within the state of the CoreLearner."""


class CoreLearner(TorchLearner):
    """Builds the run's learner and shows RLlib its policy network as the RLModule."""

    config: MtrlConfig
    core: protocol.Learner
    """The learner that does the work."""

    def build(self) -> None:
        """Builds RLlib's side, then the learner of the run."""
        super().build()
        run, suite = self.config.run_and_suite()
        self.core = build_learner(run, suite, choose_device(run.device))
        module = self.module[DEFAULT_MODULE_ID]
        assert isinstance(module, PolicyModule)
        if self.core.policy_network is not None:
            module.attach(self.core.policy_network)

    def get_state(
        self,
        components: str | Collection[str] | None = None,
        *,
        not_components: str | Collection[str] | None = None,
        **kwargs: Any,
    ) -> dict[str, Any]:
        """Returns RLlib's state and, unless only some components are asked for, that of the learner of the run."""
        state = super().get_state(components, not_components=not_components, **kwargs)
        if components is None:
            state[COMPONENT_CORE] = self.core.state_dict()
        return state

    def set_state(self, state: dict[str, Any]) -> None:
        """Takes over a state made by `get_state`."""
        super().set_state(state)
        if COMPONENT_CORE in state:
            self.core.load_state_dict(state[COMPONENT_CORE])

    def configure_optimizers_for_module(self, module_id: str, config: Any = None) -> None:
        """Registers nothing: the learner of the run has its optimizers."""

    def compute_loss_for_module(self, *, module_id: str, config: Any = None, batch: Any, fwd_out: Any) -> Any:
        """Refuses, because an update by RLlib would know neither replay nor surgery.

        Raises:
            NotImplementedError: Always.
        """
        raise NotImplementedError("call CoreLearner.core.update(); Learner.update() of RLlib is not used")

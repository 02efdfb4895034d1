"""MAML for policies (arXiv 1703.03400, section 5.3): parameters that policy gradient steps adapt to a task.

Each iteration explores a batch of sampled tasks with the common parameters, adapts them to each task by itself,
collects again with the adapted ones, and improves the common parameters by an outer step (`outer_step.py`) on what the
adapted policies achieved, as a function of the parameters before adaptation.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from envs.episodes import Assignment
from mtrl.config import RunConfig
from mtrl.data import Array, Block, Metrics, Trajectories
from mtrl.learners.adaptation import Adaptation, AdaptedPolicies
from mtrl.learners.episodes import PolicyBatch, policy_batch
from mtrl.learners.initial_parameters import InitialParameters
from mtrl.learners.meta_tasks import TaskSampler
from mtrl.learners.outer_step import ClippedSteps, OuterStep, TrustRegionStep
from mtrl.learners.protocol import CollectRequest, Mode, Unit
from mtrl.networks.build import Suite, build_gaussian
from mtrl.networks.gaussian import GaussianNetwork, entropy
from mtrl.seeding import torch_generator
from mtrl.surgery.build import build_surgery
from mtrl.surgery.gram import combine, gram


def maml_trpo(config: RunConfig, suite: Suite, device: torch.device) -> Maml:
    """Returns MAML with a trust region; errors as of `Maml`."""
    return Maml(config, suite, device, TrustRegionStep)


def maml_ppo(config: RunConfig, suite: Suite, device: torch.device) -> Maml:
    """Returns MAML with clipped steps, as ProMP; errors as of `Maml`."""
    return Maml(config, suite, device, ClippedSteps)


class Maml:
    """Learns parameters to adapt from. Its slots are the sampled tasks of an iteration."""

    on_policy = True
    replay = None

    def __init__(
        self,
        config: RunConfig,
        suite: Suite,
        device: torch.device,
        outer_step: Callable[[RunConfig, InitialParameters], OuterStep],
    ) -> None:
        """Builds the network; all random numbers come from streams of the seed.

        Raises:
            ConfigError: If the batch of tasks does not divide by the number of task classes, or surgery does not suit.
        """
        self._config, self._suite, self._device = config, suite, device
        self._sampler = TaskSampler(config, suite)
        self._surgery = build_surgery(config.surgery, suite.num_tasks)
        self._orders = torch_generator(config.seed, "surgery", device=device)
        self.network = build_gaussian(
            config.network, config.on_policy, suite, torch_generator(config.seed, "networks")
        ).to(device)
        self.adaptation = Adaptation(config.maml, self.network)
        self.initial = InitialParameters(config.maml, self.network, torch_generator(config.seed, "initial parameters"))
        self.outer_step = outer_step(config, self.initial)
        self._assignments: tuple[Assignment, ...] = ()
        self._phases: list[PolicyBatch] = []
        self._returns: list[Tensor] = []  # mean return of each task class, [task], by phase
        self._version = 0
        self._sent: dict[str, Array] | None = None
        self._acting: dict[str, Array] | None = None
        self.env_steps = 0
        self.gradient_steps = 0

    @property
    def policy_network(self) -> GaussianNetwork:
        """The network with the common parameters."""
        return self.network

    def request(self) -> CollectRequest:
        """Asks for episodes of newly sampled tasks with the common parameters, then with adapted ones."""
        if not self._phases and not self._assignments:
            self._assignments = self._sampler.sample()
            self.initial.draw(len(self._assignments))
        copies, slots = self._config.env.copies, tuple(range(len(self._assignments)))
        return CollectRequest(
            weights=self._acting_weights(),
            version=self._version,
            unit=Unit.EPISODES,
            amount=self._config.meta.episodes // copies,
            mode=Mode.EXPLORE,
            assignments=self._assignments * copies,
            slots=slots * copies,
        )

    def receive(self, blocks: Sequence[Block]) -> None:
        """Takes in the episodes of a phase."""
        trajectories = Trajectories.from_blocks(blocks, len(self._assignments))
        self._phases.append(policy_batch(trajectories, self._config.on_policy, self._device))
        rewards = torch.from_numpy(trajectories.reward * trajectories.mask)
        self._returns.append(self._by_class(rewards.sum(dim=2).mean(dim=1)).mean(dim=1))
        self.env_steps += sum(block.env_steps() for block in blocks)
        self._version += 1
        self._acting = None

    def behind(self) -> int:
        """Returns 1 when all phases of an iteration are there."""
        return int(len(self._phases) > self._config.maml.inner_steps)

    def update(self) -> Metrics | None:
        """Makes the outer step of an iteration whose episodes are all there."""
        if not self.behind():
            return None
        collected = sum(int(phase.mask.sum()) for phase in self._phases)
        found = self.outer_step(self.policies(), self.combined, self.env_steps - collected)
        samples = found.num_steps * collected
        values = {
            **found.values,
            "train/entropy": entropy(self.network.numbers[-1].detach()).mean(),
            "train/return_before_adaptation": self._returns[0],
            "train/return_after_adaptation": self._returns[-1],
        }
        if self.initial.weight:
            values["train/weight_penalty"] = torch.tensor(self.initial.own_penalty())
        self.gradient_steps += found.num_steps
        self._version += 1
        self._sent, self._acting = None, None
        self._assignments, self._phases, self._returns = (), [], []
        return Metrics({name: value.float() for name, value in values.items()}, num_samples=samples)

    def diagnostics(self) -> dict[str, Tensor]:
        """Returns nothing: what is worth a look is measured with every update."""
        return {}

    def policy_weights(self) -> dict[str, Array]:
        """Returns the common parameters; the same object until they change."""
        if self._sent is None:
            self._sent = _arrays(self.network.state_dict())
        return self._sent

    def state_dict(self) -> dict[str, Any]:
        """Returns network, streams, counters and the phases of an unfinished iteration."""
        return {
            "network": self.network.state_dict(),
            "initial": self.initial.state_dict(),
            "outer_step": self.outer_step.state_dict(),
            "sampler": self._sampler.state_dict(),
            "surgery": self._orders.get_state(),
            "assignments": [[one.task_id, list(one.goals)] for one in self._assignments],
            "phases": {str(number): phase.state_dict() for number, phase in enumerate(self._phases)},
            "returns": {str(number): found for number, found in enumerate(self._returns)},
            "env_steps": self.env_steps,
            "gradient_steps": self.gradient_steps,
            "version": self._version,
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Takes over a state made by `state_dict` of a learner of the same configuration."""
        self.load_weights(state)
        self.initial.load_state_dict(state["initial"])
        self.outer_step.load_state_dict(state["outer_step"])
        self._sampler.load_state_dict(state["sampler"])
        if state["surgery"].shape == self._orders.get_state().shape:  # else it was of another kind of device
            self._orders.set_state(state["surgery"])
        self._assignments = tuple(Assignment(task, tuple(goals)) for task, goals in state["assignments"])
        phases = [state["phases"][str(number)] for number in range(len(state["phases"]))]
        self._phases = [PolicyBatch(**{name: t.to(self._device) for name, t in phase.items()}) for phase in phases]
        self._returns = [state["returns"][str(number)] for number in range(len(state["returns"]))]
        self.env_steps, self.gradient_steps = int(state["env_steps"]), int(state["gradient_steps"])
        self._version = int(state["version"])

    def forget_unfinished(self) -> None:
        """Does nothing: what is kept are whole episodes."""

    def load_weights(self, state: Mapping[str, Any]) -> None:
        """Takes over the common parameters only."""
        self.network.load_state_dict(state["network"])
        self._version += 1
        self._sent = self._acting = None

    def policies(self) -> AdaptedPolicies:
        """Returns the policies of all phases that are there."""
        per_chunk = self._config.maml.tasks_per_chunk
        return AdaptedPolicies(
            self.adaptation, self.network, self.initial, self._phases, self._suite.num_tasks, per_chunk
        )

    def combined(self, gradients: Tensor) -> Tensor:
        """Returns the gradient of all task classes after surgery, [param], from theirs, [task, param]."""
        block = gradients.unsqueeze(0)  # [net, task, param]
        return combine(block, self._surgery(gram([block]), self._orders))[0]

    def _acting_weights(self) -> dict[str, Array]:
        """Returns what the next phase acts with, [1, ...] or [slot, ...]; the same object until it changes."""
        if not self._phases and not self.initial.weight:
            return self.policy_weights()
        if self._acting is None:
            numbers = self.initial.of(self.initial.parameters, slice(None))
            if self._phases:
                numbers = self.adaptation(numbers, self._phases, create_graph=False)
            self._acting = _arrays(dict(zip(self.network.state_dict(), numbers, strict=True)))
        return self._acting

    def _by_class(self, values: Tensor) -> Tensor:
        """Returns [slot] as [task, slot of the class]."""
        return values.view(-1, self._suite.num_tasks).T


class MamlAdapter:
    """Explores with the common parameters and adapts them at the end, by as many steps as in training."""

    every_episode = False

    def __init__(self, config: RunConfig, suite: Suite) -> None:
        self._config = config
        self._network = build_gaussian(config.network, config.on_policy, suite, torch.Generator())
        self._adaptation = Adaptation(config.maml, self._network)
        self._weights: Mapping[str, Array] = {}
        self._num_slots = 0
        self._blocks: list[Block] = []

    def begin(self, weights: Mapping[str, Array], num_slots: int) -> Mapping[str, Array]:
        """Returns the common parameters."""
        self._weights, self._num_slots, self._blocks = weights, num_slots, []
        return weights

    def observe(self, block: Block) -> Mapping[str, Array]:
        """Keeps the episodes and returns the common parameters."""
        self._blocks.append(block)
        return self._weights

    def adapt(self) -> Mapping[str, Array]:
        """Returns parameters [slot, ...] after the steps of adaptation; without episodes the common ones.

        All steps learn from the same episodes, all that there are: at meta-test nothing is collected between steps.
        """
        if not self._blocks:
            return self._weights
        self._network.load_state_dict({name: torch.from_numpy(array) for name, array in self._weights.items()})
        trajectories = Trajectories.from_blocks(self._blocks, self._num_slots)
        phase = policy_batch(trajectories, self._config.on_policy, torch.device("cpu"))
        steps = [phase] * self._config.maml.inner_steps
        found = self._adaptation(list(self._network.numbers), steps, create_graph=False)
        return _arrays(dict(zip(self._weights, found, strict=True)))


def _arrays(numbers: Mapping[str, Tensor]) -> dict[str, Array]:
    return {name: number.detach().cpu().numpy().copy() for name, number in numbers.items()}

"""MAML with a trust region (arXiv 1703.03400, section 5.3): parameters that one policy gradient step adapts to a task.

Each iteration explores a batch of sampled tasks with the common parameters, adapts them to each task by itself,
collects again with the adapted ones, and improves the common parameters by a TRPO step on what the adapted policies
achieved, as a function of the parameters before adaptation. Parameters of adapted policies are stacked [slot, ...].
Losses, KL divergences and Fisher products go through the adaptation, a few tasks at a time, as graphs of second order
are large.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from envs.episodes import Assignment
from mtrl.config import RunConfig
from mtrl.data import Array, Block, Metrics, Trajectories
from mtrl.learners.episodes import PolicyBatch, policy_batch
from mtrl.learners.meta_tasks import TaskSampler
from mtrl.learners.protocol import CollectRequest, Mode, Unit
from mtrl.learners.trust_region import flat, trust_region_step, unflatten
from mtrl.losses.policy_gradient import log_prob_loss, masked_mean, ratio_loss
from mtrl.networks.build import Suite, build_gaussian
from mtrl.networks.gaussian import GaussianNetwork, entropy, kl_divergence, log_prob
from mtrl.seeding import torch_generator
from mtrl.surgery.build import build_surgery
from mtrl.surgery.gram import combine, gram

Numbers = Sequence[Tensor]
"""Parameters of a GaussianNetwork, [1, ...] common to all slots or [slot, ...]."""


class Adaptation:
    """The inner loop: common parameters and a task's episodes → parameters for that task."""

    def __init__(self, config: RunConfig, network: GaussianNetwork) -> None:
        self._maml, self._network = config.maml, network

    def __call__(self, numbers: Numbers, phases: Sequence[PolicyBatch], *, create_graph: bool) -> list[Tensor]:
        """Returns parameters [slot, ...] after one step for each phase (arXiv 1703.03400, Eq. 1).

        Args:
            numbers: Common parameters [1, ...].
            phases: The slots' episodes before each step.
            create_graph: Whether the result can be differentiated by `numbers`, through the steps unless
                `maml.first_order`.
        """
        num_slots = len(phases[0].obs)
        with torch.enable_grad():
            source = numbers if create_graph else [number.detach().requires_grad_() for number in numbers]
            current = [number.expand(num_slots, *number.shape[1:]) for number in source]
            for phase in phases:
                losses = self.losses(current, phase)
                through = create_graph and not self._maml.first_order
                gradients = torch.autograd.grad(losses.sum(), current, create_graph=through)
                if not create_graph:
                    current = [number.detach().requires_grad_() for number in current]
                current = [
                    number - self._maml.inner_lr * gradient for number, gradient in zip(current, gradients, strict=True)
                ]
        return current if create_graph else [number.detach() for number in current]

    def losses(self, numbers: Numbers, phase: PolicyBatch) -> Tensor:
        """Returns the loss of each slot, [slot]."""
        mean, log_std = self._network(phase.obs, numbers)
        found = log_prob(phase.sample, mean, log_std)
        if self._maml.inner_loss == "log_prob":
            return log_prob_loss(found, phase.advantage, phase.mask)
        return ratio_loss(found, phase.log_prob, phase.advantage, phase.mask)


class Maml:
    """Learns parameters to adapt from. Its slots are the sampled tasks of an iteration."""

    on_policy = True
    replay = None

    def __init__(self, config: RunConfig, suite: Suite, device: torch.device) -> None:
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
        self.adaptation = Adaptation(config, self.network)
        self._assignments: tuple[Assignment, ...] = ()
        self._phases: list[PolicyBatch] = []
        self._returns: list[Tensor] = []  # mean return of each task class, [task], by phase
        self._version = 0
        self._sent: dict[str, Array] | None = None
        self._adapted: dict[str, Array] | None = None
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
        weights = self.policy_weights() if not self._phases else self._adapted_weights()
        return CollectRequest(
            weights=weights,
            version=self._version,
            unit=Unit.EPISODES,
            amount=self._config.meta.episodes,
            mode=Mode.EXPLORE,
            assignments=self._assignments,
            slots=tuple(range(len(self._assignments))),
        )

    def receive(self, blocks: Sequence[Block]) -> None:
        """Takes in the episodes of a phase."""
        trajectories = Trajectories.from_blocks(blocks, len(self._assignments))
        self._phases.append(policy_batch(trajectories, self._config.on_policy, self._device))
        rewards = torch.from_numpy(trajectories.reward * trajectories.mask)
        self._returns.append(self._by_class(rewards.sum(dim=2).mean(dim=1)).mean(dim=1))
        self.env_steps += sum(block.env_steps() for block in blocks)
        self._version += 1
        self._adapted = None

    def behind(self) -> int:
        """Returns 1 when all phases of an iteration are there."""
        return int(len(self._phases) > self._config.maml.inner_steps)

    def update(self) -> Metrics | None:
        """Makes the outer step of an iteration whose episodes are all there."""
        if not self.behind():
            return None
        before, after = self._phases[:-1], self._phases[-1]
        numbers = list(self.network.numbers)
        old = self._acting(numbers, before, after)
        gradient = self._gradient(numbers, before, after)
        thin = self._config.trpo.fisher_share
        thin_before, thin_after = [phase.thinned(thin) for phase in before], after.thinned(thin)
        thin_old = old if thin >= 1.0 else self._acting(numbers, thin_before, thin_after)

        def fisher_product(vector: Tensor) -> Tensor:
            return self._kl_hessian_product(numbers, thin_before, thin_after, thin_old, vector)

        def evaluate(step: Tensor) -> tuple[Tensor, Tensor]:
            moved = [n.detach() - part for n, part in zip(numbers, unflatten(step, numbers), strict=True)]
            return self._loss_and_kl(moved, before, after, old)

        trpo = self._config.trpo
        outcome = trust_region_step(
            gradient,
            fisher_product,
            evaluate,
            max_kl=trpo.max_kl,
            damping=trpo.damping,
            backtrack_ratio=trpo.backtrack_ratio,
            max_backtracks=trpo.max_backtracks,
            cg_iterations=trpo.cg_iterations,
        )
        with torch.no_grad():
            for number, part in zip(numbers, unflatten(outcome.step, numbers), strict=True):
                number -= part
        samples = sum(int(phase.mask.sum()) for phase in self._phases)
        values = {
            "train/loss/surrogate": torch.as_tensor(outcome.loss_before),
            "train/surrogate_gain": torch.as_tensor(outcome.loss_before) - torch.as_tensor(outcome.loss_after),
            "train/kl": torch.as_tensor(outcome.kl),
            "train/step_accepted": torch.tensor(float(outcome.accepted)),
            "train/entropy": entropy(numbers[-1].detach()).mean(),
            "train/return_before_adaptation": self._returns[0],
            "train/return_after_adaptation": self._returns[-1],
        }
        self.gradient_steps += 1
        self._version += 1
        self._sent, self._assignments, self._phases, self._returns = None, (), [], []
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
        self._sent = self._adapted = None

    def _adapted_weights(self) -> dict[str, Array]:
        if self._adapted is None:
            found = self.adaptation(list(self.network.numbers), self._phases, create_graph=False)
            self._adapted = _arrays(dict(zip(self.network.state_dict(), found, strict=True)))
        return self._adapted

    def _chunks(self) -> Iterator[tuple[int, slice]]:
        """Yields task class and slots, a few slots of one class at a time; a class's slots lie num_tasks apart."""
        num_tasks, per_chunk = self._suite.num_tasks, self._config.maml.tasks_per_chunk
        for task in range(num_tasks):
            for first in range(task, len(self._assignments), num_tasks * per_chunk):
                yield task, slice(first, first + num_tasks * per_chunk, num_tasks)

    def _by_class(self, values: Tensor) -> Tensor:
        """Returns [slot] as [task, slot of the class]."""
        return values.view(-1, self._suite.num_tasks).T

    def _after_adaptation(
        self, numbers: Numbers, before: Sequence[PolicyBatch], after: PolicyBatch, chosen: slice, *, create_graph: bool
    ) -> tuple[Tensor, Tensor, PolicyBatch]:
        """Returns mean and log standard deviation of adapted policies on the episodes after adaptation."""
        theirs = after.slots(chosen)
        adapted = self.adaptation(numbers, [phase.slots(chosen) for phase in before], create_graph=create_graph)
        mean, log_std = self.network(theirs.obs, adapted)
        return mean, log_std, theirs

    @torch.no_grad()
    def _acting(
        self, numbers: Numbers, before: Sequence[PolicyBatch], after: PolicyBatch
    ) -> dict[int, tuple[Tensor, Tensor]]:
        """Returns first slot of each chunk → mean and log standard deviation that acted after adaptation."""
        return {
            chosen.start: self._after_adaptation(numbers, before, after, chosen, create_graph=False)[:2]
            for _, chosen in self._chunks()
        }

    def _gradient(self, numbers: Numbers, before: Sequence[PolicyBatch], after: PolicyBatch) -> Tensor:
        """Returns the gradient of the surrogate by the common parameters, of all classes after surgery, [param]."""
        rows = [torch.zeros(sum(n.numel() for n in numbers), device=self._device) for _ in range(self._suite.num_tasks)]
        per_class = len(self._assignments) // self._suite.num_tasks
        for task, chosen in self._chunks():
            mean, log_std, theirs = self._after_adaptation(numbers, before, after, chosen, create_graph=True)
            found = log_prob(theirs.sample, mean, log_std)
            losses = ratio_loss(found, theirs.log_prob, theirs.advantage, theirs.mask)
            rows[task] += flat(torch.autograd.grad(losses.sum() / per_class, numbers))
        block = torch.stack(rows).unsqueeze(0)  # [net, task, param]
        return combine(block, self._surgery(gram([block]), self._orders))[0]

    def _kl_hessian_product(
        self,
        numbers: Numbers,
        before: Sequence[PolicyBatch],
        after: PolicyBatch,
        old: Mapping[int, tuple[Tensor, Tensor]],
        vector: Tensor,
    ) -> Tensor:
        """Returns the Hessian of the mean KL divergence after adaptation, by the common parameters, times a vector."""
        total = torch.zeros_like(vector)
        for _, chosen in self._chunks():
            mean, log_std, theirs = self._after_adaptation(numbers, before, after, chosen, create_graph=True)
            kl = masked_mean(kl_divergence(*old[chosen.start], mean, log_std), theirs.mask).sum()
            slope = flat(torch.autograd.grad(kl / len(self._assignments), numbers, create_graph=True))
            total += flat(torch.autograd.grad(slope @ vector, numbers))
        return total

    @torch.no_grad()
    def _loss_and_kl(
        self,
        numbers: Numbers,
        before: Sequence[PolicyBatch],
        after: PolicyBatch,
        old: Mapping[int, tuple[Tensor, Tensor]],
    ) -> tuple[Tensor, Tensor]:
        """Returns surrogate and KL divergence after adaptation from other common parameters, means over the slots."""
        loss, kl = torch.zeros(2, device=self._device)
        for _, chosen in self._chunks():
            mean, log_std, theirs = self._after_adaptation(numbers, before, after, chosen, create_graph=False)
            found = log_prob(theirs.sample, mean, log_std)
            loss += ratio_loss(found, theirs.log_prob, theirs.advantage, theirs.mask).sum()
            kl += masked_mean(kl_divergence(*old[chosen.start], mean, log_std), theirs.mask).sum()
        return loss / len(self._assignments), kl / len(self._assignments)


class MamlAdapter:
    """Explores with the common parameters and adapts them at the end, by as many steps as in training."""

    every_episode = False

    def __init__(self, config: RunConfig, suite: Suite) -> None:
        self._config = config
        self._network = build_gaussian(config.network, config.on_policy, suite, torch.Generator())
        self._adaptation = Adaptation(config, self._network)
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

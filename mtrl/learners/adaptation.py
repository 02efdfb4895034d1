"""MAML's inner loop, and what an outer step needs of an iteration: adapted policies as functions of common parameters.

Parameters of adapted policies are stacked [slot, ...]. Graphs through the adaptation are of second order and large, so
everything is computed a few sampled tasks at a time.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from mtrl.config import MamlConfig
from mtrl.learners.episodes import PolicyBatch
from mtrl.learners.initial_parameters import InitialParameters
from mtrl.learners.trust_region import flat
from mtrl.losses.policy_gradient import log_prob_loss, masked_mean, ratio_loss
from mtrl.networks.gaussian import GaussianNetwork, kl_divergence, log_prob

Numbers = Sequence[Tensor]
"""Parameters of a GaussianNetwork, [1, ...] common to all slots or [slot, ...]."""


class Adaptation:
    """The inner loop: common parameters and a task's episodes → parameters for that task."""

    def __init__(self, config: MamlConfig, network: GaussianNetwork) -> None:
        self._maml, self._network = config, network

    def __call__(self, numbers: Numbers, phases: Sequence[PolicyBatch], *, create_graph: bool) -> list[Tensor]:
        """Returns parameters [slot, ...] after one step for each phase; arguments as of `trail`."""
        return self.trail(numbers, phases, create_graph=create_graph)[-1]

    def trail(self, numbers: Numbers, phases: Sequence[PolicyBatch], *, create_graph: bool) -> list[list[Tensor]]:
        """Returns parameters [slot, ...] before the first step and after each (arXiv 1703.03400, Eq. 1).

        Args:
            numbers: At the start, [1, ...] or [slot, ...].
            phases: The slots' episodes before each step.
            create_graph: Whether the result can be differentiated by `numbers`, through the steps unless
                `maml.first_order`.
        """
        num_slots = len(phases[0].obs)
        with torch.enable_grad():
            source = numbers if create_graph else [number.detach().requires_grad_() for number in numbers]
            trail = [[number.expand(num_slots, *number.shape[1:]) for number in source]]
            for phase in phases:
                current = trail[-1]
                losses = self.losses(current, phase)
                through = create_graph and not self._maml.first_order
                gradients = torch.autograd.grad(losses.sum(), current, create_graph=through)
                if not create_graph:
                    current = [number.detach().requires_grad_() for number in current]
                trail.append(
                    [
                        number - self._maml.inner_lr * gradient
                        for number, gradient in zip(current, gradients, strict=True)
                    ]
                )
        return trail if create_graph else [[number.detach() for number in current] for current in trail]

    def losses(self, numbers: Numbers, phase: PolicyBatch) -> Tensor:
        """Returns the loss of each slot, [slot]."""
        mean, log_std = self._network(phase.obs, numbers)
        found = log_prob(phase.sample, mean, log_std)
        if self._maml.inner_loss == "log_prob":
            return log_prob_loss(found, phase.advantage, phase.mask)
        return ratio_loss(found, phase.log_prob, phase.advantage, phase.mask)


class Distribution(NamedTuple):
    """Diagonal Gaussians over actions."""

    mean: Tensor
    """[slot, step, action_dim]."""
    log_std: Tensor
    """[slot, 1, action_dim]."""


class AdaptedPolicies:
    """The episodes of an iteration, before and after adaptation, and the policies of all its phases."""

    def __init__(
        self,
        adaptation: Adaptation,
        network: GaussianNetwork,
        initial: InitialParameters,
        phases: Sequence[PolicyBatch],
        num_tasks: int,
        tasks_per_chunk: int,
    ) -> None:
        """Takes the episodes; slot i is of task class i mod num_tasks.

        Args:
            adaptation: The inner loop.
            network: Of the policy.
            initial: What the sampled tasks begin with.
            phases: Episodes [slot, step, ...], before each step of adaptation and after the last.
            num_tasks: Number of task classes.
            tasks_per_chunk: Slots of one class whose graphs are in memory at once.
        """
        self._adaptation, self._network, self._initial = adaptation, network, initial
        self._num_tasks, self._tasks_per_chunk = num_tasks, tasks_per_chunk
        self.phases = phases
        self.num_slots = len(phases[0].obs)

    def thinned(self, share: float) -> AdaptedPolicies:
        """Returns the same with about that share of the steps of each phase."""
        if share >= 1.0:
            return self
        thin = [phase.thinned(share) for phase in self.phases]
        return AdaptedPolicies(
            self._adaptation, self._network, self._initial, thin, self._num_tasks, self._tasks_per_chunk
        )

    def chunks(self) -> Iterator[tuple[int, slice]]:
        """Yields task class and slots, a few slots of one class at a time; a class's slots lie num_tasks apart."""
        for task in range(self._num_tasks):
            for first in range(task, self.num_slots, self._num_tasks * self._tasks_per_chunk):
                yield task, slice(first, first + self._num_tasks * self._tasks_per_chunk, self._num_tasks)

    def after(self, parameters: Sequence[Tensor], chosen: slice, *, create_graph: bool) -> Distribution:
        """Returns the adapted policies in the states that were visited after adaptation."""
        adapted = self._trail(parameters, chosen, create_graph=create_graph)[-1]
        return Distribution(*self._network(self.phases[-1].slots(chosen).obs, adapted))

    def all_phases(self, parameters: Sequence[Tensor], chosen: slice, *, create_graph: bool) -> list[Distribution]:
        """Returns the policies of each phase in the states that were visited in it."""
        trail = self._trail(parameters, chosen, create_graph=create_graph)
        return [
            Distribution(*self._network(phase.slots(chosen).obs, numbers))
            for phase, numbers in zip(self.phases, trail, strict=True)
        ]

    def gradients(self, parameters: Sequence[Tensor], losses: Callable[[slice], Tensor]) -> Tensor:
        """Returns the gradient of each task class's mean loss, [task, param].

        Args:
            parameters: By which it is taken.
            losses: Chosen slots → loss of each, [slot], with a graph to the parameters.
        """
        rows = torch.zeros(self._num_tasks, sum(p.numel() for p in parameters)).to(parameters[0])
        per_class = self.num_slots // self._num_tasks
        for task, chosen in self.chunks():
            rows[task] += flat(torch.autograd.grad(losses(chosen).sum() / per_class, parameters))
        return rows

    def _trail(self, parameters: Sequence[Tensor], chosen: slice, *, create_graph: bool) -> list[list[Tensor]]:
        before = [phase.slots(chosen) for phase in self.phases[:-1]]
        return self._adaptation.trail(self._initial.of(parameters, chosen), before, create_graph=create_graph)


def mean_divergence(old: Distribution, new: Distribution, phase: PolicyBatch) -> Tensor:
    """Returns KL(old ‖ new), a mean over each slot's steps, [slot]."""
    return masked_mean(kl_divergence(*old, *new), phase.mask)

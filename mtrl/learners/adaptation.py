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
from mtrl.learners.trust_region import flat, unflatten
from mtrl.losses.policy_gradient import log_prob_loss, masked_mean, ratio_loss
from mtrl.networks.gaussian import GaussianNetwork, kl_divergence, kl_hessian_product, log_prob

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
                trail.append(self.moved(current, gradients))
        return trail if create_graph else [[number.detach() for number in current] for current in trail]

    def linearised(self, numbers: Numbers, phases: Sequence[PolicyBatch]) -> Linearised:
        """Returns adapted numbers and their derivative; arguments as of `trail`, `numbers` being [slot, ...]."""
        return Linearised(self, numbers, phases, first_order=self._maml.first_order)

    def moved(self, numbers: Sequence[Tensor], slopes: Sequence[Tensor]) -> list[Tensor]:
        """Returns numbers minus `maml.inner_lr` times their slopes."""
        return [number - self._maml.inner_lr * slope for number, slope in zip(numbers, slopes, strict=True)]

    def losses(self, numbers: Numbers, phase: PolicyBatch) -> Tensor:
        """Returns the loss of each slot, [slot]."""
        mean, log_std = self._network(phase.obs, numbers)
        found = log_prob(phase.sample, mean, log_std)
        if self._maml.inner_loss == "log_prob":
            return log_prob_loss(found, phase.advantage, phase.mask)
        return ratio_loss(found, phase.log_prob, phase.advantage, phase.mask)


class Linearised:
    """Adapted numbers of some slots and their derivative by the numbers at the start.

    A step leads from θ to θ - α∇L(θ), so its derivative is I - αH, H the Hessian of a slot's loss; first-order MAML
    takes it as I.
    """

    def __init__(
        self, adaptation: Adaptation, start: Numbers, phases: Sequence[PolicyBatch], *, first_order: bool
    ) -> None:
        """Adapts from `start` [slot, ...], by one step for each phase."""
        self._adaptation, self._first_order = adaptation, first_order
        self._steps: list[tuple[list[Tensor], Sequence[Tensor]]] = []  # θ and ∇L(θ), with its graph
        current = [number.detach().requires_grad_() for number in start]
        for phase in phases:
            with torch.enable_grad():
                loss = adaptation.losses(current, phase).sum()
                slopes = torch.autograd.grad(loss, current, create_graph=not first_order)
            self._steps.append((current, slopes))
            current = [number.detach().requires_grad_() for number in adaptation.moved(current, slopes)]
        self.adapted = current
        """Numbers after the last step, [slot, ...] each."""

    def along(self, tangent: Sequence[Tensor]) -> Sequence[Tensor]:
        """Returns the derivative times a direction [slot, ...] at the start."""
        for step in self._steps:
            tangent = self._through(step, tangent)
        return tangent

    def back(self, cotangent: Sequence[Tensor]) -> Sequence[Tensor]:
        """Returns the transposed derivative times a gradient [slot, ...] by the adapted numbers."""
        for step in reversed(self._steps):
            cotangent = self._through(step, cotangent)
        return cotangent

    def _through(self, step: tuple[list[Tensor], Sequence[Tensor]], vector: Sequence[Tensor]) -> Sequence[Tensor]:
        """Returns (I - αH) times a vector; a Hessian is symmetric."""
        if self._first_order:
            return vector
        numbers, slopes = step
        products = torch.autograd.grad(slopes, numbers, vector, retain_graph=True, materialize_grads=True)
        return self._adaptation.moved(vector, products)


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

    def fisher_product(self, parameters: Sequence[Tensor], vector: Tensor) -> Tensor:
        """Returns the Hessian of the mean divergence from the adapted policies as they are, times a vector, [param].

        It is JᵀFJ, a mean over slots: F is the Fisher matrix of a slot's policy by its adapted numbers, J the
        derivative of these by the parameters. Second derivatives of the adaptation drop out, as the divergence has no
        slope here.

        Args:
            parameters: At which it is taken.
            vector: [param].
        """
        total = torch.zeros_like(vector)
        tangents = unflatten(vector, parameters)
        for _, chosen in self.chunks():
            total += flat(self._fisher_product_of(chosen, parameters, tangents))
        return total / self.num_slots

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

    def _fisher_product_of(
        self, chosen: slice, parameters: Sequence[Tensor], tangents: Sequence[Tensor]
    ) -> Sequence[Tensor]:
        """Returns JᵀFJ of chosen slots, summed, times a direction; its graphs end with the call."""
        *before, after = (phase.slots(chosen) for phase in self.phases)
        with torch.enable_grad():
            numbers = self._initial.of(parameters, chosen)
            start = [number.expand(len(after.obs), *number.shape[1:]) for number in numbers]
        steps = self._adaptation.linearised(start, before)
        tangents = steps.along(jacobian_product(start, parameters, tangents))
        return torch.autograd.grad(
            start, parameters, steps.back(self._fisher_of_adapted(steps.adapted, tangents, after))
        )

    def _fisher_of_adapted(
        self, numbers: Sequence[Tensor], tangents: Sequence[Tensor], phase: PolicyBatch
    ) -> Sequence[Tensor]:
        """Returns the Fisher matrix of each slot's policy by its numbers, a mean over steps, times a direction."""
        with torch.enable_grad():
            mean, log_std = self._network(phase.obs, numbers)
            of_mean, of_log_std = jacobian_product((mean, log_std), numbers, tangents)
            of_mean, of_log_std = kl_hessian_product(log_std.detach(), of_mean, of_log_std)
            along = (mean * of_mean).sum(dim=2) + (log_std * of_log_std).sum(dim=2)  # [slot, step]
            return torch.autograd.grad(masked_mean(along, phase.mask).sum(), numbers)

    def _trail(self, parameters: Sequence[Tensor], chosen: slice, *, create_graph: bool) -> list[list[Tensor]]:
        before = [phase.slots(chosen) for phase in self.phases[:-1]]
        return self._adaptation.trail(self._initial.of(parameters, chosen), before, create_graph=create_graph)


def jacobian_product(
    outputs: Sequence[Tensor], inputs: Sequence[Tensor], vectors: Sequence[Tensor]
) -> tuple[Tensor, ...]:
    """Returns the derivative of outputs by inputs times vectors like the inputs, as tensors like the outputs.

    By two backward passes: weights pulled back to the inputs are linear in the weights, and the derivative of that is
    the transpose of the transpose. The graph of the outputs is kept.
    """
    weights = [torch.zeros_like(output, requires_grad=True) for output in outputs]
    pulled = torch.autograd.grad(outputs, inputs, weights, create_graph=True, materialize_grads=True)
    pairs = [(back, vector) for back, vector in zip(pulled, vectors, strict=True) if back.requires_grad]
    backs, along = zip(*pairs, strict=True)
    return torch.autograd.grad(backs, weights, along, retain_graph=True, materialize_grads=True)


def mean_divergence(old: Distribution, new: Distribution, phase: PolicyBatch) -> Tensor:
    """Returns KL(old ‖ new), a mean over each slot's steps, [slot]."""
    return masked_mean(kl_divergence(*old, *new), phase.mask)

"""MAML's outer steps: from an iteration's episodes to better common parameters.

`TrustRegionStep` is TRPO's (arXiv 1703.03400, section 5.3), `ClippedSteps` ProMP's (arXiv 1810.06784, section 6). Both
learn from what the adapted policies achieved, as a function of the parameters before adaptation, and both take the
gradients of task classes apart, so that surgery may come between.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor

from mtrl.config import RunConfig
from mtrl.learners.adaptation import AdaptedPolicies, Distribution, mean_divergence
from mtrl.learners.annealing import ppo_lr
from mtrl.learners.initial_parameters import InitialParameters
from mtrl.learners.network_step import NetworkStep
from mtrl.learners.trust_region import trust_region_step, unflatten
from mtrl.losses.policy_gradient import clipped_ratio_loss, ratio_loss
from mtrl.networks.gaussian import entropy, log_prob

_ADAM_EPS = 1e-8
Combine = Callable[[Tensor], Tensor]
"""Gradients of the task classes [task, param] → the one to follow, [param]."""


class Found(NamedTuple):
    """What an outer step has come to."""

    values: dict[str, Tensor]
    """Tag → value, worth logging."""
    num_steps: int
    """Gradient steps made, each from all episodes."""


class OuterStep(Protocol):
    """Changes the common parameters by what an iteration says."""

    def __call__(self, policies: AdaptedPolicies, combine: Combine, env_steps: int) -> Found:
        """Changes them and returns what it found.

        Args:
            policies: Of the iteration.
            combine: Of the gradients of task classes.
            env_steps: Of the run before the iteration, which may decide the learning rate.
        """

    def state_dict(self) -> dict[str, Any]:
        """Returns the optimizer's state."""

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Takes over a state made by `state_dict`."""


class TrustRegionStep:
    """One natural gradient step on the likelihood ratio's surrogate, within a divergence of the adapted policies."""

    def __init__(self, config: RunConfig, initial: InitialParameters) -> None:
        self._trpo, self._initial = config.trpo, initial

    def __call__(self, policies: AdaptedPolicies, combine: Combine, env_steps: int) -> Found:
        """Makes the step; the divergence is the mean over sampled tasks in the states visited after adaptation."""
        parameters = self._initial.parameters
        old = _acted(policies, parameters)
        thin = policies.thinned(self._trpo.fisher_share)

        def evaluate(step: Tensor) -> tuple[Tensor, Tensor]:
            moved = [p.detach() - part for p, part in zip(parameters, unflatten(step, parameters), strict=True)]
            return self.loss_and_divergence(policies, moved, old)

        outcome = trust_region_step(
            combine(self.gradients(policies, parameters)) + self._initial.slope_of_penalty(),
            lambda vector: thin.fisher_product(parameters, vector),
            evaluate,
            max_kl=self._trpo.max_kl,
            damping=self._trpo.damping,
            backtrack_ratio=self._trpo.backtrack_ratio,
            max_backtracks=self._trpo.max_backtracks,
            cg_iterations=self._trpo.cg_iterations,
        )
        surrogate = outcome.loss_before - self._initial.own_penalty()
        with torch.no_grad():
            for parameter, part in zip(parameters, unflatten(outcome.step, parameters), strict=True):
                parameter.sub_(part)
        values = {
            "train/loss/surrogate": torch.as_tensor(surrogate),
            "train/surrogate_gain": torch.as_tensor(surrogate - outcome.loss_after + self._initial.own_penalty()),
            "train/kl": torch.as_tensor(outcome.kl),
            "train/step_accepted": torch.tensor(float(outcome.accepted)),
        }
        return Found(values, num_steps=1)

    def gradients(self, policies: AdaptedPolicies, parameters: Sequence[Tensor]) -> Tensor:
        """Returns the gradients of the task classes' surrogates, [task, param]."""
        after = policies.phases[-1]

        def losses(chosen: slice) -> Tensor:
            theirs = after.slots(chosen)
            found = log_prob(theirs.sample, *policies.after(parameters, chosen, create_graph=True))
            return ratio_loss(found, theirs.log_prob, theirs.advantage, theirs.mask)

        return policies.gradients(parameters, losses)

    @torch.no_grad()
    def loss_and_divergence(
        self, policies: AdaptedPolicies, parameters: Sequence[Tensor], old: Mapping[int, Distribution]
    ) -> tuple[Tensor, Tensor]:
        """Returns surrogate and divergence after adaptation from other parameters, means over the slots, []."""
        loss, divergence = torch.zeros(2).to(parameters[0])
        for _, chosen in policies.chunks():
            theirs = policies.phases[-1].slots(chosen)
            new = policies.after(parameters, chosen, create_graph=False)
            found = log_prob(theirs.sample, *new)
            loss += ratio_loss(found, theirs.log_prob, theirs.advantage, theirs.mask).sum()
            divergence += mean_divergence(old[chosen.start], new, theirs).sum()
        return loss / policies.num_slots + self._initial.penalty(parameters), divergence / policies.num_slots

    def state_dict(self) -> dict[str, Any]:
        """Returns nothing: a step knows nothing of the last."""
        return {}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Takes over nothing."""


class ClippedSteps:
    """Adam steps on the clipped surrogate, held close to the policies that acted before adaptation (ProMP, Eq. 14)."""

    def __init__(self, config: RunConfig, initial: InitialParameters) -> None:
        self._config, self._ppo, self._initial = config, config.ppo, initial
        self._inner_kl_weight = config.maml.inner_kl_weight
        self._step = NetworkStep(initial.parameters, config.ppo.lr, _ADAM_EPS, config.ppo.max_grad_norm)

    def __call__(self, policies: AdaptedPolicies, combine: Combine, env_steps: int) -> Found:
        """Makes the steps, each from all episodes, or as many as the divergence after adaptation allows."""
        parameters = self._initial.parameters
        self._step.set_lr(ppo_lr(self._config, env_steps))
        with torch.no_grad():
            old = {
                chosen.start: policies.all_phases(parameters, chosen, create_graph=False)
                for _, chosen in policies.chunks()
            }
        before = self.surrogate_and_divergences(policies, old)
        norms = []
        for epoch in range(self._ppo.epochs):
            gradients = policies.gradients(parameters, lambda chosen: self.losses(policies, old, chosen))
            gradient = combine(gradients) + self._initial.slope_of_penalty()
            norms.append(self._step.apply(unflatten(gradient, parameters)))
            if epoch == self._ppo.epochs - 1 or self._ppo.target_kl is not None:
                now = self.surrogate_and_divergences(policies, old)
                if self._ppo.target_kl is not None and now["train/kl"] > self._ppo.target_kl:
                    break
        values = {
            **now,
            "train/loss/surrogate": before["train/loss/surrogate"],
            "train/surrogate_gain": before["train/loss/surrogate"] - now["train/loss/surrogate"],
            "train/passes": torch.tensor(float(len(norms))),
            "plasticity/grad_norm/policy": torch.stack(norms).mean(),
        }
        return Found(values, num_steps=len(norms))

    def losses(self, policies: AdaptedPolicies, old: Mapping[int, Sequence[Distribution]], chosen: slice) -> Tensor:
        """Returns the loss of each chosen slot, [slot], with a graph to the parameters."""
        now = policies.all_phases(self._initial.parameters, chosen, create_graph=True)
        surrogate, inner = self._surrogate_and_inner(policies, old[chosen.start], now, chosen)
        return (
            surrogate + self._inner_kl_weight * inner - self._ppo.entropy_coefficient * entropy(now[-1].log_std)[:, 0]
        )

    @torch.no_grad()
    def surrogate_and_divergences(
        self, policies: AdaptedPolicies, old: Mapping[int, Sequence[Distribution]]
    ) -> dict[str, Tensor]:
        """Returns surrogate and divergences after and before adaptation at the parameters, means over the slots, []."""
        sums = torch.zeros(3).to(self._initial.parameters[0])
        for _, chosen in policies.chunks():
            now = policies.all_phases(self._initial.parameters, chosen, create_graph=False)
            surrogate, inner = self._surrogate_and_inner(policies, old[chosen.start], now, chosen)
            after = mean_divergence(old[chosen.start][-1], now[-1], policies.phases[-1].slots(chosen))
            sums += torch.stack([surrogate.sum(), after.sum(), inner.sum()])
        names = ("train/loss/surrogate", "train/kl", "train/kl_before_adaptation")
        return dict(zip(names, sums / policies.num_slots, strict=True))

    def state_dict(self) -> dict[str, Any]:
        """Returns the optimizer's state."""
        return self._step.state_dict()

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Takes over a state made by `state_dict`."""
        self._step.load_state_dict(state)

    def _surrogate_and_inner(
        self, policies: AdaptedPolicies, old: Sequence[Distribution], now: Sequence[Distribution], chosen: slice
    ) -> tuple[Tensor, Tensor]:
        """Returns the clipped surrogate, and the divergence from what acted before each step of adaptation, [slot]."""
        theirs = [phase.slots(chosen) for phase in policies.phases]
        last, found = theirs[-1], log_prob(theirs[-1].sample, *now[-1])
        surrogate = clipped_ratio_loss(found, last.log_prob, last.advantage, last.mask, self._ppo.clip)
        inner = [mean_divergence(*pair) for pair in zip(old[:-1], now[:-1], theirs[:-1], strict=True)]
        return surrogate, torch.stack(inner).mean(dim=0)


def _acted(policies: AdaptedPolicies, parameters: Sequence[Tensor]) -> dict[int, Distribution]:
    """Returns first slot of each chunk → the policies that acted after adaptation."""
    with torch.no_grad():
        return {chosen.start: policies.after(parameters, chosen, create_graph=False) for _, chosen in policies.chunks()}

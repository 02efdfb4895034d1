"""Trust region policy optimization for many tasks (arXiv 1502.05477): one step per round.

The loop around it is `on_policy.py`, the step itself `trust_region.py`. Differences from the paper are listed in
docs/algorithms/mttrpo.md.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from mtrl.config import RunConfig
from mtrl.data import Metrics, Trajectories
from mtrl.learners.descent import conflict_metrics
from mtrl.learners.episodes import PolicyBatch, policy_batch
from mtrl.learners.on_policy import MultiTaskOnPolicy, continue_stream, distribution, mean_kl
from mtrl.learners.trust_region import flat, hessian_vector_product, trust_region_step, unflatten
from mtrl.losses.policy_gradient import masked_mean, ratio_loss
from mtrl.networks.build import Suite, build_task_gaussian
from mtrl.networks.gaussian import entropy, kl_divergence, log_prob
from mtrl.networks.task_gaussian import TaskGaussian
from mtrl.seeding import torch_generator
from mtrl.surgery.build import build_surgery
from mtrl.surgery.gram import combine, gram
from mtrl.surgery.statistics import curvature_along_step


def multi_task_trpo(config: RunConfig, suite: Suite, device: torch.device) -> MultiTaskOnPolicy:
    """Returns a learner with TRPO; all random numbers come from the run's seed.

    Raises:
        ConfigError: If the surgery needs more tasks than there are.
    """
    weights = torch_generator(config.seed, "networks")
    network = build_task_gaussian(config.network, config.on_policy, suite, weights).to(device)
    return MultiTaskOnPolicy(config, suite, network, Trpo(config, network, device))


class Trpo:
    """One step of a trust region: the surrogate's gradient of all tasks, the divergence's mean over the tasks."""

    def __init__(self, config: RunConfig, network: TaskGaussian, device: torch.device) -> None:
        """Begins the stream; all random numbers come from the run's seed.

        Raises:
            ConfigError: If the surgery needs more tasks than there are.
        """
        self._trpo, self._on_policy, self._network, self._device = config.trpo, config.on_policy, network, device
        self._measure_every = config.surgery.statistics_every
        self._task_id = torch.arange(network.num_tasks, device=device)
        self._surgery = build_surgery(config.surgery, network.num_tasks)
        self._orders = torch_generator(config.seed, "surgery", device=device)

    def batch(self, trajectories: Trajectories) -> PolicyBatch:
        """Returns the episodes with the advantages of each task."""
        return policy_batch(trajectories, self._on_policy, self._device)

    def improve(self, batch: PolicyBatch, gradient_steps: int, env_steps: int) -> tuple[Metrics, int]:
        """Makes the step, or none where the line search finds none."""
        numbers = self._network.shared
        old = distribution(self._network, batch)
        thin = batch.thinned(self._trpo.fisher_share)
        thin_old = old if thin is batch else distribution(self._network, thin)
        losses, rows = self.gradients(batch)
        gram_matrix = gram([rows.unsqueeze(0)])
        gradient = combine(rows.unsqueeze(0), self._surgery(gram_matrix, self._orders))[0]
        outcome = trust_region_step(
            gradient,
            lambda vector: self.fisher_product(thin, thin_old, vector),
            lambda step: self.loss_and_kl(batch, old, unflatten(flat(numbers).detach() - step, numbers)),
            max_kl=self._trpo.max_kl,
            damping=self._trpo.damping,
            backtrack_ratio=self._trpo.backtrack_ratio,
            max_backtracks=self._trpo.max_backtracks,
            cg_iterations=self._trpo.cg_iterations,
        )
        with torch.no_grad():
            for number, part in zip(numbers, unflatten(outcome.step, numbers), strict=True):
                number.sub_(part)
        before, after = torch.tensor(outcome.loss_before), torch.tensor(outcome.loss_after)
        values = {
            "train/loss/policy": losses,
            "train/surrogate_gain": before - after,
            "train/kl": torch.tensor(outcome.kl),
            "train/step_accepted": torch.tensor(float(outcome.accepted)),
            "train/entropy": entropy(self._network.log_std).mean(),
            "plasticity/grad_norm/policy": gradient.norm(),
        }
        matrices: Mapping[str, Tensor] = {}
        if self._measure_every and gradient_steps % self._measure_every == 0:
            matrices = conflict_metrics(gram_matrix, "policy").matrices
            along = -torch.dot(rows.mean(dim=0), outcome.step)
            values["pcgrad/policy/curvature"] = curvature_along_step(before.to(along), after.to(along), along)
        return Metrics(values, matrices, num_samples=int(batch.mask.sum())), 1

    def gradients(self, batch: PolicyBatch) -> tuple[Tensor, Tensor]:
        """Returns the surrogate's loss of each task, [task], and its gradients, [task, param], task by task."""
        numbers = self._network.shared
        losses, rows = [], []
        for part, task_id in self._parts(batch):
            loss = self._losses(part, task_id, None).sum()
            rows.append(flat(torch.autograd.grad(loss, numbers)))
            losses.append(loss.detach())
        return torch.stack(losses), torch.stack(rows)

    def fisher_product(self, batch: PolicyBatch, old: tuple[Tensor, Tensor], vector: Tensor) -> Tensor:
        """Returns the Hessian of the mean divergence from the old policy times a vector, [param].

        It is added up task by task, so that the graph of one task is in memory at once.

        Args:
            batch: States [task, step, ...].
            old: Mean and log standard deviation in these states.
            vector: [param].
        """
        numbers = self._network.shared
        total = torch.zeros_like(vector)
        for part, task_id in self._parts(batch):
            mean, log_std = self._network(part.obs, task_id)
            kl = masked_mean(kl_divergence(old[0][task_id], old[1], mean, log_std), part.mask).sum()
            slope = flat(torch.autograd.grad(kl / self._network.num_tasks, numbers, create_graph=True))
            total += hessian_vector_product(slope, numbers, vector)
        return total

    @torch.no_grad()
    def loss_and_kl(
        self, batch: PolicyBatch, old: tuple[Tensor, Tensor], numbers: Sequence[Tensor]
    ) -> tuple[Tensor, Tensor]:
        """Returns surrogate and divergence from the old policy with other numbers [1, ...], means over the tasks."""
        losses = torch.cat([self._losses(part, task_id, numbers) for part, task_id in self._parts(batch)])
        return losses.mean(), mean_kl(old, distribution(self._network, batch, numbers), batch.mask)

    def state_dict(self) -> dict[str, Any]:
        """Returns the stream."""
        return {"surgery": self._orders.get_state()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Takes over a state made by `state_dict`."""
        continue_stream(self._orders, state["surgery"])

    def _parts(self, batch: PolicyBatch) -> Iterator[tuple[PolicyBatch, Tensor]]:
        """Yields the steps of each task, [1, step, ...], and its task id [1]."""
        for task in range(self._network.num_tasks):
            yield batch.slots(slice(task, task + 1)), self._task_id[task : task + 1]

    def _losses(self, batch: PolicyBatch, task_id: Tensor, numbers: Sequence[Tensor] | None) -> Tensor:
        mean, log_std = self._network(batch.obs, task_id, numbers)
        return ratio_loss(log_prob(batch.sample, mean, log_std), batch.log_prob, batch.advantage, batch.mask)

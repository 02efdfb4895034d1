"""One gradient step of a stack of networks: losses of all tasks → gradients → surgery → clip → optimizer."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Protocol

import torch
from torch import Tensor, nn

from mtrl.config import SurgeryConfig
from mtrl.data import Metrics
from mtrl.surgery.build import Surgery, private_scale
from mtrl.surgery.gram import GPU_CHUNK, combine, gram
from mtrl.surgery.per_task import PerTaskGradients, expand_for_tasks, gather, in_one_buffer, per_task_gradients
from mtrl.surgery.statistics import conflict_statistics, curvature_along_step

LossOf = Callable[[Sequence[Tensor] | None, Sequence[Tensor] | None], Tensor]
"""(shared, private) parameters → losses [task]; None stands for the network's own."""


class TaskNetwork(Protocol):
    """A network for many tasks, as `NetworkStack` is one."""

    @property
    def num_tasks(self) -> int:
        """Number of tasks."""

    @property
    def shared(self) -> Iterable[nn.Parameter]:
        """Parameters that all tasks share, [net, ...]: each `net` takes surgery by itself."""

    @property
    def private(self) -> Iterable[nn.Parameter]:
        """Parameters that belong to one task each."""


class Descent:
    """Steps one network with one optimizer.

    Plain training takes the gradient of the mean (or sum) of the losses in one backward. Surgery takes the gradients of
    the shared parameters per task, weighs them by the method and leaves each head its own gradient, on the same scale.
    """

    def __init__(
        self,
        stack: TaskNetwork,
        optimizer: torch.optim.Optimizer,
        config: SurgeryConfig,
        surgery: Surgery,
        orders: torch.Generator,
        max_grad_norm: float | None,
        *,
        one_buffer: bool = False,
    ) -> None:
        """Takes what is stepped and how.

        Args:
            stack: The network.
            optimizer: Of all its parameters.
            config: Of the surgery.
            surgery: Weighs the tasks' gradients.
            orders: Random numbers of the surgery, on the network's device.
            max_grad_norm: Longer gradients are scaled down to this norm; None for no limit.
            one_buffer: Whether the tasks' gradients lie in one buffer, which suits a GPU, or by parameter, which keeps
                them in a CPU's cache.
        """
        self._shared, self._private = tuple(stack.shared), tuple(stack.private)
        self._num_tasks = stack.num_tasks
        self._optimizer = optimizer
        self._plain = config.method == "mean"
        self._scale = private_scale(config, stack.num_tasks)
        self._surgery = surgery
        self._orders = orders
        self._max_grad_norm = max_grad_norm
        self._leaves: tuple[Tensor, ...] = ()  # made when first needed: they hold the memory of the tasks' gradients
        self._one_buffer = one_buffer
        self._buffer: Tensor | None = None  # that memory, if it is in one piece

    def step(self, loss_of: LossOf, measure: bool, name: str) -> Metrics:
        """Makes one step.

        Args:
            loss_of: The losses [task] as a function of the parameters; called again after the step when measuring.
            measure: Whether to measure the conflict of the gradients, which costs about one more forward pass.
            name: Prefix of the metrics.

        Returns:
            `train/loss/<name>` [task], `plasticity/grad_norm/<name>` [] before clipping, and the measurements.
        """
        measured = Metrics({})
        if self._plain and not measure:
            task_losses = loss_of(None, None)
            self._set_gradients(torch.autograd.grad(task_losses.sum() * self._scale, self._parameters))
        else:
            task_losses, found = self._gradients_per_task(loss_of)
            gram_matrix = gram(found.shared if self._buffer is None else [self._buffer])
            weights = self._surgery(gram_matrix, self._orders)
            self._set_gradients(self._weighted(found, weights))
            if measure:
                before = [p.detach().clone() for p in self._parameters]
                gradients = self._weighted(found, torch.full_like(weights, self._scale))  # of the total loss
                measured = conflict_metrics(gram_matrix, name)
        norm = self._clip()
        self._optimizer.step()
        values = {f"train/loss/{name}": task_losses.detach(), f"plasticity/grad_norm/{name}": norm, **measured.values}
        if measure:
            after = loss_of(None, None).detach()
            moved = [p.detach() - old for p, old in zip(self._parameters, before, strict=True)]
            dot = torch.stack([(g * delta).sum() for g, delta in zip(gradients, moved, strict=True)]).sum()
            total_before, total_after = task_losses.detach().sum() * self._scale, after.sum() * self._scale
            values[f"pcgrad/{name}/curvature"] = curvature_along_step(total_before, total_after, dot)
        return Metrics(values, measured.matrices)

    def _gradients_per_task(self, loss_of: LossOf) -> tuple[Tensor, PerTaskGradients]:
        if not self._leaves:
            self._leaves = expand_for_tasks(self._shared, self._num_tasks)
            self._buffer = in_one_buffer(self._leaves, GPU_CHUNK) if self._one_buffer else None
        task_losses = loss_of(self._leaves, self._private)
        found = per_task_gradients(task_losses, self._leaves, self._private)
        if self._buffer is not None:
            gather(found, self._leaves)
        return task_losses, found

    def _weighted(self, found: PerTaskGradients, weights: Tensor) -> tuple[Tensor, ...]:
        """Returns one gradient per parameter: the tasks' weighted by `weights` [net, task], each head its own."""
        if self._buffer is None:
            parts = [combine(block, weights) for block in found.shared]
        else:
            sizes = [parameter[0].numel() for parameter in self._shared]
            parts = list(torch.split(combine(self._buffer, weights)[:, : sum(sizes)], sizes, dim=1))
        shared = [part.reshape(parameter.shape) for part, parameter in zip(parts, self._shared, strict=True)]
        return (*shared, *(gradient * self._scale for gradient in found.private))

    def _clip(self) -> Tensor:
        """Scales the gradient down if it is longer than the limit, and returns its norm before, []."""
        norm = nn.utils.get_total_norm([p.grad for p in self._parameters if p.grad is not None])
        if self._max_grad_norm is not None:
            nn.utils.clip_grads_with_norm_(self._parameters, self._max_grad_norm, norm)
        return norm

    def _set_gradients(self, gradients: Sequence[Tensor]) -> None:
        for parameter, gradient in zip(self._parameters, gradients, strict=True):
            # torch's fused Adam on the CPU reads a gradient as if its memory lay like the parameter's
            parameter.grad = gradient.contiguous()

    @property
    def _parameters(self) -> tuple[nn.Parameter, ...]:
        return (*self._shared, *self._private)


def conflict_metrics(gram_matrix: Tensor, name: str) -> Metrics:
    """Returns how much the gradients of a network's tasks conflict, from their inner products [net, task, task]."""
    found = conflict_statistics(gram_matrix)
    pairs = {
        "cosine": found.cosines,
        "magnitude_similarity": found.magnitude_similarity,
        "xi": found.xi,
        "conflicts": found.conflicts,
        "condition_a": found.condition_a,
        "xi_at_most_1": found.xi_at_most_1,
    }
    return Metrics({}, {f"{name}/{quantity}": values.double().mean(dim=0) for quantity, values in pairs.items()})

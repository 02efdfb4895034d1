"""The gradient of every task's loss apart, as blocks [net, task, param]. What is made of them is in `pcgrad.py`.

A block holds one parameter, flattened. Networks that take surgery each by itself lie on the axis `net`.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor


class PerTaskGradients(NamedTuple):
    """Gradients of the losses of all tasks by the parameters of a network."""

    shared: tuple[Tensor, ...]
    """[net, task, param] for each parameter that all tasks share, in the order given."""
    private: tuple[Tensor, ...]
    """Gradient of the sum of the losses by each parameter that belongs to one task, in that parameter's shape."""


def expand_for_tasks(parameters: Sequence[Tensor], num_tasks: int) -> tuple[Tensor, ...]:
    """Returns each parameter [net, ...] as a leaf [net, task, ...] in which all tasks see the same numbers.

    The leaves show the parameters also after an optimizer changed these in place, so that a set of them can serve every
    update. Their `grad` is the memory into which `stacked_linear` writes the gradients, made once: asking for it
    anew at every update costs more than filling it. Gradients are good until the next backward pass, which must be
    `torch.autograd.grad`; `backward` would add them to themselves. A loss uses each leaf in one layer only.
    """
    leaves = []
    for parameter in parameters:
        leaf = parameter.detach().unsqueeze(1).expand(-1, num_tasks, *parameter.shape[1:]).requires_grad_()
        leaf.grad = torch.empty_like(leaf, memory_format=torch.contiguous_format)
        leaves.append(leaf)
    return tuple(leaves)


def in_one_buffer(leaves: Sequence[Tensor], multiple: int) -> Tensor:
    """Gives the gradients of leaves from `expand_for_tasks` one memory and returns it, [net, task, param].

    A GPU takes inner products and sums of whole gradients in one go.

    Args:
        leaves: Of one network.
        multiple: The last axis is as long as all parameters and zeros up to a multiple of this.
    """
    sizes = [leaf[0, 0].numel() for leaf in leaves]
    total = -(-sum(sizes) // multiple) * multiple
    buffer = leaves[0].new_zeros(*leaves[0].shape[:2], total)
    for leaf, block in zip(leaves, torch.split(buffer, [*sizes, total - sum(sizes)], dim=2), strict=False):
        leaf.grad = block.view(leaf.shape)
    return buffer


def gather(found: PerTaskGradients, leaves: Sequence[Tensor]) -> None:
    """Copies into the memory of the leaves what was not written there: the gradients of layers of other kinds."""
    for leaf, gradient in zip(leaves, found.shared, strict=True):
        assert leaf.grad is not None
        if gradient.data_ptr() != leaf.grad.data_ptr():
            leaf.grad.copy_(gradient.view(leaf.shape))


def per_task_gradients(losses: Tensor, leaves: Sequence[Tensor], private: Sequence[Tensor] = ()) -> PerTaskGradients:
    """Differentiates the losses of all tasks in one backward pass.

    Row k of a leaf must reach no loss but that of task k: then the gradient of the sum of the losses by that row is the
    gradient of loss k. `stacked_linear` of `mtrl/networks/linear.py` computes so at the price of plain training.

    Args:
        losses: [task].
        leaves: [net, task, ...] from `expand_for_tasks`, which the losses were computed with.
        private: Parameters of single tasks.

    Raises:
        ValueError: The losses are not [task], or a leaf has another number of tasks.
    """
    _check_losses(losses)
    for leaf in leaves:
        if leaf.dim() < 2 or leaf.shape[1] != losses.shape[0]:
            raise ValueError(
                f"a leaf of shape {list(leaf.shape)} has no axis of {losses.shape[0]} tasks after the net axis; "
                "compute the losses with expand_for_tasks(parameters, num_tasks)"
            )
    gradients = torch.autograd.grad(losses.sum(), [*leaves, *private])
    return PerTaskGradients(
        shared=tuple(gradient.reshape(*gradient.shape[:2], -1) for gradient in gradients[: len(leaves)]),
        private=gradients[len(leaves) :],
    )


def per_task_gradients_generic(
    losses: Tensor, parameters: Sequence[Tensor], private: Sequence[Tensor] = ()
) -> PerTaskGradients:
    """Differentiates the losses one after the other, for modules of any kind; K tasks cost K backward passes.

    A parameter that a task does not use has a gradient of zero there.

    Args:
        losses: [task], all on one graph, which is freed.
        parameters: Shared by all tasks; all of them together are one network, so the blocks have net = 1.
        private: Parameters of single tasks.

    Raises:
        ValueError: The losses are not [task].
    """
    _check_losses(losses)
    num_tasks = losses.shape[0]
    targets = [*parameters, *private]
    rows = [torch.autograd.grad(losses[task], targets, retain_graph=task + 1 < num_tasks) for task in range(num_tasks)]
    columns = [torch.stack(column) for column in zip(*rows, strict=True)]  # [task, ...] for each parameter
    return PerTaskGradients(
        shared=tuple(column.reshape(1, num_tasks, -1) for column in columns[: len(parameters)]),
        private=tuple(column.sum(dim=0) for column in columns[len(parameters) :]),
    )


def _check_losses(losses: Tensor) -> None:
    if losses.dim() != 1:
        raise ValueError(f"losses have shape {list(losses.shape)}; expected one loss per task, [task]")

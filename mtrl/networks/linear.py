"""Linear layers over stacked networks, with the weight gradient of every task apart at the price of one backward.

A stack of networks of equal shape shares one tensor `[net, out, in]`. Given as `[net, task, out, in]` instead, an
expansion of the same numbers with stride 0, the forward pass and the gradient towards the input stay one product over
all rows, and only the weight gradient is taken per task.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor


class _TaskLinear(torch.autograd.Function):
    """`x[n, k] @ weight[n, k].T + bias[n, k]` for numbers that are equal for all tasks k.

    Differentiable any number of times: it saves its inputs and no views of them, and its own backward is again made of
    products per task, so that second derivatives stay per task.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        ctx.save_for_backward(x, weight, bias)
        shared = weight[:, 0].mT
        return torch.bmm(x, shared) if bias is None else torch.baddbmm(bias[:, :1], x, shared)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
        x, weight, bias = ctx.saved_tensors
        needs_x, needs_weight, needs_bias = ctx.needs_input_grad
        grad_rows, x_rows = (rows.reshape(*weight.shape[:2], -1, rows.shape[2]) for rows in (grad, x))  # per task
        grad_x = _task_linear(grad, weight.mT, None) if needs_x else None
        grad_weight = torch.matmul(grad_rows.mT, x_rows, out=_memory(weight)) if needs_weight else None
        grad_bias = torch.sum(grad_rows, dim=2, out=_memory(bias)) if needs_bias else None
        return grad_x, grad_weight, grad_bias


def _memory(leaf: Tensor) -> Tensor | None:
    """Returns where a leaf's gradient is to be written, if there is such a place."""
    # a graph for second derivatives must not hold memory that the next pass overwrites
    return leaf.grad if leaf.is_leaf and not torch.is_grad_enabled() else None


def _task_linear(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    product: Tensor = _TaskLinear.apply(x, weight, bias)  # type: ignore[no-untyped-call]  # not annotated in torch
    return product


def stacked_linear(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """Applies a layer that all tasks share.

    Rows stay flat, as autograd copies what is changed in place behind a view.

    Args:
        x: [net, task * batch, in].
        weight: [net, out, in], or expanded to [net, task, out, in] for gradients per task.
        bias: [net, out], or expanded to [net, task, out].

    Returns:
        [net, task * batch, out].
    """
    if weight.dim() == 4:
        return _task_linear(x, weight, bias)
    return torch.baddbmm(bias.unsqueeze(1), x, weight.mT)


def head_linear(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """Applies to each task's rows the layer of that task alone.

    Args:
        x: [net, task, batch, in].
        weight: [net, task, out, in].
        bias: [net, task, out].

    Returns:
        [net, task, batch, out].
    """
    return torch.matmul(x, weight.mT) + bias.unsqueeze(2)

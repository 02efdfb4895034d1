"""Linear layers over stacked networks, with the weight gradient of every task apart at the price of one backward.

A stack of networks of equal shape shares one tensor `[net, out, in]`. Given as `[net, task, out, in]` instead, an
expansion of the same numbers with stride 0, the forward pass and the gradient towards the input stay one product over
all rows, and only the weight gradient is taken per task.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor


class _TaskProduct(torch.autograd.Function):
    """`x[n, k] @ weight[n, k].T` for weights that are equal for all tasks k; differentiable any number of times.

    It saves its inputs and no views of them, and its own backward is again made of differentiable products per task:
    second derivatives stay per task.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor) -> Tensor:
        ctx.save_for_backward(x, weight)
        nets, tasks, batch, _ = x.shape
        return torch.bmm(x.reshape(nets, tasks * batch, -1), weight[:, 0].mT).view(nets, tasks, batch, -1)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, Tensor | None]:
        x, weight = ctx.saved_tensors
        needs_x, needs_weight = ctx.needs_input_grad
        grad_x = _task_product(grad, weight.mT) if needs_x else None
        grad_weight = torch.matmul(grad.mT, x) if needs_weight else None
        return grad_x, grad_weight


def _task_product(x: Tensor, weight: Tensor) -> Tensor:
    product: Tensor = _TaskProduct.apply(x, weight)  # type: ignore[no-untyped-call]  # not annotated in torch
    return product


def stacked_linear(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """Applies a layer that all tasks share.

    Args:
        x: [net, task, batch, in]; the net axis may be 1 where the input is the same for all networks.
        weight: [net, out, in], or expanded to [net, task, out, in] for gradients per task.
        bias: [net, out], or expanded to [net, task, out].

    Returns:
        [net, task, batch, out].
    """
    nets = weight.shape[0]
    _, tasks, batch, width = x.shape
    if weight.dim() == 4:
        return _task_product(x.expand(nets, tasks, batch, width), weight) + bias.unsqueeze(2)
    rows = x.expand(nets, tasks, batch, width).reshape(nets, tasks * batch, width)
    return torch.baddbmm(bias.unsqueeze(1), rows, weight.mT).view(nets, tasks, batch, -1)


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

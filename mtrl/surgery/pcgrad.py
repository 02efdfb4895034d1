"""PCGrad, Algorithm 1 of Gradient Surgery for Multi-Task Learning (arXiv 2001.06782), on inner products alone.

Every projected gradient is a linear combination of the original ones, so the K x K Gram matrix decides all projections
and the weights of the originals in the result. `gram.py` makes the matrix and applies the weights.
"""

from __future__ import annotations

import torch
from torch import Tensor


def random_orders(num_nets: int, num_tasks: int, generator: torch.Generator) -> Tensor:
    """Draws for every task an order of the other tasks, int64 [net, task, task - 1], on the generator's device.

    All orders of the others are equally likely, independently for every task and network.
    """
    keys = torch.rand(num_nets, num_tasks, num_tasks, dtype=torch.float64, generator=generator, device=generator.device)
    keys.diagonal(dim1=1, dim2=2).fill_(2.0)  # the task itself sorts last and is cut off
    return keys.argsort(dim=2)[:, :, :-1]


def pcgrad_weights(gram: Tensor, orders: Tensor) -> Tensor:
    """Returns what each original gradient counts in the sum of the projected ones, float64 [net, task].

    The sum of PCGrad's gradients, the Δθ of Algorithm 1, is the sum of the original gradients times these weights. Each
    weight is at least 1, and exactly 1 for all where no two gradients conflict. A gradient of zero is not projected
    against. NaN in the matrix gives NaN.

    Args:
        gram: [net, task, task], inner products of the original gradients.
        orders: int64 [net, task, task - 1], see `random_orders`.

    Raises:
        ValueError: The shapes do not fit.
    """
    nets, tasks = gram.shape[:2]
    if gram.shape != (nets, tasks, tasks) or orders.shape != (nets, tasks, tasks - 1):
        raise ValueError(
            f"gram {list(gram.shape)} and orders {list(orders.shape)} do not fit; "
            "expected [net, task, task] and [net, task, task - 1]"
        )
    rows = nets * tasks
    inner = gram.detach().double().reshape(rows, tasks).clone()  # [net * task, task]: projected gradient i · original j
    square = gram.detach().double().diagonal(dim1=1, dim2=2).reshape(rows, 1)
    inverse_square = torch.where(square == 0.0, 0.0, 1.0 / square)
    scaled = inner * inverse_square  # row j: g_j · g_k / ‖g_j‖² for all k

    columns = orders.reshape(rows, tasks - 1).T.contiguous()  # [task - 1, net * task], j of each projection
    first_row = torch.arange(nets, device=gram.device).repeat_interleave(tasks) * tasks
    against = columns + first_row  # the same j, as a row of `scaled`
    removed = torch.empty(tasks - 1, rows, 1, dtype=torch.float64, device=gram.device)
    for column, row, conflict in zip(columns.unsqueeze(2), against, removed, strict=True):
        torch.gather(inner, 1, column, out=conflict).clamp_(max=0.0)
        inner.addcmul_(conflict, scaled.index_select(0, row), value=-1.0)

    # A scatter and a sum, not an index_add: its atomic additions on CUDA come in any order.
    products = torch.zeros_like(inner).scatter_(
        1, columns.T, removed.squeeze(2).T
    )  # [net * task, task], each at most 0
    added = -products.reshape(nets, tasks, tasks) * inverse_square.reshape(nets, 1, tasks)
    return 1.0 + added.sum(dim=1)

"""Inner products of the tasks' gradients, and linear combinations of these: all that surgery does with long vectors.

G = J Jᵀ for J [task, param]; both are sums over blocks of J (`per_task.py`), which is never put into one buffer.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

# Columns of J per product. Products of long rows may be summed in one go, with errors of up to 7e-7 for 343,000
# parameters; short ones, added up in float64, leave 1e-8, and all together are no slower.
_CPU_CHUNK = 1_024
GPU_CHUNK = 4_096


def gram(blocks: Sequence[Tensor]) -> Tensor:
    """Returns the inner products of all pairs of gradients, float64 [net, task, task].

    Relative to the norms of the two gradients an entry is right to about 1e-7, also where TF32 or bfloat16 products or
    autocast are switched on: they could flip the sign of a small inner product. Norms below 1e-19 or above 1e19 leave
    the range of float32; the former count as zero.

    Args:
        blocks: [net, task, param_block], one or more, from `per_task_gradients`.

    Raises:
        ValueError: No block, or blocks of different networks or tasks.
    """
    if not blocks or any(block.dim() != 3 or block.shape[:2] != blocks[0].shape[:2] for block in blocks):
        raise ValueError(
            f"blocks have shapes {[list(block.shape) for block in blocks]}; expected at least one, "
            "all [net, task, param] with the same net and task"
        )
    return torch.stack([_in_chunks(block.to(_exact_dtype(block))) for block in blocks]).sum(dim=0)


def _in_chunks(block: Tensor) -> Tensor:
    """Returns the inner products of a block [net, task, param] in its precision, sums of chunks in float64."""
    columns = GPU_CHUNK if block.is_cuda else _CPU_CHUNK
    num_chunks, num_left = divmod(block.shape[2], columns)
    whole, left = torch.split(block, [num_chunks * columns, num_left], dim=2)
    chunks = whole.view(*block.shape[:2], num_chunks, columns).transpose(1, 2)  # [net, chunk, task, column]
    # a product of four axes would first copy what cannot be seen as three
    found = torch.stack([torch.bmm(one, one.mT).double().sum(dim=0) for one in chunks])
    return found + torch.bmm(left, left.mT) if num_left else found


def combine(block: Tensor, weights: Tensor) -> Tensor:
    """Returns the weighted sum of the tasks' gradients, [net, param], in the block's precision.

    Args:
        block: [net, task, param].
        weights: [net, task].

    Raises:
        ValueError: The weights are for other networks or tasks.
    """
    if block.dim() != 3 or block.shape[:2] != weights.shape:
        raise ValueError(f"weights {list(weights.shape)} do not fit a block {list(block.shape)}; expected [net, task]")
    dtype = _exact_dtype(block)
    return torch.bmm(weights.to(dtype).unsqueeze(1), block.to(dtype)).squeeze(1).to(block.dtype)


def squared_norm(gram: Tensor, weights: Tensor) -> Tensor:
    """Returns the squared norm of the weighted sum of gradients, wᵀGw, [net].

    It is 0 where the gradients cancel so far that what is left is rounding of float32: below 3.5e-4 of the sum of their
    norms.

    Args:
        gram: float64 [net, task, task].
        weights: float64 [net, task].
    """
    square = torch.einsum("ni,nij,nj->n", weights, gram, weights)
    norms = gram.diagonal(dim1=1, dim2=2).sqrt()  # [net, task]
    return zero_if_cancelled(square, (weights.abs() * norms).sum(dim=1))


def zero_if_cancelled(square: Tensor, total_norm: Tensor) -> Tensor:
    """Returns the squared norm of a sum of vectors, or 0 where it is only rounding.

    Args:
        square: Squared norm of the sum, any shape.
        total_norm: Sum of the vectors' norms, same shape.
    """
    floor = torch.finfo(torch.float32).eps * total_norm.square()
    return torch.where(square <= floor, 0.0, square)


def _exact_dtype(block: Tensor) -> torch.dtype:
    """Returns float32 or better in which products of the block are not rounded to fewer digits by torch's settings.

    float64 is untouched by all of these; the settings themselves are global and stay as they are.
    """
    if block.dtype == torch.float64 or _rounds_products(block.device.type):
        return torch.float64
    return torch.float32


def _rounds_products(device_type: str) -> bool:
    if torch.is_autocast_enabled(device_type):
        return True
    backend = torch.backends.cuda if device_type == "cuda" else torch.backends.mkldnn
    precision = getattr(getattr(backend, "matmul", None), "fp32_precision", None)
    if precision is None:  # before torch 2.9 there is one setting for all devices
        return torch.get_float32_matmul_precision() != "highest"
    return precision not in ("none", "ieee")

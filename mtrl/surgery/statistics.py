"""How much the tasks' gradients conflict, in the quantities of the PCGrad paper (arXiv 2001.06782).

All but the curvature come from the Gram matrix [net, task, task] alone. Averages over updates are not made here.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from mtrl.surgery.gram import zero_if_cancelled


@dataclass(frozen=True)
class ConflictStatistics:
    """Conflict of the tasks' gradients in one update.

    All are symmetric. A gradient of zero has no direction: its cosines are 0, and it conflicts with nothing.
    """

    cosines: Tensor
    """[net, task, task] in [-1, 1], cosine of the angle between two gradients."""
    magnitude_similarity: Tensor
    """[net, task, task] in [0, 1], Φ of Definition 2: 1 for equal norms, also for two of zero."""
    xi: Tensor
    """[net, task, task], at least 0, the curvature bounding measure ξ of Definition 5. It has no value for a pair that
    adds to zero; here it is 0 where the sum is below what float32 resolves."""
    conflicts: Tensor
    """bool [net, task, task], cosine below 0 (Definition 1)."""
    condition_a: Tensor
    """bool [net, task, task], conflicting pairs with cosine ≤ -Φ: condition (a) of Theorem 2."""
    xi_at_most_1: Tensor
    """bool [net, task, task], conflicting pairs with ξ ≤ 1, which condition (b) of Theorem 2 needs."""


def conflict_statistics(gram: Tensor) -> ConflictStatistics:
    """Measures one update's gradients.

    Args:
        gram: [net, task, task], inner products of the original gradients.

    Raises:
        ValueError: The matrix is not [net, task, task].
    """
    if gram.dim() != 3 or gram.shape[1] != gram.shape[2]:
        raise ValueError(f"gram has shape {list(gram.shape)}; expected [net, task, task]")
    inner = gram.detach().double()
    square = inner.diagonal(dim1=1, dim2=2)  # [net, task]
    norm = square.sqrt()
    squares = square.unsqueeze(1) + square.unsqueeze(2)  # ‖g_i‖² + ‖g_j‖²
    norms = norm.unsqueeze(1) + norm.unsqueeze(2)
    product = norm.unsqueeze(1) * norm.unsqueeze(2)

    cosines = torch.where(product == 0.0, 0.0, inner / product).clamp(-1.0, 1.0)
    similarity = torch.where(squares == 0.0, 1.0, 2.0 * product / squares)
    sum_square = zero_if_cancelled(squares + 2.0 * inner, norms)
    difference_square = zero_if_cancelled(squares - 2.0 * inner, norms)
    xi = torch.where(sum_square == 0.0, 0.0, (1.0 - cosines.square()) * difference_square / sum_square)

    conflicts = cosines < 0.0
    condition_a = conflicts & (cosines <= -similarity)
    xi_at_most_1 = conflicts & (xi <= 1.0)
    return ConflictStatistics(
        cosines=cosines,
        magnitude_similarity=similarity,
        xi=xi,
        conflicts=conflicts,
        condition_a=condition_a,
        xi_at_most_1=xi_at_most_1,
    )


def curvature_along_step(loss_before: Tensor, loss_after: Tensor, gradient_dot_step: Tensor) -> Tensor:
    """Returns twice what the loss after a step lies above the line along its gradient: 2 [L(θ + Δ) - L(θ) - ∇L(θ) · Δ].

    Estimate of Sec. 5.3 of arXiv 2001.06782. It equals Δᵀ∇²LΔ, averaged over the way with weights that fall from 2 to
    0. After a step -t∇L of gradient descent that is t² times the curvature of Definition 3, whose average is even.
    Adam's step does not point along the gradient: then this is the curvature along the step taken, not along ∇L.

    Args:
        loss_before: Loss at θ, any shape, e.g. [] for all tasks together or [task].
        loss_after: The same loss, on the same batch with the same noise, at θ + Δ.
        gradient_dot_step: ∇L(θ) · Δ of the same loss.
    """
    return 2.0 * (loss_after - loss_before - gradient_dot_step)

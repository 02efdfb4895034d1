"""The step of trust region policy optimization: conjugate gradient, the step's length, and the line search.

Trust Region Policy Optimization (arXiv 1502.05477), appendix C. What is minimised and what the divergence is are the
caller's: all here is about flat vectors [param] and functions of them.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

Product = Callable[[Tensor], Tensor]
"""Vector [param] → a symmetric matrix times it, [param]."""
Evaluate = Callable[[Tensor], tuple[Tensor | float, Tensor | float]]
"""Step [param] → loss [] and mean KL divergence [] at the parameters minus the step."""


@dataclass(frozen=True)
class Outcome:
    """What a trust region step has come to."""

    step: Tensor
    """[param], to be subtracted from the parameters; zero if nothing was accepted."""
    accepted: bool
    fraction: float
    """Part of the full step that was accepted; 0 if none was."""
    loss_before: float
    loss_after: float
    """At the parameters minus `step`."""
    kl: float
    """Nats, at the parameters minus `step`."""
    expected_improvement: float
    """By how much the loss would fall if it were linear: gradient · step."""
    num_backtracks: int
    """Trials of the line search after the first."""
    cg_residual: float
    """‖g - Fx‖ / ‖g‖ of the direction x that conjugate gradient found, F damped; NaN for a gradient of zero."""


def trust_region_step(
    gradient: Tensor,
    fisher_product: Product,
    evaluate: Evaluate,
    *,
    max_kl: float,
    damping: float,
    backtrack_ratio: float,
    max_backtracks: int,
    cg_iterations: int,
) -> Outcome:
    """Finds a step that lowers a loss and keeps the KL divergence within bounds.

    The full step is x = F⁻¹g, scaled to where the quadratic model of the divergence, half of xᵀFx, reaches `max_kl`.
    The line search accepts the first fraction in 1, ratio, ratio², … at which the loss lies below that at the
    parameters and the divergence is at most `max_kl`, both finite. The step is zero where no fraction is accepted,
    where the gradient is zero, and where the direction is not finite or F is not positive along it.

    Args:
        gradient: [param], of the loss at the parameters.
        fisher_product: v → Fv, without damping.
        evaluate: Called with the zero step first, then once for each trial.
        max_kl: Nats.
        damping: Added to the diagonal of F, in the direction and in the length of the step.
        backtrack_ratio: Factor from one fraction to the next, in (0, 1).
        max_backtracks: Largest number of trials after the first.
        cg_iterations: Largest number of iterations of conjugate gradient.
    """

    def damped(vector: Tensor) -> Tensor:
        return fisher_product(vector) + damping * vector

    direction = conjugate_gradient(damped, gradient, cg_iterations)
    product = damped(direction).detach()
    full_step = torch.sqrt(2.0 * max_kl / torch.dot(direction, product)) * direction  # not finite for a zero direction
    cg_residual = _number((gradient - product).norm() / gradient.norm())
    nothing = torch.zeros_like(gradient)
    loss_before, kl_before = (_number(value) for value in evaluate(nothing))
    num_trials = max_backtracks + 1 if bool(full_step.isfinite().all()) else 0
    for num_backtracks in range(num_trials):
        fraction = backtrack_ratio**num_backtracks
        step = fraction * full_step
        loss, kl = (_number(value) for value in evaluate(step))
        if math.isfinite(loss) and math.isfinite(kl) and loss < loss_before and kl <= max_kl:
            expected = _number(torch.dot(gradient, step))
            return Outcome(step, True, fraction, loss_before, loss, kl, expected, num_backtracks, cg_residual)
    num_backtracks = max(num_trials - 1, 0)
    return Outcome(nothing, False, 0.0, loss_before, loss_before, kl_before, 0.0, num_backtracks, cg_residual)


def conjugate_gradient(product: Product, b: Tensor, iterations: int = 10, residual: float = 1e-10) -> Tensor:
    """Returns x [param] with A x close to b, for a symmetric positive definite A.

    It ends early, with what it has, where A is not positive along a direction of search, or not a number.

    Args:
        product: v → Av.
        b: [param].
        iterations: Largest number of products.
        residual: Enough is a squared residual ‖b - Ax‖² of this part of ‖b‖². Relative, unlike garage's 1e-10: a small
            gradient has a direction too.
    """
    x = torch.zeros_like(b)
    rest = search = b.detach()  # b - A x, and the direction of search
    square = torch.dot(rest, rest)
    enough = residual * square
    for _ in range(iterations):
        if square <= enough:
            break
        image = product(search).detach()
        curvature = torch.dot(search, image)
        if not curvature > 0.0:  # NaN too
            break
        length = square / curvature
        x = x + length * search
        rest = rest - length * image
        square, last = torch.dot(rest, rest), square
        search = rest + square / last * search
    return x


def hessian_vector_product(loss_gradient: Tensor, parameters: Sequence[Tensor], vector: Tensor) -> Tensor:
    """Returns the Hessian of a loss times a vector, [param], by a second backward; 0 where the gradient is constant.

    The Fisher matrix is the Hessian of the mean KL divergence from the policy as it is, in the second argument.

    Args:
        loss_gradient: [param], the flat gradient by `parameters`, made with `create_graph=True`; its graph is kept.
        parameters: In the order of the flat gradient.
        vector: [param].
    """
    along = torch.dot(loss_gradient, vector.detach())
    return flat(torch.autograd.grad(along, parameters, retain_graph=True, materialize_grads=True))


def flat(tensors: Sequence[Tensor]) -> Tensor:
    """Returns the tensors' entries one after the other, [param]."""
    return torch.cat([tensor.reshape(-1) for tensor in tensors])


def unflatten(vector: Tensor, like: Sequence[Tensor]) -> tuple[Tensor, ...]:
    """Returns the vector cut into the shapes of `like`, as views: `flat` undone.

    Args:
        vector: [param].
        like: Tensors with as many entries together.

    Raises:
        ValueError: There are more or fewer.
    """
    sizes = [tensor.numel() for tensor in like]
    if vector.shape != (sum(sizes),):
        raise ValueError(f"vector has shape {list(vector.shape)}; expected [{sum(sizes)}], the entries of `like`")
    return tuple(part.view(tensor.shape) for part, tensor in zip(torch.split(vector, sizes), like, strict=True))


def _number(value: Tensor | float) -> float:
    return float(value.detach()) if isinstance(value, Tensor) else float(value)

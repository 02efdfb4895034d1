"""A value function without a network: ridge regression of returns on features of the observation and the time.

Benchmarking Deep Reinforcement Learning for Continuous Control (arXiv 1604.06778), with the clipping and the
regularisation of its code, rllab. Each group, a sampled task say, has a fit of its own.

All is float64: in a trial of 5,000 steps the cubed time reaches 1.25e5, and its square sums up to 1e13 in FᵀF, beside
which the regularisation is 1e-5.
"""

from __future__ import annotations

import torch
from torch import Tensor

_LARGEST_OBS = 10.0
_STEPS_PER_UNIT_OF_TIME = 100.0
_TRIES = 6  # the regularisation asked for, and five times ten times the last


def features(obs: Tensor) -> Tensor:
    """Returns o, o², t, t², t³ and 1, float64 [..., step, feature] with 2 obs_dim + 4 features.

    Args:
        obs: [..., step, obs_dim]; o is clipped to [-10, 10]. The position along `step` gives t, in hundreds of steps.
    """
    clipped = obs.double().clamp(-_LARGEST_OBS, _LARGEST_OBS)
    time = torch.arange(obs.shape[-2], dtype=torch.float64, device=obs.device) / _STEPS_PER_UNIT_OF_TIME
    powers = torch.stack((time, time**2, time**3, torch.ones_like(time)), dim=-1)  # [step, 4]
    return torch.cat((clipped, clipped.square(), powers.expand(*obs.shape[:-1], 4)), dim=-1)


@torch.no_grad()
def fit_linear_baseline(obs: Tensor, returns: Tensor, mask: Tensor, reg: float = 1e-5) -> Tensor:
    """Returns the coefficients of each group's ridge regression, float64 [group, feature].

    They solve (FᵀF + reg I) w = Fᵀ returns, the regularisation on the constant too. Where the factorisation fails or w
    is not finite, that group is tried again with ten times the regularisation, up to five times. By Cholesky and not
    least squares: the matrix is positive definite, and the error of Cholesky does not depend on the features' scales,
    while least squares drop what is small beside the largest feature, here the cubed time.

    Args:
        obs: [group, row, step, obs_dim].
        returns: [group, row, step].
        mask: bool [group, row, step], False in padding, whose content is never looked at.
        reg: Added to the diagonal of FᵀF.

    Raises:
        ValueError: The shapes do not fit, or a group has no finite solution.
    """
    if obs.dim() != 4 or not obs.shape[:3] == returns.shape == mask.shape:
        raise ValueError(
            f"obs {list(obs.shape)}, returns {list(returns.shape)} and mask {list(mask.shape)} do not fit; "
            "expected [group, row, step, obs_dim] and twice [group, row, step]"
        )
    equations = [_normal_equations(*group) for group in zip(obs, returns, mask, strict=True)]
    matrix = torch.stack([left for left, _ in equations])  # [group, feature, feature]
    right = torch.stack([right for _, right in equations])  # [group, feature]
    coefficients = torch.zeros_like(right)
    solved = torch.zeros(len(obs), dtype=torch.bool, device=obs.device)
    for attempt in range(_TRIES):
        found, finite = _solve(matrix, right, reg * 10.0**attempt)
        coefficients = torch.where((finite & ~solved).unsqueeze(1), found, coefficients)
        solved |= finite
        if solved.all():
            return coefficients
    raise ValueError(
        f"groups {torch.nonzero(~solved).flatten().tolist()} have no finite linear baseline, with a regularisation of "
        f"{reg:g} to {reg * 10.0 ** (_TRIES - 1):g}; look for NaN or infinity in their observations and returns"
    )


@torch.no_grad()
def linear_values(obs: Tensor, coefficients: Tensor) -> Tensor:
    """Returns what the baseline predicts, [group, row, step], in the precision of obs.

    Args:
        obs: [group, row, step, obs_dim].
        coefficients: float64 [group, feature], from `fit_linear_baseline`.
    """
    assert obs.dim() == 4
    assert coefficients.shape == (obs.shape[0], 2 * obs.shape[3] + 4)
    values = [features(group) @ weights for group, weights in zip(obs, coefficients, strict=True)]
    return torch.stack(values).to(obs.dtype)


def _normal_equations(obs: Tensor, returns: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
    """Returns FᵀF [feature, feature] and Fᵀ returns [feature] of one group, whose features no longer exist then."""
    valid = mask.unsqueeze(-1)  # [row, step, 1]
    rows = torch.where(valid, features(obs), 0.0).flatten(0, 1)  # [row * step, feature]
    targets = torch.where(mask, returns.double(), 0.0).flatten()  # [row * step]
    return rows.T @ rows, rows.T @ targets


def _solve(matrix: Tensor, right: Tensor, reg: float) -> tuple[Tensor, Tensor]:
    """Returns the solutions [group, feature] and whether each is one, bool [group]."""
    identity = torch.eye(matrix.shape[1], dtype=matrix.dtype, device=matrix.device)
    factor, info = torch.linalg.cholesky_ex(matrix + reg * identity)
    found = torch.cholesky_solve(right.unsqueeze(2), factor).squeeze(2)
    return found, (info == 0) & found.isfinite().all(dim=1)

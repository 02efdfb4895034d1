"""Returns and advantages of sampled steps: pure functions, through which no gradient flows.

All tensors are [row, step]. A row is an episode, or a trial of RL²: several episodes laid one after the other. Rows
shorter than others end in padding, whose content is never looked at. Value functions are not made here.
"""

from __future__ import annotations

import torch
from torch import Tensor

_STD_FLOOR = 1e-8  # keeps equal advantages at 0


@torch.no_grad()
def discounted_returns(reward: Tensor, mask: Tensor, gamma: float, cut: Tensor | None = None) -> Tensor:
    """Returns the discounted sum of the rewards from each step on, [row, step], 0 in padding.

    Nothing stands in for rewards that a time limit has kept from being collected.

    Args:
        reward: [row, step].
        mask: bool [row, step], False in padding.
        gamma: Discount of one step.
        cut: bool [row, step], True at steps after which the sum does not go on; None lets it run through the row.
    """
    assert reward.dim() == 2
    assert reward.shape == mask.shape
    goes_on = mask if cut is None else mask & ~cut
    return _sums_from_behind(torch.where(mask, reward, 0.0), gamma * goes_on.to(reward.dtype))


@torch.no_grad()
def generalized_advantages(
    reward: Tensor,
    value: Tensor,
    next_value: Tensor,
    terminated: Tensor,
    mask: Tensor,
    gamma: float,
    lam: float,
    cut: Tensor | None = None,
) -> Tensor:
    """Returns GAE(gamma, lambda), [row, step], 0 in padding (Eq. 16 of arXiv 1506.02438, ended where the row ends).

    It is the sum of the one-step errors from each step on, discounted by gamma lambda. The sum ends after a terminated
    step, after a cut and with the row. A time limit does not end the bootstrap: the error of a truncated step counts
    `next_value`. Whether the sum goes on behind it is for `cut` to say: rows that hold several episodes pass
    `cut=terminated | truncated`. A trial of RL² passes None, so that later episodes count for earlier ones; there
    `next_value` is the value of the trial's next step, across the border too, and an episode's end is not terminated.

    Args:
        reward: [row, step].
        value: [row, step], of the observation before the step.
        next_value: [row, step], of the observation after it, before any reset; not used at terminated steps.
        terminated: bool [row, step].
        mask: bool [row, step], False in padding.
        gamma: Discount of one step.
        lam: 0 is the one-step error, 1 the return minus the value.
        cut: bool [row, step], True at steps after which the sum does not go on; None lets it run through the row.
    """
    assert reward.dim() == 2
    assert reward.shape == value.shape == next_value.shape == terminated.shape == mask.shape
    error = reward + gamma * torch.where(terminated, 0.0, next_value) - value
    goes_on = mask & ~terminated if cut is None else mask & ~terminated & ~cut
    return _sums_from_behind(torch.where(mask, error, 0.0), gamma * lam * goes_on.to(reward.dtype))


@torch.no_grad()
def normalized(advantage: Tensor, mask: Tensor, dim: tuple[int, ...]) -> Tensor:
    """Returns advantages with mean 0 and standard deviation 1 over the valid entries of `dim`, 0 in padding.

    The deviation is that of the population, plus 1e-8. Equal advantages become 0, as does one alone.

    Args:
        advantage: Any shape, e.g. [task, row, step].
        mask: bool, same shape, False in padding.
        dim: Dimensions to normalise over, e.g. (1, 2) for each task by itself.
    """
    assert advantage.shape == mask.shape
    exact = torch.where(mask, advantage, 0.0).double()  # in float32 the mean of equal numbers can differ from them
    count = mask.sum(dim=dim, keepdim=True).clamp(min=1)
    centred = torch.where(mask, exact - exact.sum(dim=dim, keepdim=True) / count, 0.0)
    std = (centred.square().sum(dim=dim, keepdim=True) / count).sqrt()
    return (centred / (std + _STD_FLOOR)).to(advantage.dtype)


def _sums_from_behind(term: Tensor, discount: Tensor) -> Tensor:
    """Returns y_t = term_t + discount_t y_{t+1}, [row, step], with y = 0 behind the last step."""
    sums = torch.empty_like(term)
    total = term.new_zeros(len(term))  # [row]
    for step in reversed(range(term.shape[1])):
        total = torch.addcmul(term[:, step], discount[:, step], total)
        sums[:, step] = total
    return sums

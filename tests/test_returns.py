"""Returns and advantages against numbers worked out by hand and against their definitions, term by term."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from mtrl.losses.returns import discounted_returns, generalized_advantages, normalized

ALL = torch.ones(1, 4, dtype=torch.bool)
NEVER = torch.zeros(1, 4, dtype=torch.bool)


def _at(*steps: int) -> Tensor:
    marked = NEVER.clone()
    marked[0, list(steps)] = True
    return marked


def _random_steps(rows: int = 6, steps: int = 9) -> dict[str, Tensor]:
    """Returns float64 rows of many lengths, one of them empty and one full, with ends of episodes strewn in."""
    generator = torch.Generator().manual_seed(0)
    length = torch.tensor([steps, 0, 1, 4, 6, steps - 1])[:rows]
    reward, value, next_value = torch.randn(3, rows, steps, dtype=torch.float64, generator=generator)
    ends = torch.rand(2, rows, steps, generator=generator) < 0.2
    assert ends[0].any()
    assert (ends[1] & ~ends[0]).any()
    return {
        "reward": reward,
        "value": value,
        "next_value": next_value,
        "terminated": ends[0],
        "truncated": ends[1],
        "mask": torch.arange(steps) < length.unsqueeze(1),
    }


def _double_sum(term: Tensor, last: Tensor, mask: Tensor, discount: float) -> Tensor:
    """Returns the discounted sum of terms from each valid step to the next one that is last or the row's last."""
    sums = torch.zeros_like(term)
    for row, length in enumerate(mask.sum(dim=1).tolist()):
        for start in range(length):
            for step in range(start, length):
                sums[row, start] += discount ** (step - start) * term[row, step]
                if last[row, step]:
                    break
    return sums


def test_returns_by_hand():
    reward = torch.tensor([[1.0, 2.0, 4.0, 8.0]])
    torch.testing.assert_close(discounted_returns(reward, ALL, 0.5), torch.tensor([[4.0, 6.0, 8.0, 8.0]]))


def test_returns_end_with_an_episode_inside_the_row():
    reward = torch.tensor([[1.0, 2.0, 4.0, 8.0]])
    returns = discounted_returns(reward, ALL, 0.5, cut=_at(1))
    torch.testing.assert_close(returns, torch.tensor([[2.0, 2.0, 8.0, 8.0]]))


def test_returns_ignore_padding_whatever_it_holds():
    reward = torch.tensor([[1.0, 2.0, math.nan, 8.0], [1.0, 2.0, 4.0, 8.0]])
    mask = torch.tensor([[True, True, False, False], [True, True, True, True]])
    returns = discounted_returns(reward, mask, 0.5)
    torch.testing.assert_close(returns, torch.tensor([[2.0, 2.0, 0.0, 0.0], [4.0, 6.0, 8.0, 8.0]]))


def test_returns_are_the_double_sum():
    found = _random_steps()
    for cut in (None, found["truncated"]):
        last = torch.zeros_like(found["mask"]) if cut is None else cut
        expected = _double_sum(found["reward"], last, found["mask"], 0.9)
        returns = discounted_returns(found["reward"], found["mask"], 0.9, cut)
        torch.testing.assert_close(returns, expected, rtol=0, atol=1e-13)  # float64, sums of 9 numbers


def _advantages_by_hand(terminated: Tensor, cut: Tensor | None, mask: Tensor = ALL) -> Tensor:
    """Returns advantages where every one-step error is 1 + 0.5 next value - 2: 1.5 with the next value, -1 without."""
    one = torch.ones(1, 4)
    return generalized_advantages(one, 2.0 * one, 5.0 * one, terminated, mask, gamma=0.5, lam=0.8, cut=cut)


# 0.5 * 0.8 = 0.4 of the next advantage is added to an error
def test_a_terminated_step_counts_no_next_value_and_ends_the_sum():
    found = _advantages_by_hand(terminated=_at(1, 3), cut=None)
    torch.testing.assert_close(found, torch.tensor([[1.5 + 0.4 * -1.0, -1.0, 1.5 + 0.4 * -1.0, -1.0]]))


def test_a_time_limit_counts_the_next_value_and_ends_the_sum():
    found = _advantages_by_hand(terminated=NEVER, cut=_at(1, 3))
    torch.testing.assert_close(found, torch.tensor([[1.5 + 0.4 * 1.5, 1.5, 1.5 + 0.4 * 1.5, 1.5]]))


def test_the_sum_runs_through_the_episodes_of_a_trial():
    found = _advantages_by_hand(terminated=_at(3), cut=None)
    third = 1.5 + 0.4 * -1.0
    second = 1.5 + 0.4 * third
    torch.testing.assert_close(found, torch.tensor([[1.5 + 0.4 * second, second, third, -1.0]]))


def test_the_sum_ends_with_the_last_valid_step():
    mask = torch.tensor([[True, True, False, False]])
    found = _advantages_by_hand(terminated=NEVER, cut=None, mask=mask)
    torch.testing.assert_close(found, torch.tensor([[1.5 + 0.4 * 1.5, 1.5, 0.0, 0.0]]))


@pytest.mark.parametrize("name", ["reward", "value", "next_value"])
def test_advantages_ignore_padding_whatever_it_holds(name):
    steps = _random_steps()
    del steps["truncated"]
    expected = generalized_advantages(**steps, gamma=0.9, lam=0.7)
    steps[name] = torch.where(steps["mask"], steps[name], math.nan)
    torch.testing.assert_close(generalized_advantages(**steps, gamma=0.9, lam=0.7), expected, rtol=0, atol=0)


def test_the_value_behind_a_terminated_step_is_not_looked_at():
    steps = _random_steps()
    del steps["truncated"]
    expected = generalized_advantages(**steps, gamma=0.9, lam=0.7)
    steps["next_value"] = torch.where(steps["terminated"], math.nan, steps["next_value"])
    torch.testing.assert_close(generalized_advantages(**steps, gamma=0.9, lam=0.7), expected, rtol=0, atol=0)


def test_advantages_are_the_double_sum_of_one_step_errors():
    steps = _random_steps()
    truncated = steps.pop("truncated")
    error = steps["reward"] + 0.9 * (1.0 - steps["terminated"].double()) * steps["next_value"] - steps["value"]
    for cut in (None, truncated):
        last = steps["terminated"] if cut is None else steps["terminated"] | cut
        expected = _double_sum(error, last, steps["mask"], 0.9 * 0.7)
        found = generalized_advantages(**steps, gamma=0.9, lam=0.7, cut=cut)
        torch.testing.assert_close(found, expected, rtol=0, atol=1e-13)  # float64, sums of 9 numbers


def test_lambda_zero_is_the_one_step_error():
    steps = _random_steps()
    del steps["truncated"]
    error = steps["reward"] + 0.9 * torch.where(steps["terminated"], 0.0, steps["next_value"]) - steps["value"]
    found = generalized_advantages(**steps, gamma=0.9, lam=0.0)
    torch.testing.assert_close(found, torch.where(steps["mask"], error, 0.0), rtol=0, atol=0)


def test_lambda_one_is_the_return_with_its_bootstrap_minus_the_value():
    reward = torch.tensor([[1.0, 2.0, 4.0, 8.0]], dtype=torch.float64)
    value = torch.tensor([[0.1, 0.2, 0.3, 0.4]], dtype=torch.float64)
    next_value = torch.tensor([[0.2, 7.0, 0.4, 9.0]], dtype=torch.float64)
    truncated, terminated = _at(1), _at(3)
    found = generalized_advantages(
        reward, value, next_value, terminated, ALL, gamma=0.9, lam=1.0, cut=terminated | truncated
    )
    with_bootstrap = reward + 0.9 * torch.where(truncated, next_value, 0.0)
    returns = discounted_returns(with_bootstrap, ALL, 0.9, cut=terminated | truncated)
    torch.testing.assert_close(found, returns - value, rtol=0, atol=1e-14)  # the same sums in another order


def test_lambda_one_in_a_trial_is_the_return_of_the_trial_minus_the_value():
    steps = _random_steps()
    behind = torch.zeros(len(steps["value"]), 1, dtype=torch.float64)
    following = torch.cat((torch.where(steps["mask"], steps["value"], 0.0)[:, 1:], behind), dim=1)
    found = generalized_advantages(
        steps["reward"], steps["value"], following, torch.zeros_like(steps["mask"]), steps["mask"], gamma=0.9, lam=1.0
    )
    returns = discounted_returns(steps["reward"], steps["mask"], 0.9)
    expected = torch.where(steps["mask"], returns - steps["value"], 0.0)
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-13)  # the same sums in another order


def test_no_gradient_flows_into_values_and_the_precision_stays():
    value = torch.ones(1, 4, requires_grad=True)
    found = generalized_advantages(torch.ones(1, 4), value, value, NEVER, ALL, gamma=0.9, lam=0.9)
    assert not found.requires_grad
    assert found.dtype == torch.float32
    assert discounted_returns(torch.ones(1, 4), ALL, 0.9).dtype == torch.float32


@pytest.mark.parametrize("dim", [(1, 2), (0, 1, 2), (2,)])
def test_normalized_has_mean_0_and_deviation_1_over_the_valid_entries(dim):
    generator = torch.Generator().manual_seed(0)
    advantage = 3.0 + 5.0 * torch.randn(2, 3, 50, dtype=torch.float64, generator=generator)
    mask = torch.rand(2, 3, 50, generator=generator) < 0.7
    found = normalized(torch.where(mask, advantage, math.nan), mask, dim)
    assert found[~mask].eq(0.0).all()
    count = mask.sum(dim=dim)
    zero = torch.zeros(count.shape, dtype=torch.float64)
    torch.testing.assert_close(found.sum(dim=dim) / count, zero, rtol=0, atol=1e-14)
    # the deviation is about 5: 1e-8 added to it changes 2e-9 of it
    torch.testing.assert_close((found.square().sum(dim=dim) / count).sqrt(), zero + 1.0, rtol=0, atol=1e-8)


def test_normalized_by_hand_divides_by_the_deviation_of_the_population():
    found = normalized(torch.tensor([[0.0, 4.0, 8.0]]), torch.tensor([[True, True, False]]), dim=(1,))
    torch.testing.assert_close(found, torch.tensor([[-1.0, 1.0, 0.0]]))


@pytest.mark.parametrize("count", [0, 1, 1000])
def test_equal_advantages_become_zero(count):
    advantage = torch.full((1, 1000), 0.1)  # 0.1 has no exact float32: the sum of 1,000 of them is rounded
    mask = torch.arange(1000).unsqueeze(0) < count
    assert normalized(advantage, mask, dim=(1,)).eq(0.0).all()


@pytest.mark.parametrize("shape", [(4,), (1, 4, 1), (2, 4)])
def test_wrong_shapes_are_refused(shape):
    with pytest.raises(AssertionError):
        discounted_returns(torch.zeros(shape), ALL, 0.9)
    with pytest.raises(AssertionError):
        generalized_advantages(torch.zeros(1, 4), torch.zeros(shape), torch.zeros(1, 4), NEVER, ALL, 0.9, 0.9)

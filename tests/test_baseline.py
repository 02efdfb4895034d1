"""The linear baseline against scikit-learn's ridge regression, and where regression is numerically hard."""

from __future__ import annotations

import math

import pytest
import torch
from sklearn.linear_model import Ridge
from torch import Tensor

from mtrl.learners import baseline
from mtrl.learners.baseline import features, fit_linear_baseline, linear_values

GROUPS, ROWS, STEPS, OBS_DIM = 3, 4, 60, 5


def _normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def _episodes() -> tuple[Tensor, Tensor, Tensor]:
    """Returns obs, returns and mask of episodes of different lengths, float64."""
    length = torch.tensor([STEPS, 1, 30, 59])
    mask = (torch.arange(STEPS) < length.unsqueeze(1)).expand(GROUPS, ROWS, STEPS)
    return 4.0 * _normal(GROUPS, ROWS, STEPS, OBS_DIM), 100.0 * _normal(GROUPS, ROWS, STEPS, seed=1), mask


def test_features_by_hand():
    obs = torch.tensor([[0.5, -20.0], [0.0, 3.0]])  # [step, obs_dim]
    expected = [
        [0.5, -10.0, 0.25, 100.0, 0.0, 0.0, 0.0, 1.0],
        [0.0, 3.0, 0.0, 9.0, 0.01, 1e-4, 1e-6, 1.0],
    ]
    torch.testing.assert_close(features(obs), torch.tensor(expected, dtype=torch.float64), rtol=1e-15, atol=0)


def test_time_counts_from_the_start_of_each_row():
    found = features(torch.zeros(2, 3, 400, 1))
    torch.testing.assert_close(found[1, 2, :, 2], torch.arange(400, dtype=torch.float64) / 100.0, rtol=0, atol=0)


@pytest.mark.parametrize("reg", [1e-5, 3.0])
def test_fit_is_scikit_learns_ridge_regression_on_the_valid_steps(reg):
    obs, returns, mask = _episodes()
    coefficients = fit_linear_baseline(obs, returns, mask, reg)
    values = linear_values(obs, coefficients)
    for group in range(GROUPS):
        rows = features(obs[group])[mask[group]].numpy()
        ridge = Ridge(alpha=reg, fit_intercept=False).fit(rows, returns[group][mask[group]].numpy())
        # both solve normal equations whose condition is about 1e8 with numbers of 16 digits
        torch.testing.assert_close(coefficients[group], torch.from_numpy(ridge.coef_), rtol=1e-6, atol=1e-6)
        torch.testing.assert_close(values[group][mask[group]], torch.from_numpy(ridge.predict(rows)), rtol=0, atol=1e-7)


def test_padding_does_not_matter():
    obs, returns, mask = _episodes()
    expected = fit_linear_baseline(obs, returns, mask)
    obs = torch.where(mask.unsqueeze(-1), obs, math.nan)
    returns = torch.where(mask, returns, math.nan)
    torch.testing.assert_close(fit_linear_baseline(obs, returns, mask), expected, rtol=0, atol=0)
    longer = [torch.cat((tensor, tensor[:, :, :7]), dim=2) for tensor in (obs, returns)]
    longer_mask = torch.cat((mask, torch.zeros_like(mask[:, :, :7])), dim=2)
    # the same rows and rows of zeros: the order of the sums may differ
    torch.testing.assert_close(fit_linear_baseline(*longer, longer_mask), expected, rtol=1e-6, atol=1e-6)


def test_each_group_has_its_own_fit():
    obs, returns, mask = _episodes()
    together = fit_linear_baseline(obs, returns, mask)
    values = linear_values(obs, together)
    for group in range(GROUPS):
        one = slice(group, group + 1)
        alone = fit_linear_baseline(obs[one], returns[one], mask[one])
        torch.testing.assert_close(alone, together[one], rtol=0, atol=0)
        torch.testing.assert_close(linear_values(obs[one], alone), values[one], rtol=0, atol=0)


def test_returns_linear_in_the_features_are_met():
    obs, _, mask = _episodes()
    returns = features(obs) @ _normal(2 * OBS_DIM + 4)
    values = linear_values(obs, fit_linear_baseline(obs, returns, mask))
    # the regularisation pulls the weights of the powers of the time towards 0, by 5e-5 in the values
    torch.testing.assert_close(values[mask], returns[mask], rtol=0, atol=2e-4)


def test_constant_observations_have_finite_values():
    obs = torch.full((1, 3, 50, OBS_DIM), 7.0)
    time = torch.arange(50.0).expand(1, 3, 50)
    mask = torch.ones(1, 3, 50, dtype=torch.bool)
    coefficients = fit_linear_baseline(obs, 20.0 - time, mask)
    assert coefficients.isfinite().all()
    # the regularisation pulls the weight of the time, -100, towards 0, by 1.4e-3 in the values
    torch.testing.assert_close(linear_values(obs, coefficients), 20.0 - time, rtol=0, atol=5e-3)


def test_a_group_without_steps_is_worth_nothing():
    obs, returns, mask = _episodes()
    mask = mask.clone()
    mask[1] = False
    assert fit_linear_baseline(obs, returns, mask)[1].eq(0.0).all()


def test_long_trials_are_fitted_as_exactly_as_by_factorising_the_features():
    """Small observations beside a cubed time of up to 1.25e5, others constant or at the limit: lstsq fails here."""
    obs = _normal(1, 10, 5000, 8)
    obs[..., 0] *= 0.01
    obs[..., 3], obs[..., 4], obs[..., 5:] = 100.0, 0.3, 0.0
    rows = features(obs)[0].flatten(0, 1)
    returns = rows[:, :3].sum(dim=1) + 100.0 * rows[:, 0] + torch.sin(rows[:, -4])
    regularisation = math.sqrt(1e-5) * torch.eye(rows.shape[1], dtype=torch.float64)
    q, r = torch.linalg.qr(torch.cat((rows, regularisation)))
    right = q.T @ torch.cat((returns, torch.zeros(len(r), dtype=torch.float64)))
    exact = rows @ torch.linalg.solve_triangular(r, right.unsqueeze(1), upper=True).squeeze(1)
    returns, mask = returns.view(1, 10, 5000), torch.ones(1, 10, 5000, dtype=torch.bool)
    values = linear_values(obs, fit_linear_baseline(obs, returns, mask))
    torch.testing.assert_close(values.flatten(), exact, rtol=0, atol=1e-9)  # least squares of FᵀF: wrong by about 1


def test_values_have_the_precision_of_observations_but_are_computed_in_float64():
    obs = _normal(1, 2, 5000, 3).float()
    time = torch.arange(5000.0) / 100.0
    returns = ((time - 25.0) ** 3).expand(1, 2, 5000)  # differences of terms of 1e4 where it is near 0
    coefficients = fit_linear_baseline(obs, returns, torch.ones(1, 2, 5000, dtype=torch.bool))
    values = linear_values(obs, coefficients)
    assert values.dtype == torch.float32
    torch.testing.assert_close(values, linear_values(obs.double(), coefficients).float(), rtol=0, atol=0)
    assert not torch.equal(values, linear_values(obs, coefficients.float().double()))  # the test can see the difference


def test_only_a_group_without_solution_is_regularised_more(monkeypatch):
    obs, returns, mask = _episodes()
    expected = fit_linear_baseline(obs, returns, mask)
    harder = fit_linear_baseline(obs, returns, mask, reg=1e-3)
    solve, tried = baseline._solve, []

    def failing(matrix, right, reg):
        tried.append(reg)
        found, finite = solve(matrix, right, reg)
        if len(tried) < 3:
            found[1], finite[1] = math.nan, False
        return found, finite

    monkeypatch.setattr(baseline, "_solve", failing)
    coefficients = fit_linear_baseline(obs, returns, mask)
    assert tried == pytest.approx([1e-5, 1e-4, 1e-3])
    torch.testing.assert_close(coefficients[[0, 2]], expected[[0, 2]], rtol=0, atol=0)
    torch.testing.assert_close(coefficients[1], harder[1], rtol=0, atol=1e-9)  # 1e-5 * 10² is not quite 1e-3


def test_a_group_that_cannot_be_fitted_is_named():
    obs, returns, mask = _episodes()
    returns[2, 0, 0] = math.nan
    with pytest.raises(ValueError, match=r"groups \[2\] have no finite linear baseline, .* 1e-05 to 1;"):
        fit_linear_baseline(obs, returns, mask)


def test_wrong_shapes_are_refused():
    obs, returns, mask = _episodes()
    with pytest.raises(ValueError, match="do not fit"):
        fit_linear_baseline(obs, returns[:, :1], mask)
    with pytest.raises(ValueError, match="do not fit"):
        fit_linear_baseline(obs[0], returns[0], mask[0])

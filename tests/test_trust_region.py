"""The trust region step against explicit matrices, on quadratics and on a small Gaussian policy."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from mtrl.learners.trust_region import (
    Outcome,
    conjugate_gradient,
    flat,
    hessian_vector_product,
    trust_region_step,
    unflatten,
)

LIMITS = {"max_kl": 0.01, "damping": 0.0, "backtrack_ratio": 0.5, "max_backtracks": 5, "cg_iterations": 20}


def _normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def _positive_definite(size: int, seed: int) -> Tensor:
    """Returns a random symmetric matrix with eigenvalues from 1 to 10."""
    basis, _ = torch.linalg.qr(_normal(size, size, seed=seed))
    return basis @ torch.diag(torch.logspace(0, 1, size, dtype=torch.float64)) @ basis.T


def _step(gradient: Tensor, matrix: Tensor, evaluate: Callable[[Tensor], tuple[float, float]], **limits) -> Outcome:
    return trust_region_step(gradient, lambda vector: matrix @ vector, evaluate, **{**LIMITS, **limits})


class Gaussian:
    """A policy of one hidden layer with samples and advantages; loss and KL as functions of flat parameters."""

    def __init__(self, seed: int = 0) -> None:
        self.shapes = [torch.empty(4, 3), torch.empty(4), torch.empty(2, 4), torch.empty(2)]
        self.parameters = tuple(0.5 * _normal(*like.shape, seed=seed + index) for index, like in enumerate(self.shapes))
        self.obs = _normal(30, 3, seed=seed + 10)
        self.advantage = _normal(30, seed=seed + 11)
        mean, std = self._distribution(self.parameters)
        self.action = mean + std * _normal(30, 2, seed=seed + 12)
        self.old_mean, self.old_std, self.old_log_prob = mean, std, self._log_prob(self.parameters)

    def loss(self, parameters: tuple[Tensor, ...]) -> Tensor:
        return -((self._log_prob(parameters) - self.old_log_prob).exp() * self.advantage).mean()

    def kl(self, parameters: tuple[Tensor, ...]) -> Tensor:
        """Returns the mean of KL(old ‖ new), []."""
        mean, std = self._distribution(parameters)
        squares = self.old_std.square() + (self.old_mean - mean).square()
        return ((std / self.old_std).log() + squares / (2.0 * std.square()) - 0.5).sum(dim=1).mean()

    def evaluate(self, step: Tensor) -> tuple[Tensor, Tensor]:
        moved = unflatten(flat(self.parameters) - step, self.shapes)
        return self.loss(moved), self.kl(moved)

    def gradient(self, of: Callable[[tuple[Tensor, ...]], Tensor]) -> tuple[Tensor, tuple[Tensor, ...]]:
        """Returns the flat gradient with its graph, and the parameters it belongs to."""
        leaves = tuple(parameter.clone().requires_grad_() for parameter in self.parameters)
        return flat(torch.autograd.grad(of(leaves), leaves, create_graph=True)), leaves

    def fisher(self) -> Tensor:
        """Returns the Hessian of the KL divergence, [param, param], by torch's own function."""
        return torch.autograd.functional.hessian(
            lambda vector: self.kl(unflatten(vector, self.shapes)), flat(self.parameters)
        )

    def _distribution(self, parameters: tuple[Tensor, ...]) -> tuple[Tensor, Tensor]:
        weight, bias, head, log_std = parameters
        mean = torch.tanh(self.obs @ weight.T + bias) @ head.T
        return mean, log_std.exp().expand_as(mean)

    def _log_prob(self, parameters: tuple[Tensor, ...]) -> Tensor:
        mean, std = self._distribution(parameters)
        return torch.distributions.Normal(mean, std, validate_args=False).log_prob(self.action).sum(dim=1)


@pytest.mark.parametrize("seed", range(5))
def test_conjugate_gradient_solves_n_equations_in_n_iterations(seed):
    matrix, solution = _positive_definite(12, seed), _normal(12, seed=seed + 100)
    found = conjugate_gradient(lambda vector: matrix @ vector, matrix @ solution, iterations=12, residual=0.0)
    # rounding, which conjugate gradient amplifies, leaves 1e-13 here; after 11 iterations 2e-6 to 1e-4 are missing
    torch.testing.assert_close(found, solution, rtol=0, atol=1e-6)


def _products_used(matrix: Tensor, b: Tensor, **limits) -> int:
    vectors = []

    def product(vector: Tensor) -> Tensor:
        vectors.append(vector)
        return matrix @ vector

    conjugate_gradient(product, b, **limits)
    return len(vectors)


def test_conjugate_gradient_ends_when_the_residual_is_small_enough():
    two_eigenvalues = torch.diag(torch.tensor([1.0, 1.0, 5.0, 5.0, 5.0], dtype=torch.float64))
    assert _products_used(two_eigenvalues, _normal(5)) == 2
    assert _products_used(_positive_definite(50, seed=0), _normal(50), iterations=7) == 7
    assert _products_used(two_eigenvalues, torch.zeros(5, dtype=torch.float64)) == 0


@pytest.mark.parametrize("scale", [1e-8, 1e8])
def test_conjugate_gradient_knows_no_scale(scale):
    matrix, b = _positive_definite(50, seed=0), _normal(50)
    found = conjugate_gradient(lambda vector: matrix @ vector, scale * b)
    expected = conjugate_gradient(lambda vector: matrix @ vector, b)
    torch.testing.assert_close(found / scale, expected, rtol=1e-9, atol=0)


@pytest.mark.parametrize("matrix", [-torch.eye(3), torch.full((3, 3), math.nan), torch.zeros(3, 3)])
def test_conjugate_gradient_ends_where_the_matrix_is_not_positive(matrix):
    assert conjugate_gradient(lambda vector: matrix @ vector, torch.ones(3)).eq(0.0).all()


def test_fisher_product_by_double_backward_is_the_hessian_of_the_kl_divergence():
    policy = Gaussian()
    gradient, leaves = policy.gradient(policy.kl)
    fisher = policy.fisher()
    columns = [hessian_vector_product(gradient, leaves, unit) for unit in torch.eye(len(gradient)).double()]
    torch.testing.assert_close(torch.stack(columns, dim=1), fisher, rtol=0, atol=1e-8)
    torch.testing.assert_close(fisher[-2:, -2:], 2.0 * torch.eye(2).double())  # by hand: of log std it is 2


def test_hessian_product_is_zero_for_parameters_with_a_constant_gradient():
    curved, straight = torch.ones(2, requires_grad=True), torch.ones(1, requires_grad=True)
    leaves = (curved, straight)
    loss = (curved**3).sum() + 4.0 * straight.sum()
    gradient = flat(torch.autograd.grad(loss, leaves, create_graph=True))
    product = hessian_vector_product(gradient, leaves, torch.tensor([1.0, 2.0, 3.0]))
    torch.testing.assert_close(product, torch.tensor([6.0, 12.0, 0.0]))


@pytest.mark.parametrize("seed", range(5))
def test_an_accepted_step_of_a_policy_lowers_the_loss_within_the_divergence(seed):
    policy = Gaussian(seed)
    gradient, _ = policy.gradient(policy.loss)
    kl_gradient, leaves = policy.gradient(policy.kl)
    outcome = trust_region_step(
        gradient,
        lambda vector: hessian_vector_product(kl_gradient, leaves, vector),
        policy.evaluate,
        **{**LIMITS, "damping": 1e-5},
    )
    assert outcome.accepted
    loss, kl = policy.evaluate(outcome.step)
    assert float(loss) < float(policy.loss(policy.parameters))
    assert 0.0 < float(kl) <= LIMITS["max_kl"]
    assert (outcome.loss_after, outcome.kl) == (float(loss), float(kl))
    assert outcome.loss_before == float(policy.loss(policy.parameters))
    assert outcome.expected_improvement == pytest.approx(float(gradient.detach() @ outcome.step))
    assert not outcome.step.requires_grad


@pytest.mark.parametrize("seed", range(5))
def test_without_a_limit_from_the_search_the_step_is_the_natural_gradient_of_length_max_kl(seed):
    """On a quadratic divergence the full step reaches max_kl: xᵀFx / 2 = max_kl, x along F⁻¹g."""
    matrix, gradient = _positive_definite(8, seed), _normal(8, seed=seed + 100)
    outcome = _step(gradient, matrix, lambda step: (float(-gradient @ step), 0.0))
    natural = torch.linalg.solve(matrix, gradient)
    expected = math.sqrt(2.0 * 0.01 / float(natural @ matrix @ natural)) * natural
    torch.testing.assert_close(outcome.step, expected, rtol=1e-4, atol=0)  # residual² of conjugate gradient: 1e-10
    assert float(outcome.step @ matrix @ outcome.step) / 2.0 == pytest.approx(0.01, rel=1e-12)
    assert (outcome.accepted, outcome.fraction, outcome.num_backtracks) == (True, 1.0, 0)
    assert outcome.cg_residual < 1e-5


def test_damping_is_in_the_direction_and_in_the_length():
    matrix, gradient = torch.diag(torch.tensor([1.0, 3.0], dtype=torch.float64)), _normal(2)
    outcome = _step(gradient, matrix, lambda step: (float(-gradient @ step), 0.0), damping=2.0)
    natural = gradient / torch.tensor([3.0, 5.0], dtype=torch.float64)
    torch.testing.assert_close(outcome.step, math.sqrt(0.02 / float(natural @ gradient)) * natural)


def test_the_search_takes_the_first_fraction_within_the_divergence():
    matrix, gradient = torch.eye(3, dtype=torch.float64), _normal(3)
    tried = []

    def evaluate(step: Tensor) -> tuple[float, float]:
        tried.append(float(step.norm()))
        return float(-gradient @ step), 5.0 * float(step @ matrix @ step) / 2.0  # five times its quadratic model

    outcome = _step(gradient, matrix, evaluate)
    full = math.sqrt(0.02)
    assert tried == pytest.approx([0.0, full, full / 2.0, full / 4.0])  # 5 and 5 / 4 times max_kl are too much
    assert (outcome.accepted, outcome.fraction, outcome.num_backtracks) == (True, 0.25, 2)
    assert outcome.kl == pytest.approx(5.0 / 16.0 * 0.01)


def test_the_search_takes_the_first_fraction_that_lowers_the_loss():
    matrix, gradient = torch.eye(3, dtype=torch.float64), _normal(3)

    def evaluate(step: Tensor) -> tuple[float, float]:
        part = float(step.norm()) / math.sqrt(0.02)
        return 7.0 + part * (part - 0.5), 0.0  # lowest at a quarter; at half of the step as at none of it

    outcome = _step(gradient, matrix, evaluate)
    assert (outcome.accepted, outcome.fraction, outcome.num_backtracks) == (True, 0.25, 2)
    assert (outcome.loss_before, outcome.loss_after) == (7.0, pytest.approx(7.0 - 1.0 / 16.0))


def test_a_divergence_of_exactly_max_kl_is_accepted():
    gradient = _normal(3)
    assert _step(gradient, torch.eye(3).double(), lambda step: (float(-gradient @ step), 0.01)).fraction == 1.0


NAN_AND_INFINITY = [(math.nan, 0.0), (-math.inf, 0.0), (-1.0, math.nan), (-1.0, -math.inf)]


@pytest.mark.parametrize("everywhere", [(1.0, 0.0), (0.0, 0.0), (-1.0, 0.02), *NAN_AND_INFINITY])
def test_nothing_is_accepted_where_no_fraction_will_do(everywhere):
    gradient = _normal(3)
    trials = []

    def evaluate(step: Tensor) -> tuple[float, float]:
        trials.append(step)
        return everywhere if step.any() else (0.0, 0.0)

    outcome = _step(gradient, torch.eye(3).double(), evaluate)
    assert len(trials) == 1 + 6  # at the parameters, the full step, five backtracks
    _assert_nothing(outcome, num_backtracks=5)


@pytest.mark.parametrize("bad", NAN_AND_INFINITY)
def test_a_fraction_that_is_not_finite_is_passed_over(bad):
    gradient = _normal(3)

    def evaluate(step: Tensor) -> tuple[Tensor, Tensor]:
        loss, kl = bad if float(step.norm()) > 0.1 else (float(-gradient @ step), 0.0)
        return torch.tensor(loss, requires_grad=True), torch.tensor(kl)

    assert _step(gradient, torch.eye(3).double(), evaluate).fraction == 0.5  # the full step is 0.14 long


def test_nothing_lies_below_a_loss_that_is_not_a_number():
    outcome = _step(_normal(3), torch.eye(3).double(), lambda step: (-1.0 if step.any() else math.nan, 0.0))
    assert not outcome.accepted
    assert outcome.step.eq(0.0).all()


@pytest.mark.parametrize(
    ("gradient", "matrix"),
    [
        (torch.zeros(3), torch.eye(3)),
        (torch.full((3,), math.nan), torch.eye(3)),
        (torch.tensor([1.0, math.inf, 0.0]), torch.eye(3)),
        (torch.ones(3), torch.full((3, 3), math.nan)),
        (torch.ones(3), -torch.eye(3)),
        (torch.ones(3), torch.zeros(3, 3)),
    ],
    ids=["zero gradient", "NaN gradient", "infinite gradient", "NaN matrix", "negative matrix", "zero matrix"],
)
def test_without_a_direction_there_is_no_step(gradient, matrix):
    outcome = _step(gradient, matrix, lambda step: (-1.0 if step.any() else 0.0, 0.0))
    _assert_nothing(outcome, num_backtracks=0)


def _assert_nothing(outcome: Outcome, num_backtracks: int) -> None:
    assert not outcome.accepted
    assert outcome.step.eq(0.0).all()
    assert (outcome.fraction, outcome.expected_improvement, outcome.num_backtracks) == (0.0, 0.0, num_backtracks)
    assert (outcome.loss_before, outcome.loss_after, outcome.kl) == (0.0, 0.0, 0.0)


def test_unflatten_undoes_flat():
    tensors = (_normal(2, 3), _normal(4, seed=1), torch.tensor(5.0, dtype=torch.float64), _normal(3, 2, seed=2).T)
    vector = flat(tensors)
    assert vector.shape == (6 + 4 + 1 + 6,)
    torch.testing.assert_close(vector[:7], torch.cat((tensors[0][0], tensors[0][1], tensors[1][:1])), rtol=0, atol=0)
    for found, expected in zip(unflatten(vector, tensors), tensors, strict=True):
        torch.testing.assert_close(found, expected, rtol=0, atol=0)


@pytest.mark.parametrize("shape", [(5,), (7,), (6, 1)])
def test_a_vector_that_does_not_fit_is_refused(shape):
    with pytest.raises(ValueError, match=r"expected \[6\]"):
        unflatten(torch.zeros(shape), [torch.zeros(2, 2), torch.zeros(2)])

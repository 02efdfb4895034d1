"""Measures of gradient conflict against their definitions in arXiv 2001.06782, in the space of gradients."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor

from mtrl.surgery.gram import gram
from mtrl.surgery.statistics import ConflictStatistics, conflict_statistics, curvature_along_step


def _statistics(*gradients: tuple[float, ...]) -> ConflictStatistics:
    """Returns those of one network with the given gradients."""
    return conflict_statistics(gram([torch.tensor(gradients, dtype=torch.float64)[None]]))


def _pair(matrix: Tensor) -> float:
    """Returns the entry of the first two tasks."""
    return float(matrix[0, 0, 1])


def _counts(found: ConflictStatistics) -> list[int]:
    """Returns of the first network the unordered pairs that conflict, that have condition (a), that have ξ ≤ 1."""
    return [int(flags[0].triu(1).sum()) for flags in (found.conflicts, found.condition_a, found.xi_at_most_1)]


def test_two_conflicting_vectors_have_the_hand_made_statistics() -> None:
    # Norms 2 and √2, product -2: cos -1/√2, Φ = 2·2√2/6, ‖sum‖² = 2, ‖difference‖² = 10, ξ = 1/2 · 10/2.
    found = _statistics((2.0, 0.0), (-1.0, 1.0))
    assert _pair(found.cosines) == pytest.approx(-(0.5**0.5))
    assert _pair(found.magnitude_similarity) == pytest.approx(2 * 2**0.5 / 3)
    assert _pair(found.xi) == pytest.approx(2.5)
    assert found.conflicts[0].tolist() == [[False, True], [True, False]]
    # -0.71 is not below -0.94, and 2.5 is above 1.
    assert not found.condition_a.any()
    assert not found.xi_at_most_1.any()
    assert _counts(found) == [1, 0, 0]


def test_condition_a_holds_for_nearly_opposite_vectors_of_different_norms() -> None:
    # cos = -10/√101, near -1; Φ = 2√101/102 = 0.197; ξ = (1 - 100/101) · 122/82.
    found = _statistics((1.0, 0.0), (-10.0, 1.0))
    assert _pair(found.xi) == pytest.approx(122 / 82 / 101)
    assert _counts(found) == [1, 1, 1]


def test_agreeing_vectors_have_no_conflict() -> None:
    found = _statistics((1.0, 0.0), (1.0, 1.0))
    assert not (found.conflicts | found.condition_a | found.xi_at_most_1).any()
    assert _counts(found) == [0, 0, 0]


def test_pairs_are_measured_each_by_itself() -> None:
    # Of the pairs (1,2), (1,3), (2,3) only the first conflicts: opposite, of norms 1 and 3.
    found = _statistics((1.0, 0.0), (-3.0, 0.0), (0.0, 1.0))
    assert _counts(found) == [1, 1, 1]
    assert not found.conflicts.diagonal(dim1=1, dim2=2).any()


def test_networks_are_measured_each_by_itself() -> None:
    gradients = torch.tensor([[[1.0, 0.0], [-1.0, 0.5]], [[1.0, 0.0], [1.0, 0.5]]])
    assert conflict_statistics(gram([gradients])).conflicts[:, 0, 1].tolist() == [True, False]


def test_statistics_equal_their_definitions_in_gradient_space() -> None:
    gradients = np.random.default_rng(0).normal(size=(6, 9)) * np.array([[1, 5, 0.1, 2, 1, 1]]).T
    found = conflict_statistics(gram([torch.from_numpy(gradients)[None]]))
    num_conflicts = num_a = num_xi = 0
    for i in range(6):
        for j in range(i + 1, 6):
            g, h = gradients[i], gradients[j]
            norm_g, norm_h = np.linalg.norm(g), np.linalg.norm(h)
            cosine = g @ h / (norm_g * norm_h)
            similarity = 2 * norm_g * norm_h / (norm_g**2 + norm_h**2)
            xi = (1 - cosine**2) * np.linalg.norm(g - h) ** 2 / np.linalg.norm(g + h) ** 2
            for matrix, expected in (
                (found.cosines, cosine),
                (found.magnitude_similarity, similarity),
                (found.xi, xi),
            ):
                assert float(matrix[0, i, j]) == pytest.approx(expected, rel=1e-9)
                assert float(matrix[0, j, i]) == pytest.approx(expected, rel=1e-9)
            num_conflicts += cosine < 0
            num_a += cosine <= -similarity
            num_xi += cosine < 0 and xi <= 1
    assert 0 < num_a < num_conflicts < 15
    assert 0 < num_xi < num_conflicts
    assert _counts(found) == [num_conflicts, num_a, num_xi]


def test_a_gradient_of_zero_conflicts_with_nothing() -> None:
    found = _statistics((0.0, 0.0), (1.0, 2.0), (0.0, 0.0))
    assert not (found.conflicts | found.condition_a | found.xi_at_most_1).any()
    assert _pair(found.cosines) == 0.0
    assert _pair(found.magnitude_similarity) == 0.0
    assert float(found.magnitude_similarity[0, 0, 2]) == 1.0
    assert found.xi.isfinite().all()


def test_exactly_opposite_float32_gradients_have_finite_statistics() -> None:
    gradient = torch.randn(1, 1, 5000, generator=torch.Generator().manual_seed(0))
    found = conflict_statistics(gram([torch.cat([gradient, -gradient], dim=1)]))
    assert _pair(found.cosines) == pytest.approx(-1.0)
    assert _pair(found.xi) == 0.0


def test_a_single_task_has_no_pairs() -> None:
    found = _statistics((1.0, 2.0))
    assert _counts(found) == [0, 0, 0]


def test_a_matrix_of_another_shape_is_refused() -> None:
    with pytest.raises(ValueError, match="expected"):
        conflict_statistics(torch.eye(2))


def test_curvature_of_a_quadratic_loss_is_exact() -> None:
    # L = ½ xᵀHx has 2 [L(x + s) - L(x) - ∇L·s] = sᵀHs.
    hessian = torch.tensor([[2.0, 1.0], [1.0, 5.0]])
    x, step = torch.tensor([1.0, -2.0]), torch.tensor([0.3, 0.1])

    def loss(at: Tensor) -> Tensor:
        return 0.5 * at @ hessian @ at

    found = curvature_along_step(loss(x), loss(x + step), (hessian @ x) @ step)
    torch.testing.assert_close(found, step @ hessian @ step, rtol=1e-4, atol=1e-6)

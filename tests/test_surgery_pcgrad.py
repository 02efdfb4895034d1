"""PCGrad on inner products against Algorithm 1 of arXiv 2001.06782, written plainly in the space of gradients."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import numpy.typing as npt
import pytest
import torch
from torchjd.aggregation import PCGrad

from mtrl.surgery.gram import combine, gram
from mtrl.surgery.pcgrad import pcgrad_weights, random_orders

Array = npt.NDArray[np.float64]
NUM_PARAMS = 40


def algorithm_1(gradients: Array, orders: npt.NDArray[np.int64]) -> Array:
    """Returns the sum of the projected gradients [task, param], one pair after the other."""
    total = np.zeros_like(gradients[0])
    for gradient, order in zip(gradients, orders, strict=True):
        projected = gradient.copy()
        for j in order:
            product = float(np.dot(projected, gradients[j]))
            if product < 0:
                projected = projected - product / float(np.dot(gradients[j], gradients[j])) * gradients[j]
        total = total + projected
    return total


def _independent(tasks: int, rng: np.random.Generator) -> Array:
    return rng.normal(size=(tasks, NUM_PARAMS))


def _conflicting(tasks: int, rng: np.random.Generator) -> Array:
    """More tasks than dimensions that matter: half of the pairs conflict strongly."""
    return rng.normal(size=(tasks, 3)) @ rng.normal(size=(3, NUM_PARAMS))


def _nearly_opposite_clusters(tasks: int, rng: np.random.Generator) -> Array:
    signs = np.where(np.arange(tasks) % 2 == 0, 1.0, -1.0)[:, None]
    return signs * rng.normal(size=NUM_PARAMS) + 1e-3 * rng.normal(size=(tasks, NUM_PARAMS))


def _huge_spread_of_norms(tasks: int, rng: np.random.Generator) -> Array:
    return _conflicting(tasks, rng) * 10.0 ** np.linspace(-6, 6, tasks)[:, None]


def _some_zero(tasks: int, rng: np.random.Generator) -> Array:
    gradients = _conflicting(tasks, rng)
    gradients[::3] = 0.0
    return gradients


def _all_zero(tasks: int, rng: np.random.Generator) -> Array:
    return np.zeros((tasks, NUM_PARAMS))


def _parallel(tasks: int, rng: np.random.Generator) -> Array:
    return rng.uniform(0.1, 2.0, size=(tasks, 1)) * rng.normal(size=NUM_PARAMS)


def _opposite(tasks: int, rng: np.random.Generator) -> Array:
    return rng.normal(size=(tasks, 1)) * rng.normal(size=NUM_PARAMS)


KINDS: list[Callable[[int, np.random.Generator], Array]] = [
    _independent,
    _conflicting,
    _nearly_opposite_clusters,
    _huge_spread_of_norms,
    _some_zero,
    _all_zero,
    _parallel,
    _opposite,
]


def _update(gradients: torch.Tensor, orders: torch.Tensor) -> torch.Tensor:
    """Returns what the package makes of gradients [net, task, param], taken as two blocks: [net, param]."""
    blocks = gradients.split((gradients.shape[2] // 2, gradients.shape[2] - gradients.shape[2] // 2), dim=2)
    weights = pcgrad_weights(gram(blocks), orders)
    return torch.cat([combine(block, weights) for block in blocks], dim=1)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("num_tasks", [1, 2, 10, 50])
def test_pcgrad_equals_the_double_loop_of_algorithm_1(
    num_tasks: int, kind: Callable[[int, np.random.Generator], Array]
) -> None:
    rng = np.random.default_rng(num_tasks)
    gradients = torch.from_numpy(np.stack([kind(num_tasks, rng), kind(num_tasks, rng)])).float()
    orders = random_orders(2, num_tasks, torch.Generator().manual_seed(num_tasks))
    update = _update(gradients, orders)
    for net in range(2):
        original = gradients[net].double().numpy()
        expected = algorithm_1(original, orders[net].numpy())
        largest = np.linalg.norm(original, axis=1).max()
        # The gradients and their inner products are float32: 1e-7 each, of up to 50 tasks.
        assert np.linalg.norm(update[net].numpy() - expected) <= 1e-5 * largest


@pytest.mark.parametrize("num_tasks", [1, 2, 10])
def test_pcgrad_equals_torchjd_given_the_same_orders(num_tasks: int, monkeypatch: pytest.MonkeyPatch) -> None:
    gradients = torch.from_numpy(_conflicting(num_tasks, np.random.default_rng(3)))
    orders = random_orders(1, num_tasks, torch.Generator().manual_seed(3))
    # TorchJD draws an order of all tasks for each task in turn and skips the task itself.
    drawn = iter([torch.cat([order, torch.tensor([task])]) for task, order in enumerate(orders[0])])
    monkeypatch.setattr(torch, "randperm", lambda n: next(drawn))
    expected = PCGrad()(gradients)
    monkeypatch.undo()
    assert next(drawn, None) is None
    torch.testing.assert_close(_update(gradients[None], orders)[0], expected, rtol=1e-10, atol=1e-10)


def test_the_order_changes_the_answer() -> None:
    gradients = torch.from_numpy(_conflicting(5, np.random.default_rng(0)))[None]
    orders = random_orders(1, 5, torch.Generator().manual_seed(0))
    assert not torch.allclose(_update(gradients, orders), _update(gradients, orders.flip(2)), rtol=1e-3)


def test_pcgrad_of_two_vectors_is_the_hand_made_answer() -> None:
    # (1, 0) becomes (1, 0) + 1/2 (-1, 1); (-1, 1) becomes (-1, 1) + (1, 0). Against what the first became, (½, ½), the
    # second would not be projected at all.
    gradients = torch.tensor([[[1.0, 0.0], [-1.0, 1.0]]])
    orders = torch.tensor([[[1], [0]]])
    torch.testing.assert_close(_update(gradients, orders), torch.tensor([[0.5, 1.5]]))
    weights = pcgrad_weights(gram([gradients]), orders)
    torch.testing.assert_close(weights, torch.tensor([[2.0, 1.5]], dtype=torch.float64))


def test_pcgrad_of_two_conflicting_tasks_is_the_closed_form() -> None:
    first, second = torch.randn(2, 30, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    second = second - 0.5 * first
    product = first @ second
    assert product < 0
    expected = first + second - product / (first @ first) * first - product / (second @ second) * second
    update = _update(torch.stack([first, second])[None], torch.tensor([[[1], [0]]]))
    torch.testing.assert_close(update[0], expected, rtol=1e-12, atol=1e-12)


def test_pcgrad_does_not_project_against_the_tasks_own_gradient() -> None:
    # Unit vectors at 0, 170 and 190 degrees. Projected against the second, then the third, the first ends at 100
    # degrees, in conflict with itself as it was; it must stay there. The others follow by the same reading of angles.
    def at(degrees: float) -> Array:
        return np.array([np.cos(np.radians(degrees)), np.sin(np.radians(degrees))])

    def cos(degrees: float) -> float:
        return float(np.cos(np.radians(degrees)))

    first = cos(80) * cos(20) * at(100)
    others = cos(80) * cos(10) * (at(100) + at(260))
    gradients = torch.from_numpy(np.stack([at(0), at(170), at(190)]))[None]
    update = _update(gradients, torch.tensor([[[1, 2], [0, 2], [0, 1]]]))
    np.testing.assert_allclose(update[0].numpy(), first + others, atol=1e-12)


def test_pcgrad_leaves_agreeing_gradients_alone() -> None:
    gradients = torch.rand(2, 6, 30, generator=torch.Generator().manual_seed(2))  # all in the positive orthant
    orders = random_orders(2, 6, torch.Generator().manual_seed(2))
    assert torch.equal(pcgrad_weights(gram([gradients]), orders), torch.ones(2, 6, dtype=torch.float64))


def test_a_single_task_keeps_its_gradient() -> None:
    orders = random_orders(1, 1, torch.Generator().manual_seed(0))
    assert torch.equal(pcgrad_weights(torch.full((1, 1, 1), 4.0), orders), torch.ones(1, 1, dtype=torch.float64))


def test_networks_are_projected_each_by_itself() -> None:
    gradients = torch.from_numpy(_conflicting(14, np.random.default_rng(4))).reshape(2, 7, NUM_PARAMS)
    orders = random_orders(2, 7, torch.Generator().manual_seed(4))
    matrix = gram([gradients])
    alone = [pcgrad_weights(matrix[net : net + 1], orders[net : net + 1]) for net in range(2)]
    torch.testing.assert_close(pcgrad_weights(matrix, orders), torch.cat(alone), rtol=1e-12, atol=0)


def test_a_gradient_of_zero_changes_nothing_for_the_others() -> None:
    gradients = torch.tensor([[[1.0, 0.0], [0.0, 0.0], [-1.0, 1.0]]])
    weights = pcgrad_weights(gram([gradients]), torch.tensor([[[1, 2], [0, 2], [1, 0]]]))
    torch.testing.assert_close(weights, torch.tensor([[2.0, 1.0, 1.5]], dtype=torch.float64))


def test_a_squared_norm_that_underflowed_counts_as_zero() -> None:
    # 1e-24 squared is 0 in float32, 1e-24 times 1 is not.
    matrix = torch.tensor([[[1.0, -1e-24], [-1e-24, 0.0]]])
    weights = pcgrad_weights(matrix, torch.tensor([[[1], [0]]]))
    torch.testing.assert_close(weights, torch.ones(1, 2, dtype=torch.float64))


def test_nan_in_one_gradient_reaches_the_update() -> None:
    gradients = torch.tensor([[[1.0, 0.0], [float("nan"), 1.0], [-1.0, 1.0]]])
    update = _update(gradients, torch.tensor([[[1, 2], [0, 2], [0, 1]]]))
    assert update.isnan().all()


def test_the_matrix_is_left_as_it_was() -> None:
    matrix = gram([torch.from_numpy(_conflicting(4, np.random.default_rng(0)))[None]])
    before = matrix.clone()
    pcgrad_weights(matrix, random_orders(1, 4, torch.Generator().manual_seed(0)))
    assert torch.equal(matrix, before)


@pytest.mark.parametrize("shape", [(1, 3, 3), (1, 3, 1), (2, 3, 2)])
def test_orders_of_another_shape_are_refused(shape: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match="expected"):
        pcgrad_weights(torch.eye(3)[None], torch.zeros(shape, dtype=torch.int64))


def test_an_order_holds_every_other_task_once_and_never_the_task_itself() -> None:
    orders = random_orders(3, 8, torch.Generator().manual_seed(5))
    for net in range(3):
        for task in range(8):
            others = [other for other in range(8) if other != task]
            assert sorted(orders[net, task].tolist()) == others


def test_orders_are_uniform_and_independent_between_tasks() -> None:
    draws = 6000
    orders = random_orders(draws, 4, torch.Generator().manual_seed(6))
    rank = (orders[..., 0] * 4 + orders[..., 1]).numpy()  # [draw, task], names one of the 6 orders
    for first in range(4):
        for second in range(first + 1, 4):
            _, counts = np.unique(rank[:, first] * 16 + rank[:, second], return_counts=True)
            assert len(counts) == 36
            # 5 standard deviations of a binomial count with probability 1/36.
            assert np.abs(counts - draws / 36).max() < 5 * np.sqrt(draws / 36 * 35 / 36)


def test_orders_depend_on_the_generator_alone() -> None:
    first = random_orders(2, 9, torch.Generator().manual_seed(7))
    torch.rand(1)
    assert torch.equal(first, random_orders(2, 9, torch.Generator().manual_seed(7)))
    assert not torch.equal(first, random_orders(2, 9, torch.Generator().manual_seed(8)))


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_pcgrad_on_cuda_equals_pcgrad_on_cpu() -> None:
    gradients = torch.from_numpy(_conflicting(10, np.random.default_rng(0))).float()[None]
    orders = random_orders(1, 10, torch.Generator().manual_seed(0))
    update = _update(gradients.cuda(), orders.cuda()).cpu()
    torch.testing.assert_close(update, _update(gradients, orders), rtol=1e-5, atol=1e-5)
    assert random_orders(1, 10, torch.Generator("cuda").manual_seed(0)).is_cuda

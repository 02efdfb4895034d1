"""Inner products and combinations of gradients, and that torch's settings do not make them less exact."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch
from torch import Tensor

from mtrl.surgery.gram import combine, gram, squared_norm


def _blocks(*widths: int, tasks: int = 4) -> list[Tensor]:
    generator = torch.Generator().manual_seed(0)
    return [torch.randn(2, tasks, width, generator=generator) for width in widths]


def _exact_gram(blocks: list[Tensor]) -> Tensor:
    rows = torch.cat(blocks, dim=2).double()
    return torch.einsum("nip,njp->nij", rows, rows)


def _error(found: Tensor, exact: Tensor) -> float:
    """Returns the largest error relative to the norms of the two gradients."""
    norms = exact.diagonal(dim1=1, dim2=2).sqrt()
    return float(((found - exact).abs() / (norms.unsqueeze(1) * norms.unsqueeze(2))).max())


@pytest.fixture
def _rounded_products() -> Iterator[None]:
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("medium")
    yield
    torch.set_float32_matmul_precision(before)


@pytest.mark.parametrize("widths", [(50_000, 1, 7), (3 * 4_096,), (1,)], ids=str)
def test_gram_is_all_inner_products_over_all_blocks(widths: tuple[int, ...]) -> None:
    blocks = _blocks(*widths)  # less than a chunk, some whole ones, some and a rest
    found = gram(blocks)
    assert found.dtype == torch.float64
    assert _error(found, _exact_gram(blocks)) < 1e-7


def test_gram_of_float64_gradients_is_exact() -> None:
    blocks = [block.double() for block in _blocks(300, 20)]
    assert _error(gram(blocks), _exact_gram(blocks)) < 1e-14


def test_gram_does_not_depend_on_the_layout_of_a_block() -> None:
    (block,) = _blocks(64)
    transposed = block.permute(2, 0, 1).contiguous().permute(1, 2, 0)
    assert _error(gram([transposed]), gram([block])) < 64 * torch.finfo(torch.float32).eps  # added up one by one


@pytest.mark.usefixtures("_rounded_products")
def test_gram_and_combine_ignore_a_lowered_precision_of_products() -> None:
    blocks = _blocks(20_000)
    weights = torch.rand(2, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    exact = torch.einsum("nt,ntp->np", weights, blocks[0].double())
    assert _error(gram(blocks), _exact_gram(blocks)) < 3e-7
    torch.testing.assert_close(combine(blocks[0], weights).double(), exact, rtol=1e-6, atol=1e-6)
    assert torch.get_float32_matmul_precision() == "medium"


def test_gram_and_combine_ignore_autocast() -> None:
    blocks = _blocks(20_000)
    weights = torch.rand(2, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    with torch.autocast("cpu"):
        found, combined = gram(blocks), combine(blocks[0], weights)
    assert _error(found, _exact_gram(blocks)) < 3e-7
    exact = torch.einsum("nt,ntp->np", weights, blocks[0].double())
    torch.testing.assert_close(combined.double(), exact, rtol=1e-6, atol=1e-6)


def test_combine_is_the_weighted_sum_over_tasks() -> None:
    block = torch.tensor([[[1.0, 2.0], [10.0, 20.0]], [[3.0, 4.0], [30.0, 40.0]]])
    weights = torch.tensor([[1.0, 0.5], [2.0, 0.1]], dtype=torch.float64)
    torch.testing.assert_close(combine(block, weights), torch.tensor([[6.0, 12.0], [9.0, 12.0]]))


def test_squared_norm_is_that_of_the_combination() -> None:
    block = _blocks(30)[0].double()
    weights = torch.rand(2, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    expected = combine(block, weights).square().sum(dim=1)
    torch.testing.assert_close(squared_norm(gram([block]), weights), expected)


def test_squared_norm_of_gradients_that_cancel_is_zero() -> None:
    gradient = torch.randn(1, 1, 1000, generator=torch.Generator().manual_seed(0))
    block = torch.cat([gradient, 3 * gradient, -4 * gradient], dim=1)
    assert squared_norm(gram([block]), torch.ones(1, 3, dtype=torch.float64)).item() == 0.0


def test_blocks_that_do_not_fit_each_other_are_refused() -> None:
    with pytest.raises(ValueError, match="same net and task"):
        gram([torch.zeros(1, 2, 3), torch.zeros(1, 4, 3)])
    with pytest.raises(ValueError, match="at least one"):
        gram([])
    with pytest.raises(ValueError, match="do not fit"):
        combine(torch.zeros(1, 2, 3), torch.zeros(1, 3))

"""Which matrix products a piece of work consists of, and how long they alone take on memory that is there already."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

_OPERANDS = {  # operator → the places of its two factors
    torch.ops.aten.mm.default: (0, 1),
    torch.ops.aten.addmm.default: (1, 2),
    torch.ops.aten.bmm.default: (0, 1),
    torch.ops.aten.baddbmm.default: (1, 2),
}


class Layout(NamedTuple):
    """How a matrix lies in memory."""

    shape: tuple[int, ...]
    stride: tuple[int, ...]


class Product(NamedTuple):
    """Two float32 matrices, or batches of them, that are multiplied."""

    left: Layout
    right: Layout

    def flops(self) -> int:
        """Returns multiplications and additions."""
        return 2 * int(np.prod(self.left.shape)) * self.right.shape[-1]


class ProductCounter(TorchDispatchMode):  # type: ignore[no-untyped-call] # torch's base is not annotated
    """Counts the products of everything that runs within it, those of backward passes too."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call] # the same
        self.counts: Counter[Product] = Counter()
        self.others: Counter[str] = Counter()
        """Operators that may hold products of their own, as recurrent layers in one piece do."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Notes an operator and runs it."""
        places = _OPERANDS.get(func)
        if places is not None:
            self.counts[Product(*(_layout(args[place]) for place in places))] += 1
        elif "rnn" in func.name() or "gru" in func.name():
            self.others[func.name()] += 1
        return func(*args, **(kwargs or {}))


def count_products(work: Callable[[], object]) -> Counter[Product]:
    """Runs work and returns its products.

    Raises:
        RuntimeError: If some of them cannot be seen from here.
    """
    counter = ProductCounter()
    with counter:
        work()
    if counter.others:
        raise RuntimeError(f"products inside of {', '.join(sorted(counter.others))} were not counted")
    return counter.counts


def products_s(counts: Mapping[Product, int], repeats: int = 5) -> float:
    """Returns the seconds that so many products take: for each kind the median of some repeats, times its number."""
    return sum(count * _median_s(product, repeats) for product, count in counts.items())


def _median_s(product: Product, repeats: int) -> float:
    left, right = (_filled(layout) for layout in product)
    multiply = torch.mm if left.dim() == 2 else torch.bmm
    out = multiply(left, right)
    seconds = []
    for _ in range(repeats):
        began = time.perf_counter()
        multiply(left, right, out=out)
        seconds.append(time.perf_counter() - began)
    return float(np.median(seconds))


def _layout(tensor: Tensor) -> Layout:
    return Layout(tuple(tensor.shape), tensor.stride())


def _filled(layout: Layout) -> Tensor:
    return torch.empty_strided(*layout).normal_() if 0 not in layout.stride else torch.randn(layout.shape)

"""How NumPy rounds on this machine where it is free to choose, which observations of metaworld depend on."""

from functools import cache

import numpy as np


@cache
def dot_is_fused() -> bool:
    """Returns whether NumPy's dot product of a few numbers adds each product before it is rounded.

    OpenBLAS brings a dot product for every kind of processor, some with and some without a fused multiply-add, and
    `OPENBLAS_CORETYPE` chooses among them. Lengths of vectors, such as the gripper's opening, come out of it.
    """
    large = 1.0 + 2.0**-27
    once_rounded = 1.0 + 2.0**-26  # large², whose rest of 2^-54 together with small² is more than half of the last bit
    small = 1.25 * 2.0**-27
    return bool(np.dot([small, large], [small, large]) > once_rounded)

"""Meta-World as batches of environments: benchmarks, goals, stepping, state. No learning, no torch.

`envs.make("MT10")` is the way in; importing this package also registers everything with gymnasium.
"""

from envs.making import make

__all__ = ["make"]

"""Meta-World as batches of environments: benchmarks, goals, stepping, state. No learning, no torch.

`envs.make("MT10")` is the way in; importing this package also registers everything with gymnasium.
"""

from envs.making import make
from envs.registration import register_all

__all__ = ["make"]

register_all()

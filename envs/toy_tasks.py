"""Names and goal regions of the toy suite; the point mass itself is in `toy.py`."""

from dataclasses import dataclass
from typing import Final


@dataclass(frozen=True)
class ToyTask:
    """A toy task: bring a point mass to a goal in a region.

    Attributes:
        low: Lower corner of the goal region [2], in units of the arena, which is [-1, 1] squared.
        high: Upper corner of the goal region [2].
        action_gain: Force per unit of action; a negative one turns every action around.
    """

    low: tuple[float, float]
    high: tuple[float, float]
    action_gain: float = 1.0


TOY_TASKS: Final[dict[str, ToyTask]] = {
    "toy-reach-left": ToyTask((-0.9, -0.3), (-0.5, 0.3)),
    "toy-reach-right": ToyTask((0.5, -0.3), (0.9, 0.3)),
    "toy-reach-up": ToyTask((-0.3, 0.5), (0.3, 0.9)),
    "toy-reach-up-mirrored": ToyTask((-0.3, 0.5), (0.3, 0.9), action_gain=-1.0),
    "toy-reach-down": ToyTask((-0.3, -0.9), (0.3, -0.5)),
    "toy-reach-corner": ToyTask((0.5, 0.5), (0.9, 0.9)),
    "toy-reach-anywhere": ToyTask((-0.9, -0.9), (0.9, 0.9)),
}
"""All toy tasks. reach-up and reach-up-mirrored want opposite actions in the same observation, on purpose. In
reach-anywhere the goal must be seen, or found: it is the task of ML1 in tests of meta-learning.
"""

ALL_TASKS: Final = tuple(TOY_TASKS)
TRAIN_TASKS: Final = ALL_TASKS[:4]
TEST_TASKS: Final = ALL_TASKS[4:6]

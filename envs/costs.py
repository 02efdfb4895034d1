"""What a step of each task costs, as measured; for sharing environments out evenly, so only their ratios matter."""

from __future__ import annotations

from typing import Final

from envs import toy_tasks

STEP_COSTS_US: Final[dict[str, tuple[int, int]]] = {
    "assembly-v3": (294, 113),
    "basketball-v3": (231, 81),
    "bin-picking-v3": (382, 129),
    "box-close-v3": (283, 143),
    "button-press-topdown-v3": (186, 74),
    "button-press-topdown-wall-v3": (186, 74),
    "button-press-v3": (186, 75),
    "button-press-wall-v3": (196, 78),
    "coffee-button-v3": (217, 95),
    "coffee-pull-v3": (629, 95),
    "coffee-push-v3": (586, 91),
    "dial-turn-v3": (191, 65),
    "disassemble-v3": (282, 117),
    "door-close-v3": (297, 79),
    "door-lock-v3": (199, 111),
    "door-open-v3": (311, 79),
    "door-unlock-v3": (205, 119),
    "hand-insert-v3": (474, 97),
    "drawer-close-v3": (208, 88),
    "drawer-open-v3": (193, 80),
    "faucet-open-v3": (201, 73),
    "faucet-close-v3": (200, 72),
    "hammer-v3": (269, 107),
    "handle-press-side-v3": (177, 72),
    "handle-press-v3": (190, 105),
    "handle-pull-side-v3": (218, 71),
    "handle-pull-v3": (217, 73),
    "lever-pull-v3": (308, 78),
    "pick-place-wall-v3": (1069, 122),
    "pick-out-of-hole-v3": (243, 83),
    "pick-place-v3": (991, 114),
    "plate-slide-v3": (327, 89),
    "plate-slide-side-v3": (293, 75),
    "plate-slide-back-v3": (294, 78),
    "plate-slide-back-side-v3": (300, 78),
    "peg-insert-side-v3": (379, 87),
    "peg-unplug-side-v3": (270, 118),
    "soccer-v3": (604, 82),
    "stick-push-v3": (678, 103),
    "stick-pull-v3": (1016, 150),
    "push-v3": (599, 84),
    "push-wall-v3": (608, 87),
    "push-back-v3": (634, 86),
    "reach-v3": (290, 81),
    "reach-wall-v3": (284, 86),
    "shelf-place-v3": (891, 135),
    "sweep-into-v3": (570, 96),
    "sweep-v3": (451, 86),
    "window-open-v3": (182, 76),
    "window-close-v3": (198, 84),
}
"""Task → microseconds of a step with the backends metaworld and compiled: `mtrl bench tasks`."""


def step_cost_us(task: str, backend: str) -> float:
    """Returns the microseconds of a step of a task with a backend; `auto` is taken for `compiled`.

    Raises:
        KeyError: If there is no such task.
    """
    if task in toy_tasks.TOY_TASKS:
        return 1.0
    metaworld, compiled = STEP_COSTS_US[task]
    return metaworld if backend == "metaworld" else compiled

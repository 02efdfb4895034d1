"""The benchmarks of Meta-World v3 as lists of task names in their official order, and custom lists.

The order of a list is the order of the one-hot task code and of the goal draws, so it must not change.
Goals are in `goals.py`; nothing here simulates or imports metaworld.
"""

import difflib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Final, Literal

from envs import toy_tasks

Split = Literal["train", "test"]

ALL_TASKS: Final[tuple[str, ...]] = (
    "assembly-v3",
    "basketball-v3",
    "bin-picking-v3",
    "box-close-v3",
    "button-press-topdown-v3",
    "button-press-topdown-wall-v3",
    "button-press-v3",
    "button-press-wall-v3",
    "coffee-button-v3",
    "coffee-pull-v3",
    "coffee-push-v3",
    "dial-turn-v3",
    "disassemble-v3",
    "door-close-v3",
    "door-lock-v3",
    "door-open-v3",
    "door-unlock-v3",
    "hand-insert-v3",
    "drawer-close-v3",
    "drawer-open-v3",
    "faucet-open-v3",
    "faucet-close-v3",
    "hammer-v3",
    "handle-press-side-v3",
    "handle-press-v3",
    "handle-pull-side-v3",
    "handle-pull-v3",
    "lever-pull-v3",
    "pick-place-wall-v3",
    "pick-out-of-hole-v3",
    "pick-place-v3",
    "plate-slide-v3",
    "plate-slide-side-v3",
    "plate-slide-back-v3",
    "plate-slide-back-side-v3",
    "peg-insert-side-v3",
    "peg-unplug-side-v3",
    "soccer-v3",
    "stick-push-v3",
    "stick-pull-v3",
    "push-v3",
    "push-wall-v3",
    "push-back-v3",
    "reach-v3",
    "reach-wall-v3",
    "shelf-place-v3",
    "sweep-into-v3",
    "sweep-v3",
    "window-open-v3",
    "window-close-v3",
)
"""All 50 tasks, in the order of MT50."""

_MT10: Final = (
    "reach-v3",
    "push-v3",
    "pick-place-v3",
    "door-open-v3",
    "drawer-open-v3",
    "drawer-close-v3",
    "button-press-topdown-v3",
    "peg-insert-side-v3",
    "window-open-v3",
    "window-close-v3",
)
_MT25: Final = (
    *_MT10,
    "coffee-pull-v3",
    "pick-out-of-hole-v3",
    "disassemble-v3",
    "pick-place-wall-v3",
    "basketball-v3",
    "stick-pull-v3",
    "button-press-wall-v3",
    "faucet-open-v3",
    "door-lock-v3",
    "lever-pull-v3",
    "sweep-into-v3",
    "faucet-close-v3",
    "coffee-button-v3",
    "button-press-topdown-wall-v3",
    "dial-turn-v3",
)
_ML10_TRAIN: Final = (
    "reach-v3",
    "push-v3",
    "pick-place-v3",
    "door-open-v3",
    "drawer-close-v3",
    "button-press-topdown-v3",
    "peg-insert-side-v3",
    "window-open-v3",
    "sweep-v3",
    "basketball-v3",
)
_ML10_TEST: Final = (
    "drawer-open-v3",
    "door-close-v3",
    "shelf-place-v3",
    "sweep-into-v3",
    "lever-pull-v3",
)
_ML25_TEST: Final = (
    "basketball-v3",
    "door-close-v3",
    "shelf-place-v3",
    "sweep-v3",
    "button-press-v3",
)
_ML45_TRAIN: Final = (
    "assembly-v3",
    "basketball-v3",
    "button-press-topdown-v3",
    "button-press-topdown-wall-v3",
    "button-press-v3",
    "button-press-wall-v3",
    "coffee-button-v3",
    "coffee-pull-v3",
    "coffee-push-v3",
    "dial-turn-v3",
    "disassemble-v3",
    "door-close-v3",
    "door-open-v3",
    "drawer-close-v3",
    "drawer-open-v3",
    "faucet-open-v3",
    "faucet-close-v3",
    "hammer-v3",
    "handle-press-side-v3",
    "handle-press-v3",
    "handle-pull-side-v3",
    "handle-pull-v3",
    "lever-pull-v3",
    "pick-place-wall-v3",
    "pick-out-of-hole-v3",
    "push-back-v3",
    "pick-place-v3",
    "plate-slide-v3",
    "plate-slide-side-v3",
    "plate-slide-back-v3",
    "plate-slide-back-side-v3",
    "peg-insert-side-v3",
    "peg-unplug-side-v3",
    "soccer-v3",
    "stick-push-v3",
    "stick-pull-v3",
    "push-wall-v3",
    "push-v3",
    "reach-wall-v3",
    "reach-v3",
    "shelf-place-v3",
    "sweep-into-v3",
    "sweep-v3",
    "window-open-v3",
    "window-close-v3",
)
_ML45_TEST: Final = (
    "bin-picking-v3",
    "box-close-v3",
    "hand-insert-v3",
    "door-lock-v3",
    "door-unlock-v3",
)


@dataclass(frozen=True)
class Benchmark:
    """A named set of tasks.

    Attributes:
        name: `MT10`, `ML45`, `custom`, ...
        train_tasks: Task names in their official order.
        test_tasks: Held-out task names; empty for multi-task benchmarks. ML1 tests its training task on other goals.
        goal_visible: Whether the observation holds the goal (MT) or zeros in its place (ML).
    """

    name: str
    train_tasks: tuple[str, ...]
    test_tasks: tuple[str, ...]
    goal_visible: bool

    @property
    def overlap(self) -> tuple[str, ...]:
        """Tasks that stand in both splits by mistake (ML25: basketball-v3); ML1 shares its task on purpose, so ()."""
        if self.name == "ML1":
            return ()
        return tuple(task for task in self.test_tasks if task in self.train_tasks)

    def tasks(self, split: Split) -> tuple[str, ...]:
        """Returns the task names of one split.

        Raises:
            ValueError: If the split is unknown or has no tasks.
        """
        if split not in ("train", "test"):
            raise ValueError(f"split is {split!r}; expected 'train' or 'test'")
        names = self.train_tasks if split == "train" else self.test_tasks
        if not names:
            raise ValueError(f"{self.name} has no test tasks; use split='train'")
        return names


BENCHMARKS: Final[dict[str, Benchmark]] = {
    benchmark.name: benchmark
    for benchmark in (
        Benchmark("MT1", ALL_TASKS, (), goal_visible=True),
        Benchmark("MT10", _MT10, (), goal_visible=True),
        Benchmark("MT25", _MT25, (), goal_visible=True),
        Benchmark("MT50", ALL_TASKS, (), goal_visible=True),
        Benchmark("ML1", ALL_TASKS, ALL_TASKS, goal_visible=False),
        Benchmark("ML10", _ML10_TRAIN, _ML10_TEST, goal_visible=False),
        Benchmark("ML25", _MT25, _ML25_TEST, goal_visible=False),
        Benchmark("ML45", _ML45_TRAIN, _ML45_TEST, goal_visible=False),
        Benchmark("custom", ALL_TASKS, (), goal_visible=True),
        Benchmark("custom-ml", ALL_TASKS, ALL_TASKS, goal_visible=False),
        Benchmark("toy", toy_tasks.TRAIN_TASKS, (), goal_visible=True),
        Benchmark("toy-ml", toy_tasks.TRAIN_TASKS, toy_tasks.TEST_TASKS, goal_visible=False),
    )
}
"""All benchmarks. MT1, ML1, custom and custom-ml stand here with all tasks; `get_benchmark` narrows them."""


def get_benchmark(name: str, tasks: Iterable[str] = (), test_tasks: Iterable[str] = ()) -> Benchmark:
    """Returns the benchmark of that name.

    Args:
        name: A key of `BENCHMARKS`.
        tasks: The one task of MT1 and ML1, the task list of `custom`, the training tasks of `custom-ml`; else empty.
        test_tasks: The test tasks of `custom-ml`; else empty.

    Raises:
        ValueError: If a name is unknown (the message tells the nearest one), or the task lists do not suit.
    """
    if name not in BENCHMARKS:
        raise ValueError(unknown_name(name, BENCHMARKS, "a benchmark"))
    train, test = _checked(tasks), _checked(test_tasks)
    if name != "custom-ml" and test:
        raise ValueError(f"{name} takes no test_tasks; only custom-ml does")
    if name in ("MT1", "ML1"):
        if len(train) != 1:
            raise ValueError(f"{name} needs exactly one task, got {len(train)}; for example tasks=['reach-v3']")
        return Benchmark(name, train, train if name == "ML1" else (), BENCHMARKS[name].goal_visible)
    if name == "custom":
        if not train:
            raise ValueError("custom needs tasks; for example tasks=['reach-v3', 'push-v3']")
        return Benchmark(name, train, (), goal_visible=True)
    if name == "custom-ml":
        return _custom_ml(train, test)
    if train:
        raise ValueError(f"{name} has a fixed task list; for a list of your own use custom or custom-ml")
    return BENCHMARKS[name]


def unknown_name(name: str, known: Iterable[str], kind: str) -> str:
    """Returns the message for a name that is not known: what it is not, the nearest one, and all if there are few."""
    names = list(known)
    nearest = max(names, key=lambda candidate: _similarity(name, candidate))
    hint = f"; did you mean {nearest}?" if _similarity(name, nearest) > 0.5 else "."
    listing = f" Known: {', '.join(names)}" if len(names) <= 15 else ""
    return f"{name} is not {kind}{hint}{listing}"


def _similarity(name: str, candidate: str) -> float:
    """Returns 0 (nothing in common) to 1 (equal but for case); a wrong character counts less than a missing one."""
    ratio = difflib.SequenceMatcher(a=name.lower(), b=candidate.lower()).ratio()
    return ratio - (0.15 if len(name) != len(candidate) else 0.0)


def _checked(tasks: Iterable[str]) -> tuple[str, ...]:
    if isinstance(tasks, str):
        raise ValueError(f"tasks is the text {tasks!r}; expected a list of task names, [{tasks!r}]")
    names = tuple(tasks)
    known = (*ALL_TASKS, *toy_tasks.ALL_TASKS)
    for task in names:
        if task not in known:
            raise ValueError(unknown_name(task, known, "a task"))
    _refuse_duplicates(names)
    if len({task.startswith("toy-") for task in names}) > 1:
        raise ValueError(f"toy tasks and Meta-World tasks cannot be mixed: {', '.join(names)}")
    return names


def _refuse_duplicates(names: Sequence[str]) -> None:
    twice = sorted({task for task in names if names.count(task) > 1})
    if twice:
        raise ValueError(f"{', '.join(twice)} stands twice in the task list; for several copies of a task use copies=")


def _custom_ml(train: tuple[str, ...], test: tuple[str, ...]) -> Benchmark:
    if not train or not test:
        raise ValueError("custom-ml needs tasks and test_tasks")
    shared = [task for task in test if task in train]
    if shared:
        raise ValueError(f"{', '.join(shared)} stands in tasks and in test_tasks; a test task must not be trained on")
    return Benchmark("custom-ml", train, test, goal_visible=False)


def sizes(task_names: Sequence[str]) -> tuple[int, int]:
    """Returns how many numbers an observation (without one-hot task id) and an action have; makes no environments."""
    return (6, 2) if task_names[0] in toy_tasks.ALL_TASKS else (39, 4)

"""Makes the benchmarks known to gymnasium, so that `gymnasium.make_vec("mtrl/MT10")` works after `import envs`."""

from collections.abc import Callable
from typing import Any, Final

import gymnasium

from envs import making, toy
from envs.benchmarks import ALL_TASKS, BENCHMARKS, Split, get_benchmark
from envs.single import single_maker
from envs.toy_tasks import TOY_TASKS
from envs.vector import TaskVectorEnv

_SPLIT: Final = ("ML1", "ML10", "ML25", "ML45", "custom-ml", "toy-ml")


def register_all() -> None:
    """Registers `mtrl/<benchmark>` (vector only; -train and -test for ML) and `mtrl/<task>` (single and vector).

    Does nothing for names that are registered already.
    """
    for name in BENCHMARKS:
        if name in _SPLIT:
            _register(f"mtrl/{name}-train", vector=_vector_maker(name, split="train"))
            _register(f"mtrl/{name}-test", vector=_vector_maker(name, split="test"))
        else:
            _register(f"mtrl/{name}", vector=_vector_maker(name))
    for task in (*ALL_TASKS, *TOY_TASKS):
        horizon = toy.MAX_EPISODE_STEPS if task in TOY_TASKS else 500
        benchmark = "custom" if task in TOY_TASKS else "MT1"
        _register(
            f"mtrl/{task}",
            single=single_maker(task),
            vector=_vector_maker(benchmark, tasks=[task]),
            max_episode_steps=horizon,
        )


def _register(
    name: str,
    *,
    single: Callable[..., Any] | None = None,
    vector: Callable[..., Any],
    max_episode_steps: int | None = None,
) -> None:
    if name not in gymnasium.registry:
        gymnasium.register(name, entry_point=single, vector_entry_point=vector, max_episode_steps=max_episode_steps)


def _vector_maker(name: str, *, split: Split = "train", tasks: list[str] | None = None) -> Callable[..., TaskVectorEnv]:
    """Returns the entry point of one benchmark; it takes the keywords of `making.make`."""

    def make_vector(num_envs: int = 1, **keywords: Any) -> TaskVectorEnv:
        keywords = {"tasks": tasks or (), "split": split, **keywords}
        if num_envs != 1:  # gymnasium passes 1 where the user said nothing
            keywords["copies"] = _copies(name, num_envs, keywords)
        return making.make(name, **keywords)

    return make_vector


def _copies(name: str, num_envs: int, keywords: dict[str, Any]) -> int:
    if "copies" in keywords or "assignments" in keywords:
        raise ValueError("give one of num_envs, copies and assignments")
    benchmark = get_benchmark(name, keywords["tasks"], keywords.get("test_tasks", ()))
    num_tasks = len(benchmark.tasks(keywords["split"]))
    if num_envs % num_tasks:
        raise ValueError(f"num_envs is {num_envs}; {name} has {num_tasks} tasks and needs a multiple of that")
    return num_envs // num_tasks

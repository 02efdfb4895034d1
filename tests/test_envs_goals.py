"""Laws of the goals: metaworld's own for the same seed, without simulating."""

import hashlib
import pickle
from typing import Any

import metaworld
import numpy as np
import pytest

from envs.benchmarks import get_benchmark
from envs.goal_spaces import GOAL_SPACES
from envs.goals import Goals, goals_for

# First 16 digits of sha256 over all goals in task order; made when the live tests below compared them with metaworld.
RECORDED = {
    ("MT10", "train", 0): "c1603b2c045ae375",
    ("MT10", "train", 1): "8a16987db17d391c",
    ("MT10", "train", 2): "23ad3749ab15be93",
    ("MT10", "train", 3): "52e1be663cddbc5c",
    ("MT10", "train", 4): "0a01dbab091e46be",
    ("MT50", "train", 0): "78d969c3f728fcce",
    ("MT50", "train", 1): "7b95a2ad6f632ed5",
    ("MT50", "train", 2): "0d88af992495527f",
    ("MT50", "train", 3): "9de60f0a6d3eb67e",
    ("MT50", "train", 4): "2588cc019573a20f",
    ("ML10", "train", 0): "18d929c597c8f472",
    ("ML10", "test", 0): "dcde46221ff11a97",
    ("ML10", "train", 1): "cb07f39dae4f2b91",
    ("ML10", "test", 1): "27c2d8197c99230b",
    ("ML10", "train", 2): "ba4dd5e4172f87c6",
    ("ML10", "test", 2): "df58acfe15127dac",
    ("ML10", "train", 3): "506e7cd5601a121f",
    ("ML10", "test", 3): "4f6874c09d5dbda3",
    ("ML10", "train", 4): "5bd01e16c8b80faf",
    ("ML10", "test", 4): "91b818ea7e577c3b",
    ("ML45", "train", 0): "e38d007d410d296c",
    ("ML45", "test", 0): "4bcf77af8ae2e43b",
    ("ML45", "train", 1): "3c2486c334b5978d",
    ("ML45", "test", 1): "ce3ce22e7ae69b44",
    ("ML45", "train", 2): "71869be40f5a51e5",
    ("ML45", "test", 2): "850bdddd4fb6e380",
    ("ML45", "train", 3): "914fd4062788f1be",
    ("ML45", "test", 3): "849eb60398ec9df2",
    ("ML45", "train", 4): "5c2bc20f12f54dd2",
    ("ML45", "test", 4): "b42b38846b8c9ec6",
}
LIVE = [(name, seed) for name in ("MT10", "MT50", "ML10", "ML45") for seed in range(5)]
SLOW = (("MT50", 1), ("ML10", 2), ("ML45", 0))  # the others nightly


def live_goals(tasks: list[Any]) -> Goals:
    """Returns the random vectors out of metaworld's pickled tasks, by task name [goal, dim]."""
    goals: dict[str, list[np.ndarray]] = {}
    for task in tasks:
        goals.setdefault(task.env_name, []).append(pickle.loads(task.data)["rand_vec"])
    return {name: np.stack(vectors) for name, vectors in goals.items()}


def check_equal(ours: Goals, theirs: Goals) -> None:
    assert list(ours) == list(theirs)
    for name in ours:
        np.testing.assert_array_equal(ours[name], theirs[name], err_msg=name)


@pytest.mark.parametrize(("name", "split", "seed"), RECORDED)
def test_goals_are_those_recorded(name: str, split: Any, seed: int) -> None:
    goals = goals_for(get_benchmark(name), split, seed)
    digest = hashlib.sha256(b"".join(vectors.tobytes() for vectors in goals.values()))
    assert digest.hexdigest()[:16] == RECORDED[name, split, seed]


@pytest.mark.parametrize(
    ("name", "seed"),
    [pytest.param(*one, marks=pytest.mark.slow if one in SLOW else pytest.mark.nightly) for one in LIVE],
)
def test_goals_equal_those_of_metaworld(name: str, seed: int) -> None:
    live = getattr(metaworld, name)(seed=seed)
    check_equal(goals_for(get_benchmark(name), "train", seed), live_goals(live.train_tasks))
    if live.test_tasks:
        check_equal(goals_for(get_benchmark(name), "test", seed), live_goals(live.test_tasks))


def test_ml1_goals_equal_those_of_metaworld_and_test_with_the_next_seed() -> None:
    live = metaworld.ML1("push-v3", seed=4)
    benchmark = get_benchmark("ML1", ["push-v3"])
    check_equal(goals_for(benchmark, "train", 4), live_goals(live.train_tasks))
    check_equal(goals_for(benchmark, "test", 4), live_goals(live.test_tasks))
    check_equal(goals_for(benchmark, "test", 4), goals_for(benchmark, "train", 5))


def test_mt1_goals_equal_those_of_metaworld() -> None:
    live = metaworld.MT1("sweep-into-v3", seed=0)
    check_equal(goals_for(get_benchmark("MT1", ["sweep-into-v3"]), "train", 0), live_goals(live.train_tasks))


def test_each_task_of_a_custom_list_draws_with_seed_plus_index() -> None:
    names = ["reach-v3", "door-open-v3", "push-v3"]
    goals = goals_for(get_benchmark("custom", names), "train", 0)
    for index, name in enumerate(names):
        alone = goals_for(get_benchmark("MT1", [name]), "train", index)
        np.testing.assert_array_equal(goals[name], alone[name])


def test_fewer_goals_are_a_prefix_for_every_task() -> None:
    benchmark = get_benchmark("MT10")
    few, many = goals_for(benchmark, seed=3, num_goals=7), goals_for(benchmark, seed=3)
    for name in many:
        assert few[name].shape == (7, many[name].shape[1])
        np.testing.assert_array_equal(few[name], many[name][:7])


def test_goals_lie_in_their_space_and_keep_their_distance() -> None:
    for name, vectors in goals_for(get_benchmark("MT50"), seed=9).items():
        space = GOAL_SPACES[name]
        assert (vectors >= space.low).all()
        assert (vectors <= space.high).all()
        assert len(np.unique(vectors, axis=0)) == 50
        if space.min_distance:
            goal = vectors[:, -3:-1] if space.fixed_goal is None else space.fixed_goal
            assert (np.linalg.norm(vectors[:, :2] - goal, axis=1) >= space.min_distance).all()


def test_global_generator_is_left_alone() -> None:
    before = np.random.get_state()[1].copy()  # noqa: NPY002 - the global generator is the subject
    goals_for(get_benchmark("MT10"))
    np.testing.assert_array_equal(np.random.get_state()[1], before)  # noqa: NPY002


@pytest.mark.parametrize(("seed", "num_goals"), [(-1, 50), (2**32, 50), (1, 0)])
def test_numbers_out_of_range_are_refused(seed: int, num_goals: int) -> None:
    with pytest.raises(ValueError, match="expected"):
        goals_for(get_benchmark("MT10"), seed=seed, num_goals=num_goals)

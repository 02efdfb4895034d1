"""Laws of the benchmark lists: metaworld's own tasks in their official order, and helpful refusals."""

import subprocess
import sys

import pytest
from metaworld import env_dict

import envs
from envs.benchmarks import ALL_TASKS, BENCHMARKS, get_benchmark, sizes


@pytest.mark.parametrize("name", ["MT10", "MT25", "MT50"])
def test_multi_task_lists_are_those_of_metaworld_in_order(name: str) -> None:
    assert get_benchmark(name).train_tasks == tuple(getattr(env_dict, f"{name}_V3"))
    assert get_benchmark(name).goal_visible


@pytest.mark.parametrize("name", ["ML10", "ML25", "ML45"])
def test_meta_learning_lists_are_those_of_metaworld_in_order(name: str) -> None:
    live = getattr(env_dict, f"{name}_V3")
    assert get_benchmark(name).train_tasks == tuple(live["train"])
    assert get_benchmark(name).test_tasks == tuple(live["test"])
    assert not get_benchmark(name).goal_visible


def test_all_tasks_are_those_of_metaworld() -> None:
    assert tuple(env_dict.ALL_V3_ENVIRONMENTS) == ALL_TASKS


def test_single_task_benchmarks_hold_one_task() -> None:
    assert get_benchmark("MT1", ["push-v3"]).train_tasks == ("push-v3",)
    ml1 = get_benchmark("ML1", ["push-v3"])
    assert (ml1.train_tasks, ml1.test_tasks, ml1.overlap) == (("push-v3",), ("push-v3",), ())


def test_custom_lists_keep_their_order() -> None:
    assert get_benchmark("custom", ["reach-v3", "assembly-v3"]).train_tasks == ("reach-v3", "assembly-v3")
    custom = get_benchmark("custom-ml", ["reach-v3"], ["push-v3"])
    assert (custom.tasks("train"), custom.tasks("test")) == (("reach-v3",), ("push-v3",))
    assert not custom.goal_visible


def test_only_ml25_overlaps() -> None:
    named = [get_benchmark(name) for name in BENCHMARKS if name[-1].isdigit() and name not in ("MT1", "ML1")]
    assert {b.name: b.overlap for b in named if b.overlap} == {"ML25": ("basketball-v3",)}


def test_building_ml25_reports_the_overlapping_task(monkeypatch: pytest.MonkeyPatch) -> None:
    class BuiltError(Exception):
        pass

    def stop(*_: object, **__: object) -> None:
        raise BuiltError

    monkeypatch.setattr("envs.making.make_simulator", stop)  # the models are not needed here
    with pytest.warns(UserWarning, match="basketball-v3"), pytest.raises(BuiltError):
        envs.make("ML25", split="test")


@pytest.mark.parametrize(
    ("name", "tasks", "message"),
    [
        ("MT11", [], r"MT11 is not a benchmark; did you mean MT10\? Known: MT1, MT10, MT25, MT50"),
        ("mt50", [], r"did you mean MT50\?"),
        ("metaworld", [], "metaworld is not a benchmark"),
        ("MT1", ["reach-v33"], r"reach-v33 is not a task; did you mean reach-v3\?"),
        ("MT1", ["reach"], r"reach is not a task; did you mean reach-v3\?"),
        ("custom", ["drawer_open-v3"], r"did you mean drawer-open-v3\?"),
        ("MT1", [], "needs exactly one task, got 0"),
        ("ML1", ["push-v3", "reach-v3"], "needs exactly one task, got 2"),
        ("MT10", ["push-v3"], "fixed task list"),
        ("custom", [], "custom needs tasks"),
        ("custom", ["push-v3", "push-v3"], "push-v3 stands twice"),
        ("custom", ["push-v3", "toy-reach-up"], "cannot be mixed"),
        ("custom-ml", ["push-v3"], "needs tasks and test_tasks"),
    ],
)
def test_wrong_names_are_answered_with_the_fix(name: str, tasks: list[str], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        get_benchmark(name, tasks)


def test_a_string_is_not_a_task_list() -> None:
    with pytest.raises(ValueError, match=r"expected a list of task names, \['reach-v3'\]"):
        get_benchmark("MT1", "reach-v3")


def test_custom_test_tasks_must_be_unseen() -> None:
    with pytest.raises(ValueError, match="push-v3 stands in tasks and in test_tasks"):
        get_benchmark("custom-ml", ["push-v3", "reach-v3"], ["push-v3"])


def test_multi_task_benchmarks_have_no_test_split() -> None:
    with pytest.raises(ValueError, match="MT10 has no test tasks; use split='train'"):
        get_benchmark("MT10").tasks("test")


def test_import_and_toy_need_neither_metaworld_nor_torch() -> None:
    program = (
        "import sys, envs; envs.make('toy').reset();"
        "print([name for name in ('metaworld', 'mujoco', 'torch', 'mtrl') if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


@pytest.mark.parametrize(("name", "tasks"), [("toy", ()), ("MT1", ("reach-v3",)), ("toy-ml", ())])
def test_sizes_are_those_of_the_environments(name: str, tasks: tuple[str, ...]) -> None:
    env = envs.make(name, tasks=tasks)
    (obs_dim,), (action_dim,) = env.single_observation_space.shape, env.single_action_space.shape
    assert sizes(env.task_names) == (obs_dim, action_dim)

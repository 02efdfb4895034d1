"""Laws of the vector environment over metaworld's own classes: same numbers, episodes, state."""

import itertools
import json
import logging
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import metaworld
import numpy as np
import pytest
from metaworld.env_dict import ALL_V3_ENVIRONMENTS
from metaworld.policies import ENV_POLICY_MAP

import envs
from envs import unstable
from envs.benchmarks import ALL_TASKS
from envs.compiled.obstacle import obstacle
from envs.compiled.simulator import CompiledSimulator
from envs.episodes import Assignment, spread_goals
from envs.vector import TaskVectorEnv

# Tasks whose resets or rewards look at live data, simulate between writes, or keep numbers from step to step.
TRICKY_TASKS = (
    "basketball-v3",
    "bin-picking-v3",
    "box-close-v3",
    "door-lock-v3",
    "door-unlock-v3",
    "drawer-close-v3",
    "pick-place-v3",
    "push-back-v3",
    "reach-v3",
    "shelf-place-v3",
    "soccer-v3",
    "stick-push-v3",
    "sweep-into-v3",
    "sweep-v3",
    "window-close-v3",
)
NUM_STEPS = 150

pytestmark = pytest.mark.filterwarnings("ignore:Constant.s. may be too high")  # of metaworld's scripted policies


def actions(num_steps: int, num_envs: int, seed: int = 0) -> np.ndarray:
    """Returns float32 [step, env, action]; the first half pushes down and forward, so that things are touched."""
    action = np.random.default_rng(seed).uniform(-1, 1, (num_steps, num_envs, 4)).astype(np.float32)
    action[: num_steps // 2, :, 1] += 0.4
    action[: num_steps // 2, :, 2] -= 0.4
    return np.clip(action, -1, 1)


def plain_metaworld(task_name: str, goal: np.ndarray, reward_version: str = "v2", *, goal_visible: bool = True) -> Any:
    """Returns an object of metaworld's class with the goal set in metaworld's own way."""
    task_class = ALL_V3_ENVIRONMENTS[task_name]
    env = task_class(reward_function_version=reward_version)
    fields = {"rand_vec": goal.copy(), "env_cls": task_class, "partially_observable": not goal_visible}
    env.set_task(metaworld._encode_task(task_name, fields))
    return env


def check_equal_to_metaworld(task_name: str, reward_version: str, benchmark: str = "custom") -> None:
    """Restores a start state that was made for another episode, runs, and compares every number."""
    keywords: dict[str, Any] = {
        "tasks": [task_name],
        "reward_version": reward_version,
        "num_goals": 2,
        "backend": "metaworld",
    }
    goal_visible = benchmark == "custom"
    assignments = [Assignment(0, (1, 0, 1), "cycle")]
    env = envs.make(benchmark, assignments=assignments, max_episode_steps=40, **keywords)
    goals = env._simulator._goals[0]  # type: ignore[attr-defined]
    env.reset()
    for action in actions(80, 1, seed=1):  # two episodes; the third one begins from a restored state
        obs, *_ = env.step(action)
    short = env
    env = envs.make(benchmark, assignments=assignments, **keywords)
    env.set_state(short.get_state())
    plain = plain_metaworld(task_name, goals[1], reward_version, goal_visible=goal_visible)
    plain_obs, _ = plain.reset()
    assert env.goal_id.tolist() == [1]
    np.testing.assert_array_equal(obs[0], plain_obs)
    policy = ENV_POLICY_MAP[task_name]()
    for step, action in enumerate(actions(NUM_STEPS, 1)):
        if step < NUM_STEPS - 30:  # the scripted policy, so that things are grasped; then random actions
            action[0] = np.clip(policy.get_action(plain_obs) + 0.1 * action[0], -1, 1)
        obs, reward, _, _, infos = env.step(action)
        plain_obs, plain_reward, _, _, plain_info = plain.step(action[0])
        np.testing.assert_array_equal(obs[0], plain_obs)
        assert reward[0] == plain_reward
        assert {key: infos[key][0] for key in plain_info} == {key: float(v) for key, v in plain_info.items()}
    model = env._simulator._scenes[0].model  # type: ignore[attr-defined]
    np.testing.assert_array_equal(model.site_pos, plain.model.site_pos)
    np.testing.assert_array_equal(model.body_pos, plain.model.body_pos)
    env.close()
    plain.close()


@pytest.mark.parametrize("task_name", TRICKY_TASKS)
def test_restored_start_runs_as_a_real_reset_of_metaworld(task_name: str) -> None:
    check_equal_to_metaworld(task_name, "v2")


def test_hidden_goal_runs_as_metaworld() -> None:
    check_equal_to_metaworld("sweep-into-v3", "v2", "ML1")


@pytest.mark.slow
@pytest.mark.parametrize("reward_version", ["v1", "v2"])
@pytest.mark.parametrize("task_name", ALL_TASKS)
def test_every_task_runs_as_metaworld(task_name: str, reward_version: str) -> None:
    check_equal_to_metaworld(task_name, reward_version)
    if reward_version == "v2":
        check_equal_to_metaworld(task_name, reward_version, "ML1")


def run(env: TaskVectorEnv, action: np.ndarray) -> list[np.ndarray]:
    """Returns everything that the steps say, in order."""
    said: list[np.ndarray] = []
    for row in action:
        obs, reward, terminated, truncated, infos = env.step(row)
        said += [obs, reward, terminated, truncated, infos["success"], env.goal_id.copy()]
    return said


def check_same(left: list[np.ndarray], right: list[np.ndarray]) -> None:
    assert len(left) == len(right)
    for a, b in zip(left, right, strict=True):
        np.testing.assert_array_equal(a, b)


def through_json(state: dict[str, Any]) -> dict[str, Any]:
    """Returns the state after a stay in JSON of all that is not an array."""
    return {name: v if isinstance(v, np.ndarray) else json.loads(json.dumps(v)) for name, v in state.items()}


def backend_of(env: TaskVectorEnv) -> str:
    return "compiled" if isinstance(env._simulator, CompiledSimulator) else "metaworld"


TASKS = ("bin-picking-v3", "door-lock-v3", "pick-place-v3", "basketball-v3")


@pytest.fixture(scope="module", params=["metaworld", "compiled"])
def shared(request: pytest.FixtureRequest) -> Iterator[TaskVectorEnv]:
    """One environment per task of TASKS and two goals each; tests reset or assign it."""
    if request.param == "compiled" and (reason := obstacle(TASKS, "v2")):
        pytest.skip(reason)
    env = envs.make("custom", tasks=TASKS, num_goals=3, max_episode_steps=12, backend=request.param)
    yield env
    env.close()


def test_state_saved_in_mid_episode_goes_on_bit_equal_in_a_fresh_env(shared: TaskVectorEnv) -> None:
    shared.reset(seed=5)
    run(shared, actions(30, 4))  # past two restarts, into the middle of an episode
    state = through_json(shared.get_state())
    fresh = envs.make("custom", tasks=TASKS, num_goals=3, max_episode_steps=12, backend=backend_of(shared))
    fresh.set_state(state)
    rest = actions(NUM_STEPS, 4, seed=2)
    check_same(run(shared, rest), run(fresh, rest))
    fresh.close()


def test_state_carries_the_assignments(shared: TaskVectorEnv) -> None:
    fresh = envs.make("custom", tasks=TASKS, num_goals=3, max_episode_steps=12, backend=backend_of(shared))
    shared.assign([Assignment(2, (0, 1), "cycle"), Assignment(2, (2,)), Assignment(0, (1,)), Assignment(1, (0, 2))])
    shared.reset()
    run(shared, actions(5, 4))
    fresh.set_state(shared.get_state())
    assert fresh.task_id.tolist() == [2, 2, 0, 1]
    rest = actions(30, 4, seed=3)
    check_same(run(shared, rest), run(fresh, rest))
    fresh.close()


@pytest.mark.parametrize(("name", "value"), [("goals", "0123"), ("simulator", "metaworld 2.0.0")])
def test_state_of_other_goals_or_simulator_is_refused(shared: TaskVectorEnv, name: str, value: str) -> None:
    shared.reset()
    with pytest.raises(ValueError, match=value):
        shared.set_state({**shared.get_state(), name: value})


def test_copies_that_share_a_model_run_as_if_alone(shared: TaskVectorEnv) -> None:
    action = actions(40, 1)
    alone = []
    for goal in range(3):
        shared.assign([Assignment(3, (goal,))] * 4)
        shared.reset()
        alone.append(run(shared, np.repeat(action, 4, axis=1)))
    shared.assign([Assignment(3, (2,)), Assignment(3, (0,)), Assignment(3, (1,)), Assignment(3, (0,))])
    shared.reset()
    together = run(shared, np.repeat(action, 4, axis=1))
    for place, goal in enumerate((2, 0, 1, 0)):
        check_same([said[place] for said in together], [said[place] for said in alone[goal]])


def test_random_order_is_a_function_of_seed_and_environment(shared: TaskVectorEnv) -> None:
    every = (0, 1, 2)
    shared.assign([Assignment(0, every)] * 4)

    def goals(seed: int | None) -> np.ndarray:
        shared.reset(seed=seed)
        drawn = [shared.goal_id.copy()]
        for _ in range(11):
            shared.reset()
            drawn.append(shared.goal_id.copy())
        return np.array(drawn)  # [reset, env]

    first, again, other = goals(7), goals(7), goals(8)
    np.testing.assert_array_equal(first, again)
    assert (first != other).any()
    assert len(np.unique(first, axis=1).T) == 4  # no two environments draw alike
    assert (goals(7)[:, 0] != goals(None)[:, 0]).any()  # without a seed the stream goes on


def test_cycle_begins_with_the_first_goal_and_wraps(shared: TaskVectorEnv) -> None:
    shared.assign([Assignment(0, (2, 0, 1), "cycle")] * 4)
    for _ in range(2):
        shared.reset()
        seen = [shared.goal_id[0]]
        for action in actions(36, 4):
            _, _, _, truncated, _ = shared.step(action)
            if truncated[0]:
                seen.append(shared.goal_id[0])
        assert seen == [2, 0, 1, 2]


def test_last_observation_is_final_obs_and_the_returned_one_begins_the_next_episode(shared: TaskVectorEnv) -> None:
    shared.assign([Assignment(task, (0,)) for task in range(4)])
    first, _ = shared.reset()
    rewards = []
    for step, action in enumerate(actions(12, 4)):
        obs, reward, terminated, truncated, infos = shared.step(action)
        rewards.append(reward)
        assert truncated.all() == (step == 11)
        assert ("final_obs" in infos) == (step == 11)
        assert not terminated.any()
    np.testing.assert_array_equal(obs, first)
    last = np.stack(infos["final_obs"])
    assert (last != first).any(axis=1).all()
    np.testing.assert_allclose(infos["final_info"]["episode"]["r"], np.sum(rewards, axis=0), rtol=1e-12)
    assert infos["final_info"]["episode"]["l"].tolist() == [12] * 4
    np.testing.assert_array_equal(infos["final_info"]["success"], infos["success"])


def test_success_terminates_only_if_asked(shared: TaskVectorEnv, monkeypatch: pytest.MonkeyPatch) -> None:
    shared.assign([Assignment(task, (0,)) for task in range(4)])
    original = shared._simulator.step

    def succeed_in_door_lock(*arguments: Any) -> Any:
        step = original(*arguments)
        step.info["success"] = np.array([0.0, 1.0, 0.0, 0.0])
        return step

    monkeypatch.setattr(shared._simulator, "step", succeed_in_door_lock)
    shared.reset()
    _, _, terminated, _, infos = shared.step(actions(1, 4)[0])
    assert not terminated.any()
    assert infos["success"].tolist() == [0, 1, 0, 0]
    shared.toggle_terminate_on_success(True)
    _, _, terminated, truncated, infos = shared.step(actions(1, 4)[0])
    shared.toggle_terminate_on_success(False)
    assert terminated.tolist() == [False, True, False, False]
    assert not truncated.any()
    assert infos["success"].tolist() == [0, 1, 0, 0]  # of this step, also where the episode ended
    assert infos["_final_obs"].tolist() == terminated.tolist()
    assert infos["final_obs"][0] is None


def test_unstable_physics_ends_the_episode_as_truncated_and_is_counted(
    shared: TaskVectorEnv, caplog: pytest.LogCaptureFixture, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    monkeypatch.setattr("envs.unstable._reports", itertools.count())
    shared.assign([Assignment(task, (0,)) for task in range(4)])
    shared.reset(seed=1)
    clean = run(shared, actions(10, 4))
    first, _ = shared.reset()
    before, _, _, _, _ = shared.step(actions(1, 4)[0])
    broken = actions(1, 4)[0]
    broken[2] = np.nan
    with caplog.at_level(logging.WARNING):
        obs, reward, terminated, truncated, infos = shared.step(broken)
    assert infos["unstable"].tolist() == truncated.tolist() == [False, False, True, False]
    assert not terminated.any()
    assert (reward[2], shared.num_unstable) == (0.0, 1)
    np.testing.assert_array_equal(infos["final_obs"][2], before[2])  # the last good one
    np.testing.assert_array_equal(obs[2], first[2])
    (kept,) = (tmp_path / "reports").rglob("*.npz")
    assert "mjWARN_BADQACC" in caplog.text
    assert "in pick-place-v3, environment 2, goal 0 [" in caplog.text
    assert (
        f"seed 1/2, step 2, action [nan, nan, nan, nan]; the episode ends as truncated; its actions are in {kept}"
        in (caplog.text)
    )
    assert not list((tmp_path / "here").iterdir())  # MuJoCo has written no log
    episode = unstable.load(kept)
    np.testing.assert_array_equal(episode.actions, [actions(1, 4)[0][2], broken[2]])
    for backend in ("metaworld", "auto"):
        assert unstable.replay(episode, backend) == [False, True]
    after = run(shared, actions(10, 4))
    check_same([said[2] for said in after], [said[2] for said in clean])
    assert shared.num_unstable == 1


def test_actions_are_float32_whatever_they_come_as(shared: TaskVectorEnv) -> None:
    shared.assign([Assignment(task, (0,)) for task in range(4)])
    shared.reset()
    action = np.random.default_rng(0).uniform(-1, 1, (11, 4, 4))  # float64
    wide = run(shared, action)
    shared.reset()
    check_same(wide, run(shared, action.astype(np.float32)))


def test_observations_are_written_where_the_caller_wants_them(shared: TaskVectorEnv) -> None:
    shared.assign([Assignment(task, (0,)) for task in range(4)])
    expected = [shared.reset()[0], *(shared.step(action)[0] for action in actions(13, 4))]
    block = np.full((14, 4, 39), np.nan, np.float32)
    shared.reset(out=block[0])
    for action, row in zip(actions(13, 4), block[1:], strict=True):  # an autoreset among them
        assert shared.step(action, out=row)[0] is row
    np.testing.assert_array_equal(block, np.array(expected, np.float32))
    with pytest.raises(ValueError, match=r"out has shape \(4, 38\); expected \(4, 39\)"):
        shared.step(actions(1, 4)[0], out=np.empty((4, 38)))
    with pytest.raises(ValueError, match=r"out must be a float32 or float64 array .* got int64"):
        shared.step(actions(1, 4)[0], out=np.empty((4, 39), np.int64))


def test_observations_keep_their_bounds_from_reset_on(shared: TaskVectorEnv) -> None:
    shared.assign([Assignment(task, (0, 1, 2)) for task in range(4)])
    obs, _ = shared.reset()
    assert obs.dtype == np.float64
    assert shared.observation_space.contains(obs)
    for action in actions(30, 4):
        obs, *_, infos = shared.step(action)
        assert shared.observation_space.contains(obs)
        for last in infos.get("final_obs", ()):
            assert shared.single_observation_space.contains(last)


@pytest.mark.slow
def test_first_observations_of_all_goals_of_all_tasks_keep_their_bounds() -> None:
    env = envs.make("MT50", assignments=[Assignment(task, tuple(range(50)), "cycle") for task in range(50)])
    for _ in range(50):
        assert env.observation_space.contains(np.stack([obs for obs, _ in env.sample_tasks()]))


def test_hidden_goals_are_zeros_within_zero_bounds() -> None:
    env = envs.make("ML1", tasks=["reach-v3"], num_goals=1)
    obs, _ = env.reset()
    assert not obs[0, 36:].any()
    assert not env.single_observation_space.low[36:].any()
    assert not env.single_observation_space.high[36:].any()


def test_one_hot_follows_the_observation_and_names_the_task() -> None:
    env = envs.make(
        "custom", tasks=["reach-v3", "push-v3"], copies=2, task_one_hot=True, num_goals=1, max_episode_steps=3
    )
    obs, _ = env.reset()
    code = np.repeat(np.eye(2), 2, axis=0)
    assert env.single_observation_space.shape == (41,)
    for action in actions(4, 4):
        np.testing.assert_array_equal(obs[:, 39:], code)
        assert env.observation_space.contains(obs)
        obs, *_, infos = env.step(action)
        for index, last in enumerate(infos.get("final_obs", ())):
            np.testing.assert_array_equal(last[39:], code[index])


def test_goals_kept_on_reset_change_only_by_sample_tasks(shared: TaskVectorEnv) -> None:
    shared.assign([Assignment(0, (2, 0, 1), "cycle")] * 4)
    shared.call("toggle_sample_tasks_on_reset", False)
    try:
        shared.call("sample_tasks")
        shared.reset()
        run(shared, actions(13, 4))
        assert shared.goal_id.tolist() == [2] * 4
        shared.call("sample_tasks")
        shared.reset()
        assert shared.goal_id.tolist() == [0] * 4
    finally:
        shared.call("toggle_sample_tasks_on_reset", True)


def test_spread_goals_runs_every_goal_once() -> None:
    spread = spread_goals(num_tasks=2, copies=4, num_goals=10)
    assert [a.task_id for a in spread] == [0] * 4 + [1] * 4
    assert sorted(goal for a in spread[:4] for goal in a.goals) == list(range(10))
    with pytest.raises(ValueError, match="11 copies cannot share 10 goals"):
        spread_goals(1, 11, 10)


@pytest.mark.parametrize(
    ("keywords", "message"),
    [
        ({"assignments": [Assignment(4, (0,))]}, "task_id is 4"),
        ({"assignments": [Assignment(0, ())]}, "has no goals"),
        ({"assignments": [Assignment(0, (3,))]}, r"goals \[3\] do not exist"),
        ({"assignments": [Assignment(0, (0,), "sorted")]}, "order is 'sorted'"),  # type: ignore[arg-type]
        ({"max_episode_steps": 0}, "max_episode_steps is 0"),
        ({"copies": 0}, "copies is 0"),
        ({"copies": 2, "assignments": [Assignment(0, (0,))]}, "either copies or assignments"),
        ({"num_threads": 0}, "num_threads is 0"),
        ({"backend": "gpu"}, "backend is 'gpu'; expected one of auto, compiled, metaworld"),
        ({"reward_version": "v3"}, "reward_version is 'v3'; expected 'v1' or 'v2'"),
        ({"camera": "side"}, "camera is 'side'; expected one of corner"),
        ({"split": "valid"}, "split is 'valid'"),
    ],
)
def test_wrong_settings_are_refused_with_the_right_ones(keywords: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        envs.make("MT1", tasks=["reach-v3"], num_goals=3, **keywords)


def test_step_before_reset_is_refused(shared: TaskVectorEnv) -> None:
    shared.assign([Assignment(0, (0,))] * 4)
    with pytest.raises(RuntimeError, match="reset"):
        shared.step(actions(1, 4)[0])
    with pytest.raises(RuntimeError, match="reset"):
        shared.get_state()
    shared.reset()
    with pytest.raises(ValueError, match=r"shape \(3, 4\); expected \(4, 4\)"):
        shared.step(actions(1, 3)[0])
    with pytest.raises(ValueError, match="got 3 assignments for 4"):
        shared.assign([Assignment(0, (0,))] * 3)


def test_environments_that_are_not_active_are_not_simulated(shared: TaskVectorEnv) -> None:
    first, _ = shared.reset(seed=0)
    steps = actions(20, 4)
    alone = [shared.step(action)[0][0] for action in steps]
    again, _ = shared.reset(seed=0)
    assert (again == first).all()
    shared.set_active([True, False, False, False])
    for action, expected in zip(steps, alone, strict=True):
        obs, reward, *_ = shared.step(action)
        assert (obs[0] == expected).all()
        assert (obs[1:] == first[1:]).all()
        assert not reward[1:].any()
    shared.set_active(np.ones(4, bool))

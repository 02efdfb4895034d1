"""Laws of the toy suite: the contract of the real one, learnable, with conflicts."""

import json

import numpy as np
import pytest

import envs
from envs import toy
from envs.benchmarks import get_benchmark
from envs.episodes import Assignment
from envs.goals import goals_for
from envs.toy_tasks import TOY_TASKS
from envs.vector import TaskVectorEnv


def follow_goal(env: TaskVectorEnv, obs: np.ndarray) -> np.ndarray:
    """Returns actions [env, 2] of a hand-written policy that knows which tasks turn actions around."""
    gain = np.array([TOY_TASKS[env.task_names[task]].action_gain for task in env.task_id])
    return np.clip(gain[:, None] * (8 * (obs[:, 4:6] - obs[:, :2]) - 20 * obs[:, 2:4]), -1, 1)


@pytest.mark.parametrize("tasks", [tuple(TOY_TASKS)])
def test_every_toy_task_is_solved_by_going_to_the_goal(tasks: tuple[str, ...]) -> None:
    env = envs.make("custom", tasks=tasks, copies=5)
    obs, _ = env.reset()
    solved = np.zeros(env.num_envs, bool)
    for _ in range(toy.MAX_EPISODE_STEPS):
        obs, reward, _, _, infos = env.step(follow_goal(env, obs))
        solved |= infos["success"] == 1.0
        assert ((reward > 0) & (reward <= 10)).all()
        assert ((reward == 10) == (infos["success"] == 1.0)).all()
    assert solved.all()


def test_mirrored_task_wants_the_opposite_of_its_twin() -> None:
    assignments = [Assignment(2, (0,)), Assignment(3, (0,))]
    env = envs.make("toy", assignments=assignments)
    obs, _ = env.reset()
    goal = np.stack([env.goals["toy-reach-up"][0], env.goals["toy-reach-up-mirrored"][0]])
    up = np.array([[0, 1], [0, 1]])
    moved, *_ = env.step(up)
    np.testing.assert_array_equal(obs[:, 4:], goal)
    np.testing.assert_array_equal(moved[0, :2], -moved[1, :2])
    assert (goal[:, 1] > 0).all()  # so the same action is right for one and wrong for the other


def test_hidden_goal_is_zeros_and_test_tasks_are_new() -> None:
    train, test = envs.make("toy-ml"), envs.make("toy-ml", split="test")
    obs, _ = train.reset()
    assert not obs[:, 4:].any()
    assert not set(train.task_names) & set(test.task_names)


def test_goals_lie_in_their_region_and_follow_the_seed() -> None:
    benchmark = get_benchmark("toy")
    for name, vectors in goals_for(benchmark, seed=1).items():
        assert vectors.shape == (50, 2)
        assert ((vectors >= TOY_TASKS[name].low) & (vectors <= TOY_TASKS[name].high)).all()
        np.testing.assert_array_equal(vectors, goals_for(benchmark, seed=1)[name])
        assert (vectors != goals_for(benchmark, seed=2)[name]).any()


def test_observations_keep_their_bounds_under_any_action() -> None:
    env = envs.make("toy", copies=8)
    obs, _ = env.reset()
    generator = np.random.default_rng(0)
    for step in range(120):
        assert env.observation_space.contains(obs)
        action = generator.choice([-1.0, 1.0], (env.num_envs, 2)) * (1 if step % 2 else 100)
        obs, *_ = env.step(action if step > 60 else np.ones((env.num_envs, 2)))


def test_state_saved_in_mid_episode_goes_on_bit_equal_in_a_fresh_env() -> None:
    env, fresh = envs.make("toy", copies=2, max_episode_steps=7), envs.make("toy", copies=2, max_episode_steps=7)
    generator = np.random.default_rng(1)
    env.reset(seed=3)
    for _ in range(10):
        env.step(generator.uniform(-1, 1, (8, 2)))
    state = env.get_state()
    fresh.set_state({n: v if isinstance(v, np.ndarray) else json.loads(json.dumps(v)) for n, v in state.items()})
    for _ in range(30):
        action = generator.uniform(-1, 1, (8, 2))
        for left, right in zip(env.step(action)[:4], fresh.step(action)[:4], strict=True):
            np.testing.assert_array_equal(left, right)
        np.testing.assert_array_equal(env.goal_id, fresh.goal_id)


def test_horizon_is_50_and_free() -> None:
    for horizon, keywords in ((50, {}), (3, {"max_episode_steps": 3})):
        env = envs.make("toy", **keywords)
        env.reset()
        for step in range(1, horizon + 1):
            _, _, _, truncated, _ = env.step(np.zeros((4, 2)))
            assert truncated.all() == (step == horizon)


def test_action_that_is_no_number_ends_only_its_own_episode_and_stays_out_of_the_numbers() -> None:
    env = envs.make("toy")
    obs, _ = env.reset()
    action = np.ones((4, 2))
    action[1] = np.nan
    obs, reward, _, truncated, infos = env.step(action)
    assert truncated.tolist() == infos["unstable"].tolist() == [False, True, False, False]
    assert np.isfinite(obs).all()
    assert np.isfinite(infos["final_obs"][1]).all()
    assert reward[1] == 0.0


def test_picture_shows_point_and_goal() -> None:
    env = envs.make("toy", render_mode="rgb_array")
    env.reset()
    pictures = env.render()
    assert [picture.shape for picture in pictures] == [(64, 64, 3)] * 4
    colors = np.unique(pictures[0].reshape(-1, 3), axis=0)
    assert len(colors) == 3


def test_environments_that_are_not_active_stand_still() -> None:
    env = envs.make("toy", seed=1)
    first, _ = env.reset(seed=0)
    env.set_active([True, False, True, False])
    for _ in range(60):  # longer than the horizon of 50
        obs, reward, _, truncated, _ = env.step(np.ones((4, 2)))
        assert not truncated[[1, 3]].any()
        assert not reward[[1, 3]].any()
    assert (obs[[1, 3]] == first[[1, 3]]).all()
    env.set_active(np.ones(4, bool))
    obs, *_ = env.step(np.ones((4, 2)))
    assert (obs[[1, 3]] != first[[1, 3]]).any()
    with pytest.raises(ValueError, match=r"active has shape \(2,\); expected \(4,\)"):
        env.set_active([True, False])


def test_goals_of_an_environment_with_its_own_seed_do_not_depend_on_its_place() -> None:
    env = envs.make("toy", seed=1, assignments=[Assignment(task, tuple(range(50))) for task in (0, 1, 2)])
    env.reset(seed=[10, 11, 12])
    forward = env.goal_id.tolist()
    env.reset(seed=[12, 11, 10])
    assert env.goal_id.tolist() == forward[::-1]

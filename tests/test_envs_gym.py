"""Laws of gymnasium: registration, its own checks, the behaviour of its vector environments, metaworld's evaluation."""

import itertools
from pathlib import Path
from typing import Any

import gymnasium
import metaworld
import numpy as np
import pytest
from gymnasium.utils.env_checker import check_env
from gymnasium.vector import AutoresetMode, SyncVectorEnv
from gymnasium.wrappers import RecordEpisodeStatistics, TimeLimit
from metaworld import evaluation as live_evaluation

import envs
from envs import unstable
from envs.benchmarks import ALL_TASKS
from envs.episodes import Assignment, spread_goals
from envs.single import TaskEnv

pytestmark = [
    pytest.mark.filterwarnings("ignore:.*Box observation space m.*value is.*infinity"),  # objects may be anywhere
]


def test_all_tasks_and_benchmarks_are_registered() -> None:
    single = {f"mtrl/{task}" for task in ALL_TASKS}
    vector = {f"mtrl/{name}" for name in ("MT1", "MT10", "MT25", "MT50", "custom", "toy")}
    vector |= {f"mtrl/{name}-{split}" for name in ("ML1", "ML10", "ML25", "ML45") for split in ("train", "test")}
    assert single | vector <= set(gymnasium.registry)
    assert all(gymnasium.spec(name).max_episode_steps == 500 for name in single)


@pytest.mark.parametrize("name", ["mtrl/reach-v3", "mtrl/door-lock-v3", "mtrl/toy-reach-left"])
def test_single_environment_passes_the_check_of_gymnasium(name: str) -> None:
    check_env(gymnasium.make(name).unwrapped, skip_render_check="toy" not in name)


def test_single_environment_truncates_at_its_horizon_and_must_be_reset() -> None:
    env = gymnasium.make("mtrl/reach-v3", max_episode_steps=4)
    env.reset(seed=1)
    truncated = [env.step(env.action_space.sample())[3] for _ in range(4)]
    assert truncated == [False, False, False, True]
    bare = TaskEnv("toy-reach-left")
    with pytest.raises(gymnasium.error.ResetNeeded):
        bare.step(np.zeros(2))


def test_single_environment_ends_and_reports_an_episode_whose_physics_broke(
    caplog: pytest.LogCaptureFixture, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("envs.unstable._reports", itertools.count())
    env = TaskEnv("toy-reach-left")
    env.reset(seed=5)
    env.step(np.ones(2))
    *_, terminated, truncated, info = env.step(np.full(2, np.nan))
    assert (terminated, truncated, info["unstable"]) == (False, True, True)
    (kept,) = (tmp_path / "reports" / "unstable").iterdir()
    assert "unstable physics (an action that is not a number) in toy-reach-left" in caplog.text
    episode = unstable.load(kept)
    assert (episode.task, episode.goal_id, episode.seed) == ("toy-reach-left", env.goal_id, (5, 0))
    assert unstable.replay(episode) == [False, True]
    with pytest.raises(gymnasium.error.ResetNeeded):
        env.step(np.zeros(2))
    kept.write_bytes(kept.read_bytes()[:100])
    with pytest.raises(ValueError, match=f"{kept} holds no episode"):
        unstable.load(kept)


def test_single_environment_refuses_actions_of_another_shape() -> None:
    env = TaskEnv("reach-v3")
    env.reset()
    for wrong in (np.zeros(3), np.zeros(5), np.zeros((1, 4)), 0.0):
        with pytest.raises(ValueError, match=r"expected \(4,\)"):
            env.step(wrong)


def test_single_environment_chooses_goals_by_the_seed_of_reset() -> None:
    env = TaskEnv("toy-reach-left")

    def goals(seed: int) -> list[int]:
        env.reset(seed=seed)
        chosen = [env.goal_id]
        for _ in range(9):
            env.reset()
            chosen.append(env.goal_id)
        return chosen

    assert goals(1) == goals(1) != goals(2)


def test_make_vec_builds_benchmarks_with_copies_and_tasks() -> None:
    env = gymnasium.make_vec("mtrl/MT1", tasks=["reach-v3"], num_envs=3, max_episode_steps=2)
    assert (env.num_envs, env.task_names, env.max_episode_steps) == (3, ("reach-v3",), 2)
    env.close()
    assert gymnasium.make_vec("mtrl/toy").num_envs == 4
    assert gymnasium.make_vec("mtrl/toy", num_envs=8).task_id.tolist() == [0, 0, 1, 1, 2, 2, 3, 3]
    assert gymnasium.make_vec("mtrl/toy-reach-left", num_envs=2, vectorization_mode="sync").num_envs == 2
    with pytest.raises(ValueError, match="num_envs is 6; toy has 4 tasks and needs a multiple"):
        gymnasium.make_vec("mtrl/toy", num_envs=6)


def test_ml1_train_is_the_train_split() -> None:
    train = gymnasium.make_vec("mtrl/ML1-train", tasks=["reach-v3"], seed=3)
    test = gymnasium.make_vec("mtrl/ML1-test", tasks=["reach-v3"], seed=3)
    live = metaworld.make_mt_envs("reach-v3", seed=3)  # its goals are those of ML1's train split
    tasks = live.get_wrapper_attr("tasks")
    np.testing.assert_array_equal(train.goals["reach-v3"], [np.array(_rand_vec(task)) for task in tasks])
    assert (train.goals["reach-v3"] != test.goals["reach-v3"]).any()
    for env in (train, test, live):
        env.close()


def _rand_vec(task: Any) -> Any:
    import pickle

    return pickle.loads(task.data)["rand_vec"]


class OneGoal(gymnasium.Wrapper):
    """Runs goal 0, then 1, then 0 again, as `cycle` does."""

    def reset(self, **keywords: Any) -> Any:
        stream = self.unwrapped._streams
        if not hasattr(self, "count"):
            self.count = 0
            stream.assign([Assignment(0, (0, 1), "cycle")])
        return self.env.reset(**keywords)


def test_vector_form_does_what_sync_vector_env_does() -> None:
    tasks, horizon = ("push-v3", "push-v3", "push-v3"), 9

    def single() -> gymnasium.Env:
        return RecordEpisodeStatistics(TimeLimit(OneGoal(TaskEnv("push-v3", num_goals=2)), horizon))

    sync = SyncVectorEnv([single for _ in tasks], autoreset_mode=AutoresetMode.SAME_STEP)
    ours = envs.make(
        "MT1",
        tasks=["push-v3"],
        num_goals=2,
        max_episode_steps=horizon,
        assignments=[Assignment(0, (0, 1), "cycle")] * 3,
    )
    assert ours.metadata["autoreset_mode"] == sync.metadata["autoreset_mode"]
    assert ours.observation_space == sync.observation_space
    assert ours.action_space == sync.action_space
    assert ours.single_observation_space == sync.single_observation_space
    np.testing.assert_array_equal(ours.reset()[0], sync.reset()[0])
    generator = np.random.default_rng(0)
    for _ in range(25):
        action = generator.uniform(-1, 1, (3, 4)).astype(np.float32)
        left, right = ours.step(action), sync.step(action)
        for mine, theirs in zip(left[:4], right[:4], strict=True):
            np.testing.assert_array_equal(mine, theirs)
            assert mine.dtype == theirs.dtype
        _check_infos(left[4], right[4], left[2] | left[3])
    ours.close()
    sync.close()


def _check_infos(ours: dict[str, Any], theirs: dict[str, Any], finished: np.ndarray) -> None:
    """Compares infos; those of the step are dense here even where an episode ended, there they are only final_info."""
    finals = {"final_obs", "_final_obs", "final_info", "_final_info"}
    assert finals & set(ours) == finals & set(theirs)
    for key in set(theirs) - finals:
        if not key.startswith("_"):
            np.testing.assert_array_equal(ours[key][~finished], theirs[key][~finished])
    if finished.any():
        assert set(ours["final_info"]) == set(theirs["final_info"])
        assert ours["final_obs"].dtype == theirs["final_obs"].dtype == object
        np.testing.assert_array_equal(np.stack(ours["final_obs"]), np.stack(theirs["final_obs"]))
        np.testing.assert_array_equal(ours["_final_obs"], theirs["_final_obs"])
        for key in ("success", "obj_to_target"):
            np.testing.assert_array_equal(ours["final_info"][key], theirs["final_info"][key])
        mine, his = ours["final_info"]["episode"], theirs["final_info"]["episode"]
        assert set(mine) == set(his)
        np.testing.assert_array_equal(mine["l"], his["l"])
        np.testing.assert_allclose(mine["r"], his["r"], rtol=1e-5)  # there in float32


def test_reset_mask_restarts_only_some() -> None:
    env = envs.make("toy")
    env.reset()
    moved, *_ = env.step(np.ones((4, 2)))
    mask = np.array([True, False, False, True])
    obs, _ = env.reset(options={"reset_mask": mask})
    assert not obs[mask, :4].any()
    np.testing.assert_array_equal(obs[~mask], moved[~mask])


def test_pictures_leave_the_simulation_alone() -> None:
    env = envs.make("MT1", tasks=["door-open-v3"], num_goals=1, render_mode="rgb_array")
    plain = envs.make("MT1", tasks=["door-open-v3"], num_goals=1)
    env.reset()
    plain.reset()
    try:
        (picture,) = env.render()
    except RuntimeError as error:
        pytest.skip(f"no rendering here: {error}")
    assert picture.shape == (480, 480, 3)
    assert picture.std() > 10
    assert plain.render() is None
    for action in np.random.default_rng(0).uniform(-1, 1, (4, 1, 4)):
        left, right = env.step(action), plain.step(action)
        env.render()
        np.testing.assert_array_equal(left[0], right[0])
    env.close()
    plain.close()


class TinyAgent:
    """Answers every call of metaworld's evaluation with random actions and counts what it is told."""

    def __init__(self) -> None:
        self.generator = np.random.default_rng(0)
        self.adapted = self.steps = self.ended = 0

    def eval_action(self, observations: np.ndarray) -> np.ndarray:
        return self.generator.uniform(-1, 1, (len(observations), 4))

    def adapt_action(self, observations: np.ndarray) -> tuple[np.ndarray, dict[str, np.ndarray]]:
        return self.eval_action(observations), {}

    def reset(self, env_mask: np.ndarray) -> None:
        self.ended += int(env_mask.sum())

    def init(self) -> None:
        self.steps = 0

    def step(self, timestep: Any) -> None:
        assert timestep.observation.shape == (4, 39)
        self.steps += 1

    def adapt(self) -> None:
        self.adapted += 1


def test_evaluation_of_metaworld_runs_unchanged() -> None:
    env = envs.make("custom", tasks=["reach-v3", "push-v3"], copies=2, num_goals=2, max_episode_steps=6)
    agent = TinyAgent()
    success, mean_return, per_task, returns = live_evaluation.evaluation(agent, env, num_episodes=3)
    assert set(per_task) == {"reach-v3", "push-v3"}
    assert all(len(episodes) == 3 for episodes in returns.values())
    assert 0 <= success <= 1
    assert mean_return > 0
    assert not env.terminate_on_success  # put back as it was
    env.close()


def test_meta_learning_evaluation_of_metaworld_runs_unchanged() -> None:
    env = envs.make(
        "custom-ml",
        tasks=["push-v3"],
        test_tasks=["reach-v3", "door-open-v3"],
        split="test",
        num_goals=4,
        assignments=spread_goals(num_tasks=2, copies=2, num_goals=4),
        max_episode_steps=5,
    )
    agent = TinyAgent()
    chosen = []
    original = env.sample_tasks

    def spy() -> Any:
        result = original()
        chosen.append(env.goal_id.tolist())
        return result

    env.sample_tasks = spy  # type: ignore[method-assign]
    _, _, per_task = live_evaluation.metalearning_evaluation(
        agent, env, num_evals=2, adaptation_episodes=2, evaluation_episodes=1
    )
    assert set(per_task) == {"reach-v3", "door-open-v3"}
    assert chosen == [[0, 1, 0, 1], [2, 3, 2, 3]]  # every goal once
    assert (agent.adapted, agent.steps) == (2, 10)
    env.close()


def test_machine_without_graphics_is_told_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    from envs import rendering

    monkeypatch.setattr(rendering, "_GRAPHICS", ("no_such_kind", "neither_this"))
    monkeypatch.delenv("MUJOCO_GL", raising=False)
    with pytest.raises(RuntimeError, match="install libegl1 or libosmesa6"):
        rendering._open_graphics(rendering.View())

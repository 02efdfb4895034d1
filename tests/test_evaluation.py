"""Evaluation: which episodes are run, and what is made of them."""

import numpy as np
import pytest
import torch
from builders import CountingEnvs, StandingStill, tiny_config

from envs.episodes import Assignment
from mtrl.config import EvalConfig
from mtrl.data import Episodes
from mtrl.evaluation import (
    METAWORLD_EPISODES,
    Evaluator,
    episode_records,
    estimates,
    evaluation_mode,
    mean_success,
    run_episodes,
)
from mtrl.learners.build import build_policy
from mtrl.learners.protocol import Boundary, PolicyStep
from mtrl.rollout.build import build_envs, build_suite


def episodes(success):
    """Episodes of two tasks, [task, goal] of success."""
    task, goal = np.indices(np.shape(success)).reshape(2, -1).astype(np.int32)
    count = len(task)
    flags = np.asarray(success, bool).ravel()
    return Episodes(
        task, goal, task, task, np.arange(count, dtype=float), np.full(count, 5, np.int32), flags,
        np.zeros(count, bool), np.where(flags, 2, -1).astype(np.int32), np.zeros(count, np.int32),
    )  # fmt: skip


def test_every_environment_runs_its_number_of_episodes():
    found = run_episodes(CountingEnvs(num_envs=3), StandingStill(), np.array([1, 3, 0]), torch.Generator(), seed=0)
    assert np.bincount(found.env, minlength=3).tolist() == [1, 3, 0]
    assert found.returns.tolist() == [3.0] * 4


def test_success_at_any_step_counts_and_last_step_success_is_apart():
    early = run_episodes(CountingEnvs(success_at=1), StandingStill(), np.array([1, 1]), torch.Generator(), seed=0)
    assert early.success.all()
    assert not early.last_step_success.any()
    last = run_episodes(CountingEnvs(success_at=2), StandingStill(), np.array([1, 1]), torch.Generator(), seed=0)
    assert last.last_step_success.all()
    never = run_episodes(CountingEnvs(success_at=9), StandingStill(), np.array([1, 1]), torch.Generator(), seed=0)
    assert not never.success.any()


def test_the_estimate_counts_every_episode_once():
    found = estimates(episodes([[1, 0, 0, 0], [1, 1, 1, 0]]), ("a", "b"), seed=0)
    assert found["mtrl"]["success"] == {"a": 0.25, "b": 0.75}
    assert found["mtrl"]["return"] == {"a": 1.5, "b": 5.5}
    assert mean_success(found["mtrl"]) == 0.5


def test_the_metaworld_estimate_draws_goals_with_replacement():
    success = np.zeros((1, 50), bool)
    success[0, :25] = True
    drawn = [estimates(episodes(success), ("a",), seed)["metaworld"]["success"]["a"] for seed in range(300)]
    assert all(round(value * METAWORLD_EPISODES, 6).is_integer() for value in drawn)
    # binomial of 50 draws: mean 0.5, standard deviation 0.071; drawing each goal once would always give 0.5
    assert abs(np.mean(drawn) - 0.5) < 0.02
    assert 0.05 < np.std(drawn) < 0.09


def test_records_are_ordered_by_task_and_goal():
    records = episode_records(episodes([[1, 0], [0, 1]]), ("a", "b"))
    assert [(record["task"], record["goal"], record["success"]) for record in records] == [
        ("a", 0, True), ("a", 1, False), ("b", 0, False), ("b", 1, True),
    ]  # fmt: skip


@pytest.mark.parametrize("deterministic", [True, False])
def test_actions_are_means_unless_samples_are_asked_for(deterministic):
    config = tiny_config(eval=EvalConfig(deterministic=deterministic, goals=2, final_goals=2))
    suite = build_suite(config)
    weights = {name: value.numpy() for name, value in build_policy(config, suite)._actor.state_dict().items()}
    evaluator = Evaluator(config, suite)
    once, again = (evaluator.run(weights, num_goals=2).returns.tolist() for _ in range(2))
    evaluator.close()
    assert once == again  # samples come from a stream of the seed
    policy = build_policy(config, suite)
    policy.load(weights)
    envs = build_envs(config, [Assignment(0, (0,))], terminate_on_success=False)
    mode = evaluation_mode(config)
    one, other = run_episodes(envs, policy, np.array([2]), torch.Generator(), seed=0, mode=mode).returns
    envs.close()
    assert (one == pytest.approx(other)) == deterministic


def test_workers_share_the_goals_and_none_is_run_twice():
    config = tiny_config(eval=tiny_config().eval.__class__(copies=3, goals=2, final_goals=4))
    suite = build_suite(config)
    weights = {name: value.numpy() for name, value in build_policy(config, suite)._actor.state_dict().items()}
    shares = [Evaluator(config, suite, worker, 2).run(weights, num_goals=4) for worker in range(2)]
    pairs = [(task, goal) for share in shares for task, goal in zip(share.task_id, share.goal_id, strict=True)]
    assert len(pairs) == len(set(pairs)) == 16
    assert all(len(share) for share in shares)


def test_a_second_evaluation_with_the_same_weights_gives_the_same_episodes():
    config = tiny_config()
    suite = build_suite(config)
    weights = {name: value.numpy() for name, value in build_policy(config, suite)._actor.state_dict().items()}
    evaluator = Evaluator(config, suite)
    first, other, again = (evaluator.run(weights, num_goals=n) for n in (4, 2, 4))
    assert len(other) == 8
    np.testing.assert_array_equal(first.returns, again.returns)


class Counting:
    """A policy whose state is the number of its steps since a beginning, told through the action."""

    def __init__(self):
        self.seen = []

    def initial_state(self, num_envs):
        return torch.zeros(num_envs, 1)

    def begin(self, state, mask, boundary):
        assert boundary is Boundary.TRIAL
        return torch.where(mask.unsqueeze(1), 0.0, state)

    def act(self, obs, previous, state, slot, mode, generator):
        self.seen.append((state[0, 0].item(), previous.reward[0].item()))
        return PolicyStep(torch.full((len(obs), 2), 0.1), state + 1, {})


def test_every_evaluated_episode_begins_afresh():
    config = tiny_config()
    envs = build_envs(config, [Assignment(0, (0, 1, 2), order="cycle")], terminate_on_success=False)
    policy = Counting()
    run_episodes(envs, policy, np.array([3]), torch.Generator(), seed=1)
    assert [count for count, _ in policy.seen] == [*range(config.env.max_episode_steps)] * 3
    assert [reward for count, reward in policy.seen if count == 0] == [0.0] * 3
    assert any(reward for _, reward in policy.seen)

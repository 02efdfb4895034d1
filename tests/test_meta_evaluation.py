"""Meta-evaluation: both estimators on episodes made by hand; sampled tasks, hidden goals, Gaussian policies."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import torch
from builders import tiny_config

from mtrl.config import ConfigError, EnvConfig, MetaConfig, RunConfig
from mtrl.data import Episodes
from mtrl.evaluators import result_of
from mtrl.learners.meta_tasks import TaskSampler
from mtrl.meta_evaluation import meta_estimates
from mtrl.networks.build import Suite
from mtrl.networks.gaussian import entropy, kl_divergence, log_prob
from mtrl.records import evaluation_values
from mtrl.rollout.build import build_envs, build_suite, training_assignments


def config(**changes: object) -> RunConfig:
    return tiny_config(
        algorithm="maml_trpo",
        env=EnvConfig(benchmark="toy-ml", max_episode_steps=20, num_goals=4),
        **{"meta": MetaConfig(batch_size=8, adaptation_episodes=2, test_episodes=3), **changes},  # type: ignore[arg-type] # of RunConfig
    )


def episodes_of(rows: list[tuple[int, int, int, int]]) -> Episodes:
    """Episodes from (task id, goal, episodes of adaptation, step of the first success or -1)."""
    task, goal, adapted, first = np.array(rows, np.int32).T
    success = first >= 0
    return Episodes(
        task_id=task,
        goal_id=goal,
        slot=task,
        env=goal,
        returns=np.arange(len(rows), dtype=float),
        length=np.full(len(rows), 20, np.int32),
        success=success,
        last_step_success=success,
        first_success_step=first,
        adapted=adapted,
    )


def test_of_metaworlds_environments_those_count_that_finish_first() -> None:
    """One goal out of four is solved, in 5 steps of 20: three of its episodes end before any other one does."""
    suite = Suite(("a", "b", "c", "d"), 3, 2, test_task_names=("e", "f", "g", "h", "i"))
    rows = [(task, goal, 2, -1) for task in range(9) for goal in range(4) for _ in range(3) if (task, goal) != (4, 1)]
    rows += [(4, 1, 2, 4)] * 3
    found = meta_estimates(episodes_of(rows), config(), suite)
    assert found["estimators"]["mtrl"]["success"]["e"] == 0.25
    assert found["estimators"]["metaworld"]["success"]["e"] == 1.0
    assert found["estimators"]["metaworld"]["success"]["f"] == 0.0
    values = evaluation_values(found)
    assert values["eval/success/mean"] == pytest.approx(0.05)
    assert values["eval/metaworld_success/mean"] == pytest.approx(0.2)
    assert values["eval/metaworld_bias/mean"] == pytest.approx(0.15)
    assert values["eval/success_on_training_tasks/mean"] == 0.0


def test_a_late_success_comes_after_a_failure_of_another_environment() -> None:
    suite = Suite(("a",), 3, 2, test_task_names=("a",))
    # ends at 20, 40, 60 without success, beside 19, 38, 57 with it: 19 (success), 20 (failure), 38 (success)
    rows = [(1, 0, 2, -1)] * 3 + [(1, 1, 2, 18)] * 3 + [(0, 0, 2, 3)]
    found = meta_estimates(episodes_of(rows), config(), suite)
    assert found["estimators"]["metaworld"]["success"]["a"] == pytest.approx(2 / 3)
    assert found["train_tasks"]["mtrl"]["success"]["a"] == 1.0


def test_the_curve_and_the_records_keep_adaptations_and_splits_apart() -> None:
    suite = Suite(("a",), 3, 2, test_task_names=("b",))
    rows = [(task, goal, adapted, adapted - 1) for task in (0, 1) for goal in (0, 1) for adapted in (0, 2)]
    result = result_of(episodes_of(rows), config(), suite)
    assert result["curve"] == {"test": {"0": 0.0, "2": 1.0}, "train": {"0": 0.0, "2": 1.0}}
    assert [(one["task"], one["goal"], one["adapted"]) for one in result["episodes"]] == [("b", 0, 2), ("b", 1, 2)]
    others = [(one["task"], one["adapted"]) for one in result["other_episodes"]]
    assert others == [("train/a", 0), ("train/a", 2), ("train/a", 0), ("train/a", 2), ("b", 0), ("b", 0)]


def test_sampled_tasks_are_of_every_class_with_goals_of_their_own() -> None:
    sampler = TaskSampler(config(), build_suite(config()))
    first, second = sampler.sample(), sampler.sample()
    assert [one.task_id for one in first] == [0, 1, 2, 3] * 2
    for task in range(4):
        goals = [one.goals[0] for one in first if one.task_id == task]
        assert len(set(goals)) == 2
    assert first != second
    again = TaskSampler(config(), build_suite(config()))
    again.sample()
    state = again.state_dict()
    assert again.sample() == second
    again.load_state_dict(state)
    assert again.sample() == second


def test_environments_are_as_many_as_sampled_tasks_and_of_the_same_classes() -> None:
    assert [one.task_id for one in training_assignments(config())] == [
        one.task_id for one in TaskSampler(config(), build_suite(config())).sample()
    ]


@pytest.mark.parametrize(("visible", "expected"), [(None, False), (True, True), (False, False)])
def test_goals_are_hidden_unless_they_are_to_be_seen(visible: bool | None, *, expected: bool) -> None:
    seen = dataclasses.replace(config().env, goal_visible=visible)
    settings = dataclasses.replace(config(), env=seen)
    envs = build_envs(settings, training_assignments(settings), terminate_on_success=False)
    obs, _ = envs.reset(seed=1)
    assert bool((obs[:, 4:] != 0).any()) == expected
    envs.close()


def test_a_curve_beyond_all_adaptation_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"meta.curve: \[3\] holds numbers outside \[0, 1\]"):
        MetaConfig(adaptation_episodes=2, curve=(3,))


def test_gaussians_are_those_of_torch() -> None:
    generator = torch.Generator().manual_seed(1)
    mean, new_mean, sample = torch.randn(3, 5, 2, generator=generator, dtype=torch.float64)
    log_std, new_log_std = torch.randn(2, 1, 2, generator=generator, dtype=torch.float64)
    old, new = (
        torch.distributions.Independent(torch.distributions.Normal(m, s.exp().expand(5, 2)), 1)
        for m, s in ((mean, log_std), (new_mean, new_log_std))
    )
    torch.testing.assert_close(log_prob(sample, mean, log_std), old.log_prob(sample))
    torch.testing.assert_close(
        kl_divergence(mean, log_std, new_mean, new_log_std), torch.distributions.kl_divergence(old, new)
    )
    torch.testing.assert_close(entropy(log_std).expand(5), old.entropy())

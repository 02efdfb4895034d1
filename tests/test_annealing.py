"""Learning rates that fall to nothing at the end of a run."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest
import torch
from builders import tiny_config

from mtrl.config import EnvConfig, MetaConfig, NetworkConfig, OnPolicyConfig, PpoConfig, RunConfig
from mtrl.learners.annealing import ppo_lr
from mtrl.learners.build import build_learner
from mtrl.learners.protocol import Learner
from mtrl.rollout.build import build_collector, build_suite

pytestmark = pytest.mark.usefixtures("one_torch_thread")
LR = 3.2e-3
ITERATIONS = 4


def config(algorithm: str, **changes: Any) -> RunConfig:
    """Returns a run of an algorithm that ends after `ITERATIONS`."""
    meta = algorithm in ("rl2_ppo", "maml_ppo")
    benchmark = "toy-ml" if meta else "toy"
    made = tiny_config(
        algorithm=algorithm,
        env=EnvConfig(benchmark=benchmark, max_episode_steps=8, num_goals=4),
        network=NetworkConfig(architecture="one_hot", actor_widths=(8,), activation="tanh"),
        on_policy=OnPolicyConfig(episodes=2),
        meta=MetaConfig(batch_size=4, episodes=2),
        ppo=PpoConfig(**{"lr": LR, "epochs": 2, "minibatches": 2, "anneal_lr": True, **changes}),
    )
    slots = 4 if meta else build_suite(made).num_tasks
    phases = 2 if algorithm == "maml_ppo" else 1
    return dataclasses.replace(made, total_env_steps=ITERATIONS * slots * phases * 2 * 8)


@pytest.fixture
def rates(monkeypatch: pytest.MonkeyPatch) -> dict[int, list[float]]:
    """Notes the learning rate of each step of each optimizer."""
    noted: dict[int, list[float]] = {}
    step = torch.optim.Adam.step

    def noting(optimizer: torch.optim.Adam, *arguments: Any) -> Any:
        noted.setdefault(id(optimizer), []).append(optimizer.param_groups[0]["lr"])
        return step(optimizer, *arguments)

    monkeypatch.setattr(torch.optim.Adam, "step", noting)
    return noted


def learned(settings: RunConfig, learner: Learner, iterations: int) -> None:
    collector = build_collector(settings, build_suite(settings))
    for _ in range(iterations):
        while not learner.behind():
            learner.receive([collector.collect(learner.request())])
        learner.update()
    collector.close()


@pytest.mark.parametrize("algorithm", ["mtppo", "te_ppo", "maml_ppo", "rl2_ppo"])
def test_learning_rates_fall_with_the_environment_steps_of_the_run(algorithm, rates):
    settings = config(algorithm)
    learner = build_learner(settings, build_suite(settings), torch.device("cpu"))
    learned(settings, learner, 2)
    resumed = build_learner(settings, build_suite(settings), torch.device("cpu"))
    resumed.load_state_dict(learner.state_dict())
    learned(settings, resumed, ITERATIONS - 2)
    assert resumed.env_steps == settings.total_env_steps
    annealed = [found for found in rates.values() if found[0] != settings.te_ppo.inference_lr or algorithm != "te_ppo"]
    steps = len(annealed[0]) // 2
    expected = [LR * share for share in (1.0, 0.75, 0.5, 0.25)]
    assert annealed == [
        [pytest.approx(rate) for rate in expected[:2] for _ in range(steps)],
        [pytest.approx(rate) for rate in expected[2:] for _ in range(steps)],
    ]


@pytest.mark.parametrize("algorithm", ["mtppo", "rl2_ppo"])
def test_learning_rates_stay_unless_it_is_asked_for(algorithm, rates):
    settings = config(algorithm, anneal_lr=False)
    learned(settings, build_learner(settings, build_suite(settings), torch.device("cpu")), 2)
    assert [set(found) for found in rates.values()] == [{LR}]


def test_a_run_that_goes_on_behind_its_end_does_not_learn_backwards():
    settings = config("rl2_ppo")
    assert ppo_lr(settings, settings.total_env_steps) == 0.0
    assert ppo_lr(settings, 2 * settings.total_env_steps) == 0.0

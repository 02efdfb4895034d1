"""MAML-TRPO against finite differences, explicit Hessians and loops over tasks; what it learns on the toy suite."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from builders import tiny_config
from test_resume import StopAt, assert_equal_states
from torch import Tensor

from mtrl import train as training
from mtrl.config import (
    CheckpointConfig,
    ConfigError,
    EnvConfig,
    EvalConfig,
    MamlConfig,
    MetaConfig,
    NetworkConfig,
    RunConfig,
    SurgeryConfig,
    TrpoConfig,
)
from mtrl.config_io import load_config
from mtrl.engine.local import LocalEngine
from mtrl.learners.episodes import PolicyBatch
from mtrl.learners.maml import Maml, MamlAdapter
from mtrl.learners.trust_region import flat, unflatten
from mtrl.meta_evaluation import MetaEvaluator
from mtrl.networks.build import Suite
from mtrl.networks.gaussian import kl_divergence, log_prob
from mtrl.rollout.build import build_suite

pytestmark = pytest.mark.usefixtures("one_torch_thread")
SUITE = Suite(("a", "b"), obs_dim=3, action_dim=2, test_task_names=("c",))
STEPS = 12


def config(**changes: Any) -> RunConfig:
    return tiny_config(
        algorithm="maml_trpo",
        env=EnvConfig(benchmark="toy-ml", max_episode_steps=10, num_goals=4),
        network=NetworkConfig(actor_widths=(4,), activation="tanh"),
        **{"meta": MetaConfig(batch_size=4, episodes=2, adaptation_episodes=2, test_episodes=1), **changes},
    )


def random_phase(generator: torch.Generator, num_slots: int) -> PolicyBatch:
    def normal(*size: int) -> Tensor:
        return torch.randn(num_slots, STEPS, *size, generator=generator, dtype=torch.float64)

    mask = torch.ones(num_slots, STEPS, dtype=torch.bool)
    mask[:, -2:] = torch.rand(num_slots, 2, generator=generator) < 0.5
    sample = normal(2)
    standard = torch.zeros(1, dtype=torch.float64)
    return PolicyBatch(normal(3), sample, log_prob(sample, standard, standard), normal() * mask, mask)


def learner_with_phases(**maml: Any) -> Maml:
    """A learner in float64 with random numbers and an iteration of random episodes."""
    settings = MamlConfig(**{"inner_lr": 0.3, **maml})
    made = Maml(config(maml=settings), SUITE, torch.device("cpu"))
    made.network.double()
    made.request()
    generator = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for number in made.network.numbers:
            number += 0.3 * torch.randn(number.shape, generator=generator, dtype=torch.float64)
    made._phases = [random_phase(generator, 4) for _ in range(settings.inner_steps + 1)]
    made._returns = [torch.zeros(2)] * 2
    return made


def numbers_at(learner: Maml, vector: Tensor) -> list[Tensor]:
    return list(unflatten(vector, list(learner.network.numbers)))


def meta_loss(learner: Maml, vector: Tensor) -> Tensor:
    """The surrogate after adaptation as a function of the common parameters, written down anew: one task at a time."""
    total = torch.zeros((), dtype=torch.float64)
    for slot in range(4):
        numbers = numbers_at(learner, vector)
        only = slice(slot, slot + 1)
        for phase in learner._phases[:-1]:
            theirs = phase.slots(only)
            found = log_prob(theirs.sample, *learner.network(theirs.obs, numbers))
            weight = found if learner._config.maml.inner_loss == "log_prob" else (found - theirs.log_prob).exp()
            loss = -(weight * theirs.advantage)[theirs.mask].mean()
            slopes = torch.autograd.grad(loss, numbers, create_graph=True)
            numbers = [n - learner._config.maml.inner_lr * slope for n, slope in zip(numbers, slopes, strict=True)]
        theirs = learner._phases[-1].slots(only)
        ratio = (log_prob(theirs.sample, *learner.network(theirs.obs, numbers)) - theirs.log_prob).exp()
        total = total - (ratio * theirs.advantage)[theirs.mask].mean() / 4
    return total


def finite_differences(learner: Maml, vector: Tensor, width: float = 1e-5) -> Tensor:
    slopes = []
    for place in range(len(vector)):
        moved = [
            vector.clone().index_add_(0, torch.tensor([place]), torch.tensor([sign * width]).double())
            for sign in (1, -1)
        ]
        up, down = (meta_loss(learner, m.requires_grad_()).detach() for m in moved)
        slopes.append((up - down) / (2 * width))
    return torch.stack(slopes)


def gradient_of(learner: Maml) -> tuple[Tensor, Tensor]:
    """Returns the common parameters as a vector and the learner's gradient there."""
    numbers = list(learner.network.numbers)
    found = learner._gradient(numbers, learner._phases[:-1], learner._phases[-1])
    return flat(numbers).detach(), found.double()


@pytest.mark.parametrize("inner_loss", ["log_prob", "ratio"])
@pytest.mark.parametrize("inner_steps", [1, 2])
def test_meta_gradient_equals_finite_differences(inner_loss: str, inner_steps: int) -> None:
    learner = learner_with_phases(inner_loss=inner_loss, inner_steps=inner_steps)
    vector, found = gradient_of(learner)
    torch.testing.assert_close(found, finite_differences(learner, vector), rtol=1e-5, atol=1e-7)


def test_first_order_leaves_out_the_derivative_of_adaptation() -> None:
    full, cut = (gradient_of(learner_with_phases(first_order=first_order))[1] for first_order in (False, True))
    assert (full - cut).norm() > 0.05 * full.norm()


@pytest.mark.parametrize("tasks_per_chunk", [2, 5])
def test_chunks_change_nothing_but_memory(tasks_per_chunk: int) -> None:
    one, other = (learner_with_phases(tasks_per_chunk=size) for size in (1, tasks_per_chunk))
    torch.testing.assert_close(gradient_of(one)[1], gradient_of(other)[1])


@pytest.mark.parametrize("inner_loss", ["log_prob", "ratio"])
def test_fisher_product_equals_the_hessian_of_the_divergence_through_adaptation(inner_loss: str) -> None:
    learner = learner_with_phases(inner_loss=inner_loss)
    numbers = list(learner.network.numbers)
    before, after = learner._phases[:-1], learner._phases[-1]
    old = learner._acting(numbers, before, after)

    def divergence(vector: Tensor) -> Tensor:
        total = torch.zeros((), dtype=torch.float64)
        for _, chosen in learner._chunks():
            adapted = learner.adaptation(
                numbers_at(learner, vector), [phase.slots(chosen) for phase in before], create_graph=True
            )
            theirs = after.slots(chosen)
            kl = kl_divergence(*old[chosen.start], *learner.network(theirs.obs, adapted))
            total = total + sum(row[mask].mean() for row, mask in zip(kl, theirs.mask, strict=True)) / 4
        return total

    hessian = torch.autograd.functional.hessian(divergence, flat(numbers).detach())
    vector = torch.randn(len(hessian), generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    found = learner._kl_hessian_product(numbers, before, after, old, vector)
    torch.testing.assert_close(found, hessian @ vector, rtol=1e-8, atol=1e-10)


def test_surgery_sees_one_gradient_per_task_class(monkeypatch: pytest.MonkeyPatch) -> None:
    learner = learner_with_phases()
    seen = []
    surgery = learner._surgery
    monkeypatch.setattr(learner, "_surgery", lambda gram, orders: seen.append(gram) or surgery(gram, orders))
    _, plain = gradient_of(learner)
    assert seen[0].shape == (1, 2, 2)
    # the mean over classes of the classes' gradients is the gradient of the mean over all sampled tasks
    by_class = []
    for task in range(2):
        only = dataclasses.replace(learner._config, surgery=SurgeryConfig())
        weights = torch.zeros(1, 2, dtype=torch.float64)
        weights[0, task] = 1.0
        monkeypatch.setattr(learner, "_config", only)
        monkeypatch.setattr(learner, "_surgery", lambda gram, orders, weights=weights: weights)
        by_class.append(gradient_of(learner)[1])
    torch.testing.assert_close(plain, sum(by_class) / 2)
    assert float(seen[0][0, 0, 1]) == pytest.approx(float(by_class[0] @ by_class[1]), rel=1e-6)


def test_a_step_improves_the_surrogate_and_keeps_the_divergence_small() -> None:
    settings = config(trpo=TrpoConfig(max_kl=0.02))
    engine = LocalEngine(settings, build_suite(settings))
    accepted = 0
    for _ in range(5):
        before = engine.learner.gradient_steps
        while engine.learner.gradient_steps == before:
            progress = engine.advance(engine.learner.env_steps + 1, lambda: False)
        values = {name: float(value.mean()) for name, value in progress.mean_values().items()}
        assert values["train/kl"] <= 0.02
        assert values["train/surrogate_gain"] >= 0.0
        accepted += values["train/step_accepted"]
    assert accepted >= 3
    engine.close()


def test_adapted_policies_act_in_their_own_environments() -> None:
    settings = config(maml=MamlConfig(inner_lr=5.0))
    engine = LocalEngine(settings, build_suite(settings))
    learner = engine.learner
    assert isinstance(learner, Maml)
    blocks = [engine._collector.collect(learner.request())]
    assert sorted({(task, slot) for task, slot in zip(blocks[0].task_id[0], blocks[0].slot[0], strict=True)}) == [
        (0, 0), (1, 1), (2, 2), (3, 3),
    ]  # fmt: skip
    learner.receive(blocks)
    request = learner.request()
    block = engine._collector.collect(request)
    numbers = [torch.from_numpy(array) for array in request.weights.values()]
    assert numbers[0].shape[0] == 4
    assert not torch.equal(numbers[0][0], numbers[0][1])
    for env, slot in enumerate(block.slot[0]):
        mean, log_std = learner.network(
            torch.from_numpy(block.obs[:, env]).unsqueeze(0), [number[slot : slot + 1] for number in numbers]
        )
        expected = log_prob(torch.from_numpy(block.extras["sample"][:, env]), mean[0], log_std[0])
        np.testing.assert_allclose(block.extras["log_prob"][:, env], expected.detach(), rtol=1e-4, atol=1e-4)
    engine.close()


def test_the_adapter_adapts_as_the_learner_does() -> None:
    settings = config(maml=MamlConfig(inner_lr=2.0))
    engine = LocalEngine(settings, build_suite(settings))
    learner = engine.learner
    block = engine._collector.collect(learner.request())
    learner.receive([block])
    adapter = MamlAdapter(settings, build_suite(settings))
    weights = adapter.begin(learner.policy_weights(), 4)
    assert adapter.adapt() is weights  # nothing was seen yet
    assert adapter.observe(block) is weights
    for name, expected in learner.request().weights.items():
        np.testing.assert_array_equal(adapter.adapt()[name], expected)
    engine.close()


def test_evaluation_runs_every_goal_of_both_splits_after_its_adaptation() -> None:
    settings = config(meta=MetaConfig(batch_size=4, episodes=2, adaptation_episodes=3, test_episodes=2, curve=(0, 1)))
    suite = build_suite(settings)
    weights = Maml(settings, suite, torch.device("cpu")).policy_weights()
    evaluator = MetaEvaluator(settings, suite)
    episodes = evaluator.run(weights, 3)
    found = sorted(zip(episodes.task_id.tolist(), episodes.goal_id.tolist(), episodes.adapted.tolist(), strict=True))
    assert found == sorted(
        (task, goal, adapted) for task in range(6) for goal in range(3) for adapted in (0, 1, 3) for _ in range(2)
    )
    again = evaluator.run(weights, 3)
    np.testing.assert_array_equal(again.returns, episodes.returns)
    evaluator.close()


@pytest.mark.parametrize("stops", [(1,), (170, 250)], ids=str)
def test_a_stopped_and_resumed_run_equals_the_uninterrupted_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, stops: tuple[int, ...]
) -> None:
    monkeypatch.setattr(training._Stop, "pause", lambda self: True)  # also between the phases of an iteration
    settings = config(
        total_env_steps=400,
        eval=EvalConfig(every_env_steps=200, goals=2, final_goals=2),
        checkpoint=CheckpointConfig(every_env_steps=100),
    )
    runs = []
    for name, ends in (("whole", ()), ("parts", stops)):
        here = dataclasses.replace(settings, runs_dir=str(tmp_path / name))
        run = training.train(here, StopAt(ends[0] if ends else None)).run
        for following in [*ends[1:], None] if ends else ():
            training.resume(run, [], StopAt(following))
        runs.append(run)
    assert_equal_states(*runs)


@pytest.mark.ray
@pytest.mark.parametrize("num_env_runners", [0, 1])
def test_weights_equal_those_of_the_local_engine(num_env_runners: int) -> None:
    pytest.importorskip("ray")
    from mtrl.config import RllibConfig
    from mtrl.engine.rllib.engine import RllibEngine

    rllib = RllibConfig(num_env_runners=num_env_runners, num_cpus_per_env_runner=0.5, object_store_bytes=80_000_000)
    engines = [LocalEngine(config(), build_suite(config()))]
    engines.append(RllibEngine(config(engine="rllib", rllib=rllib), build_suite(config())))  # type: ignore[arg-type] # as good
    found = []
    for engine in engines:
        engine.advance(600, lambda: False)
        episodes = engine.evaluate(2)
        found.append((engine.learner.state_dict()["network"], episodes.returns))
        engine.close()
    assert engines[0].learner.gradient_steps == engines[1].learner.gradient_steps >= 3
    for name, weights in found[0][0].items():
        assert torch.equal(weights, found[1][0][name])
    np.testing.assert_array_equal(found[0][1], found[1][1])


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"meta": MetaConfig(batch_size=6)},
            "meta.batch_size: 6 sampled tasks cannot be shared evenly by the 4 task classes of toy-ml; take a multiple",
        ),
        ({"env": EnvConfig(benchmark="toy")}, "algorithm: maml_trpo adapts to held-out tasks, and toy holds none out"),
        ({"env": EnvConfig(benchmark="ML25")}, "env.benchmark: ML25 tests on basketball-v3, which it also trains on"),
    ],
)
def test_what_does_not_suit_is_refused_in_one_line(changes: dict[str, Any], message: str) -> None:
    settings = dataclasses.replace(config(), **changes)
    with pytest.raises(ConfigError) as refused:
        LocalEngine(settings, build_suite(settings))
    assert str(refused.value).startswith(message)
    assert "\n" not in str(refused.value)


def test_old_weights_are_refused() -> None:
    settings = config(collection="async")
    with pytest.raises(ConfigError, match="async collects with old weights"):
        LocalEngine(settings, build_suite(settings))


@pytest.mark.slow
@pytest.mark.parametrize("adapts", [True, False])
def test_adaptation_pays_on_held_out_goals(tmp_path: Path, *, adapts: bool) -> None:
    """The mean return after adaptation is 1.5 times that before at least; with the adaptation cut it is not."""
    row = Path(__file__).parents[1] / "configs" / "toy" / "maml_trpo.yaml"
    cut = [] if adapts else ["maml.inner_lr=1e-9"]
    settings = load_config(row, [f"runs_dir={tmp_path}", "total_env_steps=180_000", "eval.every_env_steps=0", *cut])
    run = training.train(settings, StopAt(None)).run
    (result,) = (json.loads(path.read_text()) for path in (run / "evaluations").iterdir())
    returns = {0: [], 10: []}  # by episodes of adaptation
    for episode in result["episodes"] + result["other_episodes"]:
        if not episode["task"].startswith("train/") and episode["adapted"] in returns:
            returns[episode["adapted"]].append(episode["return"])
    before, after = np.mean(returns[0]), np.mean(returns[10])
    print(f"return {before:.1f} before adaptation, {after:.1f} after it")
    assert (after > 1.5 * before) == adapts

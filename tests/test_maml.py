"""MAML-TRPO against finite differences, explicit Hessians and loops over tasks; what it learns on the toy suite."""

from __future__ import annotations

import dataclasses
import json
import multiprocessing
import os
from collections.abc import Callable, Sequence
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
    OnPolicyConfig,
    PpoConfig,
    RunConfig,
    SurgeryConfig,
    TrpoConfig,
)
from mtrl.config_io import load_config
from mtrl.data import Array
from mtrl.engine.local import LocalEngine
from mtrl.learners import outer_step
from mtrl.learners.adaptation import Distribution
from mtrl.learners.episodes import PolicyBatch
from mtrl.learners.maml import Maml, MamlAdapter, maml_ppo, maml_trpo
from mtrl.learners.network_step import NetworkStep
from mtrl.learners.outer_step import ClippedSteps, TrustRegionStep
from mtrl.learners.policies import GaussianPolicy
from mtrl.learners.protocol import Mode, PolicyStep, Previous
from mtrl.learners.trust_region import Outcome, flat, trust_region_step, unflatten
from mtrl.meta_evaluation import MetaEvaluator
from mtrl.networks.build import Suite, build_gaussian
from mtrl.networks.gaussian import kl_divergence, log_prob
from mtrl.rollout.build import build_collector, build_suite, shares, training_assignments

pytestmark = pytest.mark.usefixtures("one_torch_thread")
SUITE = Suite(("a", "b"), obs_dim=3, action_dim=2, test_task_names=("c",))
STEPS = 12


def config(**changes: Any) -> RunConfig:
    env = EnvConfig(benchmark="toy-ml", max_episode_steps=10, num_goals=4)
    meta = MetaConfig(batch_size=4, episodes=2, adaptation_episodes=2, test_episodes=1)
    network = NetworkConfig(actor_widths=(4,), activation="tanh")
    return tiny_config(**{"algorithm": "maml_trpo", "network": network, "meta": meta, "env": env, **changes})


def random_phase(generator: torch.Generator, num_slots: int) -> PolicyBatch:
    def normal(*size: int) -> Tensor:
        return torch.randn(num_slots, STEPS, *size, generator=generator, dtype=torch.float64)

    mask = torch.ones(num_slots, STEPS, dtype=torch.bool)
    mask[:, -2:] = torch.rand(num_slots, 2, generator=generator) < 0.5
    sample = normal(2)
    standard = torch.zeros(1, dtype=torch.float64)
    return PolicyBatch(normal(3), sample, log_prob(sample, standard, standard), normal() * mask, mask)


def learner_with_phases(
    build: Callable[..., Maml] = maml_trpo, ppo: PpoConfig | None = None, activation: str = "tanh", **maml: Any
) -> Maml:
    """A learner in float64 with random numbers and an iteration of random episodes."""
    settings = MamlConfig(**{"inner_lr": 0.3, **maml})
    network = NetworkConfig(actor_widths=(4,), activation=activation)
    made = build(config(maml=settings, ppo=ppo or PpoConfig(), network=network), SUITE, torch.device("cpu"))
    made.network.double()
    for log_std in made.initial.log_stds:
        log_std.data = log_std.data.double()
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
    return flat(numbers).detach(), learner.combined(trust_region(learner).gradients(learner.policies(), numbers))


def trust_region(learner: Maml) -> TrustRegionStep:
    assert isinstance(learner.outer_step, TrustRegionStep)
    return learner.outer_step


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
@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"inner_steps": 2},
        {"tasks_per_chunk": 5},
        {"first_order": True},
        {"meta_regularization": 1e-3},
        {"activation": "relu"},
    ],
    ids=lambda settings: "-".join(settings),
)
def test_fisher_product_equals_the_hessian_of_the_divergence_through_adaptation(
    inner_loss: str, settings: dict[str, Any]
) -> None:
    learner = learner_with_phases(inner_loss=inner_loss, **settings)
    parameters = learner.initial.parameters
    before, after, policies = learner._phases[:-1], learner._phases[-1], learner.policies()
    old = {chosen.start: policies.after(parameters, chosen, create_graph=False) for _, chosen in policies.chunks()}
    old = {first: Distribution(*(tensor.detach() for tensor in acted)) for first, acted in old.items()}

    def divergence(vector: Tensor) -> Tensor:
        total = torch.zeros((), dtype=torch.float64)
        for _, chosen in policies.chunks():
            numbers = learner.initial.of(unflatten(vector, parameters), chosen)
            adapted = learner.adaptation(numbers, [phase.slots(chosen) for phase in before], create_graph=True)
            theirs = after.slots(chosen)
            kl = kl_divergence(*old[chosen.start], *learner.network(theirs.obs, adapted))
            total = total + sum(row[mask].mean() for row, mask in zip(kl, theirs.mask, strict=True)) / 4
        return total

    hessian = torch.autograd.functional.hessian(divergence, flat(parameters).detach())
    vector = torch.randn(len(hessian), generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    found = policies.fisher_product(parameters, vector)
    assert (hessian @ vector).abs().max() > 1e-2
    torch.testing.assert_close(found, hessian @ vector, rtol=1e-8, atol=1e-10)


def promp_loss(learner: Maml, vector: Tensor, old: Sequence[Tensor], clip: float, eta: float) -> Tensor:
    """ProMP's loss as a function of the common parameters, written down anew; `old` are those that acted."""
    total = torch.zeros((), dtype=torch.float64)
    for slot in range(4):
        *before, after = (phase.slots(slice(slot, slot + 1)) for phase in learner._phases)
        numbers, acted, divergences = numbers_at(learner, vector), list(old), []
        for phase in before:
            kl = kl_divergence(*learner.network(phase.obs, acted), *learner.network(phase.obs, numbers))
            divergences.append(kl[phase.mask].mean())
            moved = []
            for current in (numbers, acted):
                ratio = (log_prob(phase.sample, *learner.network(phase.obs, current)) - phase.log_prob).exp()
                loss = -(ratio * phase.advantage)[phase.mask].mean()
                slopes = torch.autograd.grad(loss, current, create_graph=True)
                rate = learner._config.maml.inner_lr
                moved.append([n - rate * slope for n, slope in zip(current, slopes, strict=True)])
            numbers, acted = moved[0], [number.detach().requires_grad_() for number in moved[1]]
        ratio = (log_prob(after.sample, *learner.network(after.obs, numbers)) - after.log_prob).exp()
        better = torch.minimum(ratio * after.advantage, ratio.clamp(1 - clip, 1 + clip) * after.advantage)
        total = total + (eta * torch.stack(divergences).mean() - better[after.mask].mean()) / 4
    return total


@pytest.mark.parametrize(("inner_steps", "tasks_per_chunk"), [(1, 1), (2, 1), (1, 2)])
def test_clipped_steps_descend_the_loss_of_promp(inner_steps: int, tasks_per_chunk: int) -> None:
    settings = PpoConfig(clip=0.3, entropy_coefficient=0.0)
    maml = {"inner_loss": "ratio", "inner_kl_weight": 0.7, "inner_steps": inner_steps}
    learner = learner_with_phases(maml_ppo, settings, **maml, tasks_per_chunk=tasks_per_chunk)
    step, policies = learner.outer_step, learner.policies()
    assert isinstance(step, ClippedSteps)
    numbers = list(learner.network.numbers)
    old = {
        chosen.start: [
            Distribution(*(t.detach() for t in one)) for one in policies.all_phases(numbers, chosen, create_graph=False)
        ]
        for _, chosen in policies.chunks()
    }
    acted = [number.detach().clone().requires_grad_() for number in numbers]
    with torch.no_grad():  # away from the policies that acted, where the divergence has a slope and ratios are clipped
        for number in numbers:
            number += 0.2 * torch.randn(number.shape, generator=torch.Generator().manual_seed(8), dtype=torch.float64)
    vector = flat(numbers).detach().requires_grad_()
    (expected,) = torch.autograd.grad(promp_loss(learner, vector, acted, 0.3, 0.7), vector)
    found = policies.gradients(numbers, lambda chosen: step.losses(policies, old, chosen)).mean(dim=0)
    torch.testing.assert_close(found, expected)


def test_clipped_steps_end_where_the_divergence_allows() -> None:
    counts = []
    for limit in (None, 1e-9):
        settings = PpoConfig(lr=1e-3, epochs=4, target_kl=limit)
        learner = learner_with_phases(maml_ppo, settings, inner_loss="ratio")
        found = learner.outer_step(learner.policies(), learner.combined, 0)
        counts.append(int(learner.outer_step.state_dict()["000"]["step"]))
        assert found.num_steps == found.values["train/passes"] == counts[-1]
        assert found.values["train/surrogate_gain"] > 0.0
        assert found.values["train/kl"] > 0.0
        assert found.values["train/kl_before_adaptation"] > 0.0
    assert counts == [4, 1]
    learner = learner_with_phases(maml_ppo, PpoConfig(epochs=4), inner_loss="ratio")
    metrics = learner.update()
    assert metrics is not None
    assert learner.gradient_steps == 4
    assert metrics.num_samples == 4 * sum(int(phase.mask.sum()) for phase in learner_with_phases()._phases)


def weight_divergence(mean: Tensor, log_std: Tensor) -> Tensor:
    normal, prior = torch.distributions.Normal(mean, log_std.exp()), torch.distributions.Normal(0.0, 1.0)
    return torch.distributions.kl_divergence(normal, prior).sum()


@pytest.mark.parametrize("build", [maml_trpo, maml_ppo])
def test_meta_regularised_gradients_are_those_of_draws_plus_the_divergence(
    monkeypatch: pytest.MonkeyPatch, build: Callable[..., Maml]
) -> None:
    beta = 0.02
    maml = {"meta_regularization": beta, "initial_weight_std": 0.2, "inner_loss": "ratio", "tasks_per_chunk": 2}
    maml |= {"inner_kl_weight": 0.0}
    settings = PpoConfig(epochs=1, clip=1e9, entropy_coefficient=0.0, max_grad_norm=None)
    learner = learner_with_phases(build, settings, **maml)
    initial = learner.initial
    parameters = initial.parameters
    initial_means = [mean.detach().clone() for mean in initial.means]
    draws = list(initial._noise)
    assert [noise.shape[0] for noise in draws] == [4] * len(initial.means)

    def loss(vector: Tensor) -> Tensor:
        """Surrogate without clipping at the policies that acted, one task at a time, and the divergence by torch."""
        every = unflatten(vector, parameters)
        means, log_stds = every[: len(draws)], every[len(draws) :]
        total = torch.zeros((), dtype=torch.float64)
        for slot in range(4):
            only = slice(slot, slot + 1)
            numbers = [m + s.exp() * noise[only] for m, s, noise in zip(means, log_stds, draws, strict=True)]
            before, after = (phase.slots(only) for phase in learner._phases)
            ratio = (log_prob(before.sample, *learner.network(before.obs, numbers)) - before.log_prob).exp()
            slopes = torch.autograd.grad(-(ratio * before.advantage)[before.mask].mean(), numbers, create_graph=True)
            numbers = [n - 0.3 * slope for n, slope in zip(numbers, slopes, strict=True)]
            ratio = (log_prob(after.sample, *learner.network(after.obs, numbers)) - after.log_prob).exp()
            total = total - (ratio * after.advantage)[after.mask].mean() / 4
        for mean, log_std in zip(means, log_stds, strict=True):
            total = total + beta * weight_divergence(mean, log_std)
        return total

    vector = flat(parameters).detach().requires_grad_()
    whole = loss(vector)
    (expected,) = torch.autograd.grad(whole, vector)
    seen: list[Tensor] = []
    spread = [log_std.detach().clone() for log_std in initial.log_stds]
    if build is maml_trpo:

        def first_look(gradient: Tensor, fisher: Any, evaluate: Any, **settings: Any) -> Outcome:
            seen.append(gradient)
            torch.testing.assert_close(evaluate(torch.zeros_like(gradient))[0], whole.detach())
            return trust_region_step(gradient, fisher, evaluate, **settings)

        monkeypatch.setattr(outer_step, "trust_region_step", first_look)
    else:
        apply = NetworkStep.apply

        def first_step(self: NetworkStep, gradients: Sequence[Tensor]) -> Tensor:
            seen.append(flat(gradients))
            return apply(self, gradients)

        monkeypatch.setattr(NetworkStep, "apply", first_step)
    metrics = learner.update()
    assert metrics is not None
    torch.testing.assert_close(seen[0], expected)
    divergence = metrics.values["train/weight_penalty"]
    assert divergence == pytest.approx(initial.own_penalty())
    assert divergence > 0.0
    surrogate = float(whole.detach()) - beta * sum(
        float(weight_divergence(*pair)) for pair in zip(initial_means, spread, strict=True)
    )
    assert float(metrics.values["train/loss/surrogate"]) == pytest.approx(surrogate, abs=1e-6)
    assert all(not torch.equal(old, new) for old, new in zip(spread, initial.log_stds, strict=True))


def test_meta_regularised_tasks_begin_with_draws_and_meta_test_with_the_means() -> None:
    settings = config(maml=MamlConfig(meta_regularization=1e-3, initial_weight_std=0.5, inner_lr=2.0))
    engine = LocalEngine(settings, build_suite(settings))
    learner = engine.learner
    assert isinstance(learner, Maml)
    request = learner.request()
    name = next(iter(request.weights))
    mean = learner.policy_weights()[name]
    assert request.weights[name].shape == (4, *mean.shape[1:])
    assert 0.3 < np.std(request.weights[name] - mean) < 0.7
    block = engine._collector.collect(request)
    learner.receive([block])
    adapted = learner.request().weights[name]
    assert 0.0 < np.abs(adapted - request.weights[name]).max() < 0.5 * np.abs(adapted - mean).max()
    learner.receive([engine._collector.collect(learner.request())])
    learner.update()
    following = learner.request().weights[name] - learner.policy_weights()[name]
    assert np.abs(following - (request.weights[name] - mean)).max() > 0.1  # new draws
    engine.close()


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


@pytest.mark.parametrize("copies", [1, 2])
def test_adapted_policies_act_in_their_own_environments(copies: int) -> None:
    settings = config(maml=MamlConfig(inner_lr=5.0))
    settings = dataclasses.replace(settings, env=dataclasses.replace(settings.env, copies=copies))
    engine = LocalEngine(settings, build_suite(settings))
    learner = engine.learner
    assert isinstance(learner, Maml)
    blocks = [engine._collector.collect(learner.request())]
    slots_of_tasks = sorted(zip(blocks[0].task_id[0], blocks[0].slot[0], strict=True))
    assert slots_of_tasks == [(slot, slot) for slot in range(4) for _ in range(copies)]
    assert (
        blocks[0].env_steps() == 4 * 2 * 10
    )  # two episodes of each sampled task, however many environments share them
    goals = {(slot, goal) for slot, goal in zip(blocks[0].slot[0], blocks[0].goal_id[0], strict=True)}
    assert len(goals) == 4  # one for each sampled task
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
    learner.receive([block])
    assert learner.update() is not None
    engine.close()


def test_two_collectors_share_the_environments_of_a_sampled_task() -> None:
    settings = config(env=EnvConfig(benchmark="toy-ml", max_episode_steps=10, num_goals=4, copies=2))
    suite = build_suite(settings)
    learner = maml_trpo(settings, suite, torch.device("cpu"))
    parts = shares(settings, training_assignments(settings), 2)
    assert sorted(parts[0] + parts[1]) == list(range(8))
    collectors = [build_collector(settings, suite, worker, 2) for worker in range(2)]
    for _ in range(2):
        request = learner.request()
        assert request.assignments is not None
        assert request.slots is not None
        blocks = [
            collector.collect(
                dataclasses.replace(
                    request,
                    assignments=tuple(request.assignments[env] for env in mine),
                    slots=tuple(request.slots[env] for env in mine),
                )
            )
            for collector, mine in zip(collectors, parts, strict=True)
        ]
        learner.receive(blocks)
    for phase in learner._phases:
        assert phase.mask.sum(dim=1).tolist() == [2 * 10] * 4
    assert learner.update() is not None
    for collector in collectors:
        collector.close()


def act_in_slots(
    settings: RunConfig, num_slots: int, *groupings: list[int]
) -> tuple[list[PolicyStep], Tensor, list[Tensor]]:
    """Acts in each of some slots of environments, with random numbers; returns steps, obs and numbers [slot, ...]."""
    suite, draws = build_suite(settings), torch.Generator().manual_seed(0)
    policy = GaussianPolicy(settings, suite)
    network = build_gaussian(settings.network, settings.on_policy, suite, torch.Generator())
    shapes = {name: array.shape[1:] for name, array in network.state_dict().items()}
    numbers = {name: torch.randn((num_slots, *shape), generator=draws) for name, shape in shapes.items()}
    policy.load({name: number.numpy() for name, number in numbers.items()})
    num_envs = len(groupings[0])
    obs = torch.randn(num_envs, suite.obs_dim, generator=draws)
    previous = Previous(torch.zeros(num_envs, suite.action_dim), torch.zeros(num_envs), torch.zeros(num_envs))
    steps = [policy.act(obs, previous, None, torch.tensor(slots), Mode.EXPLORE, draws) for slots in groupings]
    return steps, obs, list(numbers.values())


@pytest.mark.parametrize("slots", [[2, 0, 2, 2], [3, 1], [1, 1, 0, 0, 3, 3, 2, 2], [0], [0] * 130])
def test_environments_act_with_the_numbers_of_their_slot_in_whatever_order(slots: list[int]) -> None:
    settings = config(on_policy=OnPolicyConfig(min_std=0.8))
    groupings = [slots, slots[::-1], slots]
    found, obs, numbers = act_in_slots(settings, max(slots) + 1, *groupings)
    network = maml_trpo(settings, build_suite(settings), torch.device("cpu")).network
    for step, grouping in zip(found, groupings, strict=True):
        for env, slot in enumerate(grouping):
            mean, log_std = network(obs[env].view(1, 1, -1), [number[slot : slot + 1] for number in numbers])
            expected = log_prob(step.extras["sample"][env], mean[0, 0], log_std[0, 0]).detach()
            torch.testing.assert_close(step.extras["log_prob"][env], expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("num_threads", [2, 3, 8])
@pytest.mark.parametrize(
    ("num_slots", "slots"), [(6, [0, 4, 1, 5, 5, 3, 1]), (1, [0] * 130)], ids=["adapted", "shared"]
)
def test_actions_do_not_depend_on_the_number_of_threads(num_slots: int, slots: list[int], num_threads: int) -> None:
    one, several = (
        act_in_slots(config(env=dataclasses.replace(config().env, num_threads=number)), num_slots, slots)[0][0]
        for number in (1, num_threads)
    )
    torch.testing.assert_close(several.extras, one.extras, rtol=0.0, atol=0.0)


def act(policy: GaussianPolicy, obs: Tensor, slot: Tensor) -> Array:
    """Returns mean actions."""
    blank = Previous(torch.zeros(len(obs), 0), torch.zeros(len(obs)), torch.zeros(len(obs)))
    return policy.act(obs, blank, None, slot, Mode.DETERMINISTIC, torch.Generator()).action.numpy()


def test_compiled_code_gets_nothing_of_other_sizes_and_no_slot_without_weights() -> None:
    settings = config()
    suite = build_suite(settings)
    policy = GaussianPolicy(settings, suite)
    other = build_gaussian(NetworkConfig(actor_widths=(5,)), settings.on_policy, suite, torch.Generator())
    wrong = {name: number.numpy() for name, number in other.state_dict().items()}
    with pytest.raises(ValueError, match=r"numbers.0 is \[1, 5, \d+\] in the weights; here \[1, "):
        policy.load(wrong)
    with pytest.raises(
        ValueError, match=rf"obs is \[3, {suite.obs_dim + 1}\]; the policy takes \[3, {suite.obs_dim}\]"
    ):
        act(policy, torch.zeros(3, suite.obs_dim + 1), torch.zeros(3, dtype=torch.int64))
    with pytest.raises(ValueError, match=r"obs is \[3, "):
        act(policy, torch.zeros(3, suite.obs_dim), torch.zeros(4, dtype=torch.int64))
    with pytest.raises(IndexError):
        act_in_slots(settings, 2, [0, 2])
    assert act(policy, torch.zeros(0, suite.obs_dim), torch.zeros(0, dtype=torch.int64)).shape == (0, suite.action_dim)


def test_threads_may_share_a_policy(monkeypatch: pytest.MonkeyPatch) -> None:
    """One acts for a few rows while another, acting for many, has looked how its rows are grouped."""
    settings = config()
    suite = build_suite(settings)
    policy, looks = GaussianPolicy(settings, suite), torch.equal
    many, few = ((torch.ones(rows, suite.obs_dim), torch.zeros(rows, dtype=torch.int64)) for rows in (64, 3))
    expected = act(policy, *many)

    def interrupted(*tensors: Tensor) -> bool:
        monkeypatch.setattr(torch, "equal", looks)
        found = looks(*tensors)
        act(policy, *few)
        return found

    monkeypatch.setattr(torch, "equal", interrupted)
    np.testing.assert_array_equal(act(policy, *many), expected)
    assert torch.equal is looks


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork on this system")
def test_a_policy_acts_in_a_forked_process_too() -> None:
    settings = config(env=dataclasses.replace(config().env, num_threads=2))
    suite = build_suite(settings)
    policy = GaussianPolicy(settings, suite)
    obs, slot = torch.ones(64, suite.obs_dim), torch.zeros(64, dtype=torch.int64)
    expected = act(policy, obs, slot)
    child = multiprocessing.get_context("fork").Process(
        target=lambda: os._exit(int((act(policy, obs, slot) != expected).any()))
    )
    child.start()
    child.join(timeout=60)
    child.kill()
    assert child.exitcode == 0


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
    weights = maml_trpo(settings, suite, torch.device("cpu")).policy_weights()
    evaluator = MetaEvaluator(settings, suite)
    episodes = evaluator.run(weights, 3)
    found = sorted(zip(episodes.task_id.tolist(), episodes.goal_id.tolist(), episodes.adapted.tolist(), strict=True))
    assert found == sorted(
        (task, goal, adapted) for task in range(6) for goal in range(3) for adapted in (0, 1, 3) for _ in range(2)
    )
    again = evaluator.run(weights, 3)
    np.testing.assert_array_equal(again.returns, episodes.returns)
    evaluator.close()
    sampling = MetaEvaluator(
        dataclasses.replace(settings, eval=EvalConfig(deterministic=False, goals=3, final_goals=3)), suite
    )
    sampled = sampling.run(weights, 3)
    first, second = (
        [found.returns[(found.task_id == 0) & (found.goal_id == 0) & (found.adapted == 0)] for found in pair]
        for pair in ((episodes, again), (sampled, sampled))
    )
    assert first[0][0] == pytest.approx(first[0][1])  # the mean action knows no chance
    assert second[0][0] != pytest.approx(second[0][1])
    sampling.close()


@pytest.mark.parametrize("stops", [(1,), (170, 250)], ids=str)
@pytest.mark.parametrize(
    "algorithm",
    [
        {},
        {"algorithm": "maml_ppo", "maml": MamlConfig(inner_loss="ratio")},
        {"algorithm": "maml_ppo", "maml": MamlConfig(meta_regularization=1e-4)},
    ],
    ids=["trpo", "ppo", "regularised"],
)
def test_a_stopped_and_resumed_run_equals_the_uninterrupted_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, stops: tuple[int, ...], algorithm: dict[str, Any]
) -> None:
    monkeypatch.setattr(training._Stop, "pause", lambda self: True)  # also between the phases of an iteration
    settings = config(
        **algorithm,
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
        (
            {"env": EnvConfig(benchmark="toy-ml", copies=3)},
            "env.copies: 3 environments of a sampled task cannot share its meta.episodes=2 evenly",
        ),
        (
            {"algorithm": "pearl", "env": EnvConfig(benchmark="toy-ml", copies=2)},
            "env.copies: pearl has one environment for each sampled task; take 1",
        ),
        ({"env": EnvConfig(benchmark="ML25")}, "env.benchmark: ML25 tests on basketball-v3, which it also trains on"),
    ],
)
def test_what_does_not_suit_is_refused_in_one_line(changes: dict[str, Any], message: str) -> None:
    def begin() -> None:
        settings = dataclasses.replace(config(), **changes)
        LocalEngine(settings, build_suite(settings))

    with pytest.raises(ConfigError) as refused:
        begin()
    assert str(refused.value).startswith(message)
    assert "\n" not in str(refused.value)


def test_old_weights_are_refused() -> None:
    settings = config(collection="async")
    with pytest.raises(ConfigError, match="async collects with old weights"):
        LocalEngine(settings, build_suite(settings))


@pytest.mark.slow
@pytest.mark.parametrize(
    ("row", "changes", "adapts"),
    [
        ("maml_trpo", [], True),
        ("maml_ppo", [], True),
        ("maml_trpo", ["maml.inner_lr=1e-9"], False),
        ("maml_trpo", ["env.goal_visible=true"], False),  # it memorises: one policy solves all tasks
    ],
)
def test_adaptation_pays_on_held_out_goals(row: str, changes: list[str], adapts: bool, tmp_path: Path) -> None:
    """The mean return after adaptation is 1.5 times that before at least; with the adaptation cut it is not."""
    path = Path(__file__).parents[1] / "configs" / "toy" / f"{row}.yaml"
    overrides = [f"runs_dir={tmp_path}", "total_env_steps=180_000", "eval.every_env_steps=0", *changes]
    settings = load_config(path, overrides)
    run = training.train(settings, StopAt(None)).run
    (result,) = (json.loads(path.read_text()) for path in (run / "evaluations").iterdir())
    returns = {0: [], 10: []}  # by episodes of adaptation
    for episode in result["episodes"] + result["other_episodes"]:
        if not episode["task"].startswith("train/") and episode["adapted"] in returns:
            returns[episode["adapted"]].append(episode["return"])
    before, after = np.mean(returns[0]), np.mean(returns[10])
    print(f"return {before:.1f} before adaptation, {after:.1f} after it")
    assert (after > 1.5 * before) == adapts

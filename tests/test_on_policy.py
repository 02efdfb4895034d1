"""Multi-task PPO and TRPO: losses, minibatches, the trust region, surgery, padding, and runs that stop and go on."""

from __future__ import annotations

import copy
import dataclasses
import json
import math
import os
import signal
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from builders import run_in, suite, tiny_config
from torch import Tensor

import mtrl
from mtrl import train as training
from mtrl.checkpoint import load_state, newest_checkpoint
from mtrl.config import (
    META_ALGORITHMS,
    CheckpointConfig,
    ConfigError,
    EnvConfig,
    EvalConfig,
    NetworkConfig,
    OnPolicyConfig,
    PpoConfig,
    RunConfig,
    SurgeryConfig,
    TrpoConfig,
)
from mtrl.config_io import load_config
from mtrl.engine.local import LocalEngine
from mtrl.learners.build import build_learner
from mtrl.learners.episodes import PolicyBatch
from mtrl.learners.on_policy import MultiTaskOnPolicy, distribution, mean_kl
from mtrl.learners.policies import TaskGaussianPolicy
from mtrl.learners.ppo import Ppo, minibatches
from mtrl.learners.protocol import Mode, Previous
from mtrl.learners.trpo import Trpo
from mtrl.learners.trust_region import flat
from mtrl.losses.policy_gradient import clipped_ratio_loss
from mtrl.networks.build import build_task_gaussian
from mtrl.networks.gaussian import log_prob
from mtrl.networks.task_gaussian import TaskGaussian
from mtrl.rollout.build import build_collector, build_suite
from mtrl.surgery.per_task import expand_for_tasks

pytestmark = pytest.mark.usefixtures("one_torch_thread")
CPU = torch.device("cpu")
CONFIGS = Path(__file__).parent.parent / "configs"
ALGORITHMS = ("mtppo", "mttrpo")
ALL = (*ALGORITHMS, "te_ppo")
NETWORK = NetworkConfig(architecture="one_hot", actor_widths=(8, 8), activation="tanh")
SETTINGS: dict[str, Any] = {
    "env": EnvConfig(benchmark="toy", max_episode_steps=11, num_goals=4, copies=2),
    "network": NETWORK,
    "on_policy": OnPolicyConfig(episodes=2, gae_lambda=0.95),
    "ppo": PpoConfig(lr=1e-2, epochs=3, minibatches=4),
}


def config_of(algorithm: str, **changes: Any) -> RunConfig:
    return tiny_config(algorithm=algorithm, **{**SETTINGS, **changes})


def network_of(num_tasks: int = 3, seed: int = 0) -> TaskGaussian:
    return build_task_gaussian(NETWORK, OnPolicyConfig(), suite(num_tasks), torch.Generator().manual_seed(seed))


def batch_of(network: TaskGaussian, steps: int = 30, lengths: tuple[int, ...] | None = None) -> PolicyBatch:
    """Returns samples of a network's policy with random advantages; `lengths` are the valid steps of each task."""
    generator = torch.Generator().manual_seed(1)
    tasks, numbers = network.num_tasks, network.network.shape
    obs = torch.randn(tasks, steps, numbers.in_features - tasks, generator=generator).to(network.one_hot.dtype)
    with torch.no_grad():
        mean, log_std = network(obs, torch.arange(tasks))
        sample = mean + log_std.exp() * torch.randn(mean.shape, generator=generator)
        found = log_prob(sample, mean, log_std)
    advantage = torch.randn(tasks, steps, generator=generator).to(obs.dtype)
    counts = torch.tensor(lengths or (steps,) * tasks).unsqueeze(1)
    return PolicyBatch(obs, sample, found, advantage, torch.arange(steps) < counts)


def with_garbage_in_padding(batch: PolicyBatch) -> PolicyBatch:
    columns = batch.state_dict()
    for name in ("obs", "sample", "log_prob", "advantage"):
        mask = batch.mask if columns[name].dim() == 2 else batch.mask.unsqueeze(2)
        columns[name] = torch.where(mask, columns[name], 7.0)
    return PolicyBatch(**columns)


def rounds(learner: MultiTaskOnPolicy, config: RunConfig, number: int = 1) -> None:
    """Lets a learner learn from episodes of a collector that begins anew."""
    collector = build_collector(config, build_suite(config))
    for _ in range(number):
        learner.receive([collector.collect(learner.request())])
        while learner.update() is not None:
            pass
    collector.close()


# PPO


def test_clipped_loss_is_the_worse_of_two_surrogates():
    ratio = torch.tensor([[1.5, 1.5, 0.5, 0.5], [1.1, 0.9, 1.0, 3.0]])
    advantage = torch.tensor([[1.0, -1.0, 1.0, -1.0], [2.0, 2.0, 2.0, 1e6]])
    mask = torch.tensor([[True] * 4, [True, True, True, False]])
    found = ratio.log().requires_grad_()
    loss = clipped_ratio_loss(found, torch.zeros(2, 4), advantage, mask, clip=0.2)
    # clip(r) A and r A: 1.2 or 1.5; -1.2 or -1.5; 0.8 or 0.5; -0.8 or -0.5. The smaller ones count
    torch.testing.assert_close(loss, -torch.tensor([(1.2 - 1.5 + 0.5 - 0.8) / 4, (2.2 + 1.8 + 2.0) / 3]))
    (gradient,) = torch.autograd.grad(loss.sum(), found)
    # r A is what is differentiated, by log r, unless the clipped one is smaller
    expected = -torch.tensor([[0.0, -1.5 / 4, 0.5 / 4, 0.0], [2.2 / 3, 1.8 / 3, 2.0 / 3, 0.0]])
    torch.testing.assert_close(gradient, expected)


def test_loss_rewards_entropy():
    network = network_of()
    batch = batch_of(network)
    batch = dataclasses.replace(batch, advantage=torch.zeros_like(batch.advantage))
    ppo = Ppo(config_of("mtppo", ppo=PpoConfig(entropy_coefficient=0.5)), network, CPU)
    with torch.no_grad():
        network.network.numbers[-1].copy_(torch.tensor([[0.3, -0.1]]))
    nats = 0.3 - 0.1 + 2 * 0.5 * math.log(2 * math.pi * math.e)
    torch.testing.assert_close(ppo.losses(batch, None).detach(), torch.full((3,), -0.5 * nats))


@pytest.mark.parametrize("number", [1, 4, 7])
def test_minibatches_hold_every_valid_step_once_and_a_share_of_every_task(number):
    lengths = (30, 17, 8)
    batch = batch_of(network_of(), lengths=lengths)
    names = torch.arange(3 * 30, dtype=torch.float32).view(3, 30)  # a number for each step
    batch = dataclasses.replace(batch, advantage=names)
    seen: list[list[float]] = [[], [], []]
    found = list(minibatches(batch, number, torch.Generator().manual_seed(0)))
    assert len(found) == number
    for minibatch in found:
        for task, length in enumerate(lengths):
            chosen = minibatch.advantage[task][minibatch.mask[task]]
            assert length // number <= len(chosen) <= -(-length // number)
            torch.testing.assert_close(
                minibatch.obs[task][minibatch.mask[task]], batch.obs[task, chosen.long() - 30 * task]
            )
            seen[task] += chosen.tolist()
    assert [sorted(steps) for steps in seen] == [names[task, :length].tolist() for task, length in enumerate(lengths)]
    assert all(steps != sorted(steps) for steps in seen)


def test_minibatches_differ_from_epoch_to_epoch():
    batch, generator = batch_of(network_of()), torch.Generator().manual_seed(0)
    first, second = (next(minibatches(batch, 4, generator)) for _ in range(2))
    assert not torch.equal(first.obs, second.obs)


def test_no_minibatch_lacks_a_task():
    batch = batch_of(network_of(), lengths=(30, 3, 8))
    found = list(minibatches(batch, 5, torch.Generator().manual_seed(0)))
    assert [minibatch.mask.sum(dim=1).tolist() for minibatch in found] == [[10, 1, 2], [10, 1, 3], [10, 1, 3]]


def test_ppo_counts_its_gradient_steps_and_what_it_learned_from():
    network = network_of()
    metrics, made = Ppo(config_of("mtppo"), network, CPU).improve(batch_of(network, lengths=(30, 20, 10)), 0, 0)
    assert made == 3 * 4
    assert metrics.num_samples == 3 * 60
    assert metrics.values["train/loss/policy"].shape == (3,)


def test_ppo_raises_the_surrogate_and_stops_at_the_divergence_asked_for():
    changes = {"ppo": PpoConfig(lr=1e-2, epochs=50, minibatches=1)}
    made, surrogate, kl = {}, {}, {}
    for target in (None, 0.02):
        network = network_of()
        batch = batch_of(network)
        old = distribution(network, batch)
        settings = dataclasses.replace(changes["ppo"], target_kl=target)
        _, made[target] = Ppo(config_of("mtppo", ppo=settings), network, CPU).improve(batch, 0, 0)
        surrogate[target] = _surrogate(network, batch)
        kl[target] = float(mean_kl(old, distribution(network, batch), batch.mask))
    assert made[None] == 50
    assert 1 < made[0.02] < 50
    assert 0.02 < kl[0.02] < kl[None]
    assert 0.01 < surrogate[0.02] < surrogate[None]


# TRPO


@pytest.fixture(scope="module")
def toy_batch() -> tuple[RunConfig, PolicyBatch]:
    """Real episodes of the toy tasks, as a learner at its start collects them."""
    config = config_of("mttrpo", env=EnvConfig(benchmark="toy", max_episode_steps=30, num_goals=4))
    learner = build_learner(config, build_suite(config), CPU)
    assert isinstance(learner, MultiTaskOnPolicy)
    collector = build_collector(config, build_suite(config))
    learner.receive([collector.collect(learner.request())])
    collector.close()
    assert learner._batch is not None
    return config, learner._batch


@pytest.mark.parametrize("method", ["mean", "pcgrad"])
@pytest.mark.parametrize("share", [1.0, 0.3])
def test_trust_region_step_improves_the_surrogate_within_the_divergence(toy_batch, method, share):
    config, batch = toy_batch
    config = dataclasses.replace(
        config, surgery=SurgeryConfig(method=method), trpo=TrpoConfig(max_kl=0.02, fisher_share=share)
    )
    learner = build_learner(config, build_suite(config), CPU)
    assert isinstance(learner, MultiTaskOnPolicy)
    old = distribution(learner.network, batch)
    before = _surrogate(learner.network, batch)
    metrics, made = learner._improvement.improve(batch, 0, 0)
    gain = _surrogate(learner.network, batch) - before
    kl = mean_kl(old, distribution(learner.network, batch), batch.mask)
    assert made == 1
    assert metrics.values["train/step_accepted"] == 1.0
    assert gain > 0.01
    # the step aims at the limit; the line search and Fisher products from few states leave at least half of it
    assert 0.01 < kl <= 0.02
    torch.testing.assert_close(metrics.values["train/kl"].float(), kl)
    torch.testing.assert_close(metrics.values["train/surrogate_gain"].float(), torch.tensor(gain), rtol=1e-3, atol=1e-6)


def test_fisher_product_is_the_hessian_of_the_mean_divergence():
    network = network_of(num_tasks=2).double()
    batch = batch_of(network, steps=12, lengths=(12, 5))
    trpo = Trpo(config_of("mttrpo"), network, CPU)
    names, shapes = zip(*((name, value.shape) for name, value in network.named_parameters()), strict=True)
    start = flat([value.detach() for value in network.parameters()])
    old_mean, old_log_std = distribution(network, batch)

    def divergence(vector: Tensor) -> Tensor:
        """Returns the mean over tasks of the mean over valid steps, by torch's own distributions."""
        parts = torch.split(vector, [shape.numel() for shape in shapes])
        numbers = {name: part.view(shape) for name, part, shape in zip(names, parts, shapes, strict=True)}
        mean, log_std = torch.func.functional_call(network, numbers, (batch.obs, torch.arange(2)))
        old = torch.distributions.Normal(old_mean, old_log_std.exp().expand_as(old_mean), validate_args=False)
        new = torch.distributions.Normal(mean, log_std.exp().expand_as(mean), validate_args=False)
        kl = torch.distributions.kl_divergence(old, new).sum(dim=2)
        return (kl[0].mean() + kl[1, :5].mean()) / 2

    hessian = torch.autograd.functional.hessian(divergence, start)
    vector = torch.randn(len(start), dtype=torch.float64, generator=torch.Generator().manual_seed(5))
    product = trpo.fisher_product(batch, (old_mean, old_log_std), vector)
    torch.testing.assert_close(product, hessian @ vector, rtol=1e-9, atol=1e-12)  # float64


def test_a_step_that_nothing_accepts_changes_nothing():
    network = network_of()
    batch = batch_of(network)
    before = copy.deepcopy(network.state_dict())
    nothing_gained = dataclasses.replace(batch, advantage=torch.zeros_like(batch.advantage))
    metrics, _ = Trpo(config_of("mttrpo"), network, CPU).improve(nothing_gained, 0, 0)
    assert metrics.values["train/step_accepted"] == 0.0
    assert all(torch.equal(value, before[name]) for name, value in network.state_dict().items())


# gradients of tasks


def test_gradients_per_task_by_expansion_equal_a_loop_over_tasks():
    network = network_of()
    batch = batch_of(network, lengths=(30, 20, 10))
    ppo = Ppo(config_of("mtppo"), network, CPU)
    leaves = expand_for_tasks(network.shared, 3)
    losses = ppo.losses(batch, [leaf[0] for leaf in leaves])
    found = torch.cat([g[0].flatten(1) for g in torch.autograd.grad(losses.sum(), leaves)], dim=1)  # [task, param]
    plain = ppo.losses(batch, None)
    torch.testing.assert_close(losses, plain)
    for task in range(3):
        expected = flat(torch.autograd.grad(plain[task], network.shared, retain_graph=True))
        torch.testing.assert_close(found[task], expected, rtol=1e-5, atol=1e-7)  # float32, sums in another order


def test_gradients_of_trpo_are_those_of_each_task_alone():
    network = network_of()
    batch = batch_of(network, lengths=(30, 20, 10))
    losses, rows = Trpo(config_of("mttrpo"), network, CPU).gradients(batch)
    mean, log_std = network(batch.obs, torch.arange(3))
    ratio = (log_prob(batch.sample, mean, log_std) - batch.log_prob).exp()
    for task, length in enumerate((30, 20, 10)):
        loss = -(ratio * batch.advantage)[task, :length].mean()
        torch.testing.assert_close(losses[task], loss.detach())
        expected = flat(torch.autograd.grad(loss, network.shared, retain_graph=True))
        torch.testing.assert_close(rows[task], expected, rtol=1e-5, atol=1e-7)  # float32, sums in another order


def _improved(algorithm: str, method: str, *, conflict: bool) -> Tensor:
    """Returns the parameters after one step on tasks with the same episodes, of opposite advantage if in conflict."""
    network = network_of(num_tasks=2)
    with torch.no_grad():
        network.network.numbers[0][:, :, -2:] = 0.0  # the columns of the one-hot task id
    batch = batch_of(network)
    columns = {name: column[:1].expand_as(column).clone() for name, column in batch.state_dict().items()}
    if conflict:
        columns["advantage"][1] *= -0.5
    settings = PpoConfig(lr=1e-2, epochs=1, minibatches=1, entropy_coefficient=0.0, max_grad_norm=None)
    config = config_of(algorithm, ppo=settings, surgery=SurgeryConfig(method=method))
    (Ppo if algorithm == "mtppo" else Trpo)(config, network, CPU).improve(PolicyBatch(**columns), 0, 0)
    return flat([value.detach() for value in network.parameters()])


@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_surgery_leaves_tasks_alone_that_agree(algorithm):
    plain, surgery = (_improved(algorithm, method, conflict=False) for method in ("mean", "pcgrad"))
    torch.testing.assert_close(surgery, plain, rtol=1e-4, atol=1e-5)  # rounding, through Adam or conjugate gradient


@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_surgery_changes_the_step_of_tasks_in_conflict(algorithm):
    plain, surgery = (_improved(algorithm, method, conflict=True) for method in ("mean", "pcgrad"))
    assert float((surgery - plain).abs().max()) > 1e-3


@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_conflict_is_measured_when_it_is_due(algorithm):
    surgery = SurgeryConfig(method="pcgrad", statistics_every=7)
    config = config_of(algorithm, surgery=surgery)
    network = network_of()
    kind = Ppo if algorithm == "mtppo" else Trpo
    due, _ = kind(config, network, CPU).improve(batch_of(network), 14, 0)
    assert due.matrices["policy/cosine"].shape == (3, 3)
    assert torch.isfinite(due.values["pcgrad/policy/curvature"])
    settings = dataclasses.replace(config, ppo=PpoConfig(epochs=1, minibatches=2))
    network = network_of()
    not_due, _ = kind(settings, network, CPU).improve(batch_of(network), 15, 0)
    assert not not_due.matrices


def test_curvature_of_a_trust_region_step_is_that_of_the_surrogate():
    network = network_of()
    batch = batch_of(network)
    config = config_of("mttrpo", surgery=SurgeryConfig(method="pcgrad", statistics_every=1))
    trpo = Trpo(config, network, CPU)
    slope = trpo.gradients(batch)[1].mean(dim=0)
    start, before = flat(network.shared).detach(), -_surrogate(network, batch)
    metrics, _ = trpo.improve(batch, 0, 0)
    step = flat(network.shared).detach() - start
    expected = 2 * (-_surrogate(network, batch) - before - float(slope @ step))
    assert abs(expected) > 1e-4
    assert float(metrics.values["pcgrad/policy/curvature"]) == pytest.approx(expected, rel=1e-2)  # float32 differences


@pytest.mark.parametrize("algorithm", ALL)
def test_one_task_takes_no_surgery(algorithm, tmp_path):
    settings = {**SETTINGS, "env": EnvConfig(benchmark="MT1", tasks=("toy-reach-up",), max_episode_steps=11)}
    config = run_in(tmp_path, algorithm=algorithm, **settings, surgery=SurgeryConfig(method="pcgrad"))
    with pytest.raises(ConfigError, match=r"surgery.method: pcgrad needs at least 2 tasks"):
        training.train(config, StopAt(None))
    assert not list(tmp_path.iterdir())


# which task is which, and padding


def test_the_task_id_goes_with_the_slot():
    network = network_of()
    obs = torch.randn(3, 4, 5, generator=torch.Generator().manual_seed(0))
    order = torch.tensor([2, 0, 1])
    before, _ = network(obs, order)
    with torch.no_grad():
        network.network.numbers[0][:, :, -3 + 1] += 1.0  # the column of task 1
    after, _ = network(obs, order)
    assert (after != before).flatten(1).any(dim=1).tolist() == [False, False, True]
    own = [number.expand(3, *number.shape[1:]) for number in network.shared]
    torch.testing.assert_close(network(obs, order, own)[0], after)


def test_policy_acts_as_the_network_says_for_each_slot():
    config, network = config_of("mtppo"), network_of()
    policy = TaskGaussianPolicy(config, suite())
    policy.load({name: value.numpy() for name, value in network.state_dict().items()})
    slot = torch.tensor([2, 0, 2, 1])
    obs = torch.randn(4, 5, generator=torch.Generator().manual_seed(0))
    blank = Previous(torch.zeros(4, 2), torch.zeros(4), torch.zeros(4))
    with torch.no_grad():
        mean, log_std = network(obs.unsqueeze(1), slot)
    answer = policy.act(obs, blank, None, slot, Mode.DETERMINISTIC, torch.Generator())
    torch.testing.assert_close(answer.action, mean[:, 0].clamp(-1, 1))
    answer = policy.act(obs, blank, None, slot, Mode.EXPLORE, torch.Generator().manual_seed(0))
    torch.testing.assert_close(answer.extras["log_prob"], log_prob(answer.extras["sample"], mean[:, 0], log_std[:, 0]))
    assert answer.extras["sample"].abs().max() > 1.0
    torch.testing.assert_close(answer.action, answer.extras["sample"].clamp(-1, 1))


def test_episodes_of_all_copies_and_workers_go_to_their_task():
    config = config_of("mtppo", env=EnvConfig(benchmark="toy", max_episode_steps=11, num_goals=4, copies=3))
    learner = build_learner(config, build_suite(config), CPU)
    assert isinstance(learner, MultiTaskOnPolicy)
    blocks = []
    for worker in range(2):
        collector = build_collector(config, build_suite(config), worker, num_workers=2)
        blocks.append(collector.collect(learner.request()))
        collector.close()
    learner.receive(blocks[::-1])
    assert learner._batch is not None
    assert learner._batch.mask.sum(dim=1).tolist() == [3 * 2 * 11] * 4
    assert learner.env_steps == 4 * 3 * 2 * 11
    goal = learner._batch.obs[:, :, 4:]  # [task, step, 2]
    assert (goal[0, :, 0] < -0.4).all()
    assert (goal[1, :, 0] > 0.4).all()
    assert (goal[2:, :, 1] > 0.4).all()


@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_padding_never_counts(algorithm):
    found = []
    for change in (lambda batch: batch, with_garbage_in_padding):
        network = network_of()
        batch = change(batch_of(network, lengths=(30, 20, 10)))
        config = config_of(algorithm, surgery=SurgeryConfig(method="pcgrad"))
        metrics, _ = (Ppo if algorithm == "mtppo" else Trpo)(config, network, CPU).improve(batch, 0, 0)
        found.append([*network.parameters(), metrics.values["train/loss/policy"], metrics.values["train/kl"]])
    for one, other in zip(*found, strict=True):
        torch.testing.assert_close(one, other, rtol=0, atol=0)


def test_every_task_counts_the_same_however_short_its_episodes():
    network = network_of()
    ppo = Ppo(config_of("mtppo", ppo=PpoConfig(entropy_coefficient=0.0)), network, CPU)
    batch = batch_of(network, lengths=(30, 20, 10))
    batch = dataclasses.replace(batch, advantage=torch.ones_like(batch.advantage))
    torch.testing.assert_close(ppo.losses(batch, None).detach(), -torch.ones(3))


# states and runs


@pytest.mark.parametrize("algorithm", ALL)
def test_a_restored_learner_goes_on_bit_for_bit(algorithm):
    config = config_of(algorithm, surgery=SurgeryConfig(method="pcgrad", statistics_every=5))
    tasks = build_suite(config)
    learner = build_learner(config, tasks, CPU)
    rounds(learner, config, number=2)
    collector = build_collector(config, tasks)
    learner.receive([collector.collect(learner.request())])  # a round that is not yet learned from
    collector.close()
    other = build_learner(dataclasses.replace(config, seed=99), tasks, CPU)
    other.load_state_dict(copy.deepcopy(learner.state_dict()))
    for one in (learner, other):
        assert one.behind() == 1
        while one.update() is not None:
            pass
        rounds(one, config, number=2)
    states = [_leaves(one.state_dict()) for one in (learner, other)]
    assert states[0].keys() == states[1].keys()
    for path, value in states[0].items():
        np.testing.assert_array_equal(np.asarray(states[1][path]), np.asarray(value), err_msg=path)
    assert learner.gradient_steps == 5 * {"mtppo": 3 * 4, "mttrpo": 1, "te_ppo": 2 * 3 * 4}[algorithm]
    assert learner.env_steps == 5 * 4 * 2 * 2 * 11


def test_weights_are_the_same_object_until_they_change():
    config = config_of("mtppo")
    learner = build_learner(config, build_suite(config), CPU)
    before, version = learner.policy_weights(), learner.request().version
    assert learner.policy_weights() is before
    kept = copy.deepcopy(dict(before))
    rounds(learner, config)
    assert learner.policy_weights() is not before
    assert learner.request().version > version
    assert all(np.array_equal(kept[name], before[name]) for name in kept)


class StopAt:
    """A display that sends SIGTERM when a number of environment steps is reached."""

    def __init__(self, env_steps: int | None) -> None:
        self.env_steps = env_steps

    def say(self, text: str) -> None:
        pass

    def update(self, env_steps: int, gradient_steps: int, success: float | None) -> None:
        if self.env_steps is not None and env_steps >= self.env_steps:
            os.kill(os.getpid(), signal.SIGTERM)


@pytest.mark.parametrize("algorithm", ALL)
def test_a_run_that_was_stopped_ends_as_the_one_that_was_not(algorithm, tmp_path, monkeypatch):
    monkeypatch.setattr(training._Stop, "pause", lambda self: True)  # lets a signal come between any two rounds
    round_steps = 4 * 2 * 2 * 11
    settings = {
        **SETTINGS,
        "surgery": SurgeryConfig(method="pcgrad", statistics_every=3),
        "eval": EvalConfig(every_env_steps=2 * round_steps, goals=2, final_goals=4),
        "checkpoint": CheckpointConfig(every_env_steps=0),
        "log_every_env_steps": 2 * round_steps,
        "total_env_steps": 6 * round_steps,
    }
    whole = training.train(run_in(tmp_path / "whole", algorithm=algorithm, **settings), StopAt(None)).run
    ended = training.train(run_in(tmp_path / "pieces", algorithm=algorithm, **settings), StopAt(3 * round_steps))
    assert ended.stopped_by is signal.SIGTERM
    pieces = training.resume(ended.run, [], StopAt(None)).run
    states = [_leaves(load_state(newest_checkpoint(run)[0])) for run in (whole, pieces)]
    assert states[0].keys() == states[1].keys()
    assert any(path.startswith("/learner/network") for path in states[0])
    for path, value in states[0].items():
        np.testing.assert_array_equal(np.asarray(states[1][path]), np.asarray(value), err_msg=path)
    lines = [
        [_leaves(json.loads(line)) for line in (run / "metrics.jsonl").read_text().splitlines()]
        for run in (whole, pieces)
    ]
    assert lines[0] == lines[1]


def test_a_trained_policy_is_loaded_by_the_name_of_its_task(tmp_path):
    run = training.train(run_in(tmp_path, algorithm="mtppo", **SETTINGS), StopAt(None)).run
    policy = mtrl.load_policy(run)
    actions = [policy(np.zeros(6, np.float32), task) for task in ("toy-reach-left", "toy-reach-right")]
    assert actions[0].shape == (2,)
    assert not np.array_equal(actions[0], actions[1])


# what is refused


@pytest.mark.parametrize("algorithm", ALL)
def test_old_weights_are_refused(algorithm):
    config = config_of(algorithm, collection="async")
    with pytest.raises(ConfigError, match=r"^collection: async collects with old weights.*$"):
        LocalEngine(config, build_suite(config))


@pytest.mark.parametrize("algorithm", META_ALGORITHMS)
@pytest.mark.parametrize("benchmark", ["MT10", "MT50", "toy"])
def test_meta_learning_is_refused_where_no_task_is_held_out(algorithm, benchmark):
    config = RunConfig(algorithm=algorithm, env=EnvConfig(benchmark=benchmark), ppo=PpoConfig(minibatches=1))
    with pytest.raises(
        ConfigError, match=f"^algorithm: {algorithm} adapts to held-out tasks, and {benchmark} .*ML1.*$"
    ):
        build_suite(config)


@pytest.mark.parametrize("algorithm", ALL)
def test_an_output_layer_per_task_is_refused(algorithm):
    with pytest.raises(ConfigError, match=r"^network.architecture: multi_head .* set network.architecture=one_hot$"):
        RunConfig(algorithm=algorithm)


# learning


@pytest.mark.slow
@pytest.mark.parametrize("row", ALL)
def test_toy_tasks_are_learned(row, tmp_path):
    config = load_config(CONFIGS / "toy" / f"{row}.yaml", [f"runs_dir={tmp_path}", "device=cpu"])
    run = training.train(config, StopAt(None)).run
    results = [json.loads(path.read_text()) for path in (run / "evaluations").iterdir()]
    (success,) = [result["estimators"]["mtrl"]["success"] for result in results if result["final"]]
    assert min(success.values()) >= 0.9


def _surrogate(network: TaskGaussian, batch: PolicyBatch) -> float:
    """Returns the mean over tasks of the mean of ratio x advantage over valid steps."""
    with torch.no_grad():
        mean, log_std = network(batch.obs, torch.arange(network.num_tasks))
        gain = (log_prob(batch.sample, mean, log_std) - batch.log_prob).exp() * batch.advantage
    return float(torch.stack([row[mask].mean() for row, mask in zip(gain, batch.mask, strict=True)]).mean())


def _leaves(value: Any, path: str = "") -> dict[str, Any]:
    """Returns path → leaf of nested dictionaries and lists, without clocks and folders."""
    if isinstance(value, dict | list):
        items = value.items() if isinstance(value, dict) else enumerate(value)
        return {name: leaf for key, item in items for name, leaf in _leaves(item, f"{path}/{key}").items()}
    return (
        {} if any(part in path for part in ("/perf/", "/wall_s", "/seconds", "/log/", "/runs_dir")) else {path: value}
    )

"""PEARL against hand-made numbers and an update written out; which data the encoder sees; what it learns on the toy."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from builders import tiny_config
from test_resume import StopAt, assert_equal_states
from torch import Tensor
from torch.distributions import Normal

from envs.episodes import Assignment
from mtrl import train as training
from mtrl.checkpoint import load_replay, load_state, save_checkpoint
from mtrl.config import (
    CheckpointConfig,
    ConfigError,
    EnvConfig,
    EvalConfig,
    MetaConfig,
    NetworkConfig,
    PearlConfig,
    ReplayConfig,
    RllibConfig,
    RunConfig,
    SacConfig,
    SurgeryConfig,
    whole_episodes,
)
from mtrl.config_io import load_config
from mtrl.data import Array, Block, Episodes
from mtrl.engine.local import LocalEngine
from mtrl.learners.pearl import Pearl, collection_plan
from mtrl.learners.pearl_policy import PearlAdapter, PearlPolicy
from mtrl.learners.protocol import Boundary, CollectRequest, Mode, Previous, Unit
from mtrl.learners.soft_values import TargetCritics, ValueNetwork
from mtrl.losses import pearl as losses
from mtrl.meta_evaluation import MetaEvaluator
from mtrl.networks.build import Suite
from mtrl.networks.context import context_rows, product_of_gaussians
from mtrl.replay import ring
from mtrl.replay.ranges import NewestRanges
from mtrl.replay.ring import Replay
from mtrl.rollout.build import build_envs, build_suite
from mtrl.rollout.collector import Collector

pytestmark = pytest.mark.usefixtures("one_torch_thread")
SUITE = Suite(("a", "b"), obs_dim=6, action_dim=2, test_task_names=("c",))
HORIZON, GOALS, LATENT = 5, 3, 3
TOY = Path(__file__).parents[1] / "configs" / "toy" / "pearl.yaml"


def config(pearl: dict[str, Any] | None = None, sac: dict[str, Any] | None = None, **changes: Any) -> RunConfig:
    """Returns a run of six slots, two in each iteration: 10 steps from the prior, 5 and 10 from posteriors."""
    small: dict[str, Any] = {
        "latent_dim": LATENT,
        "encoder_widths": (8,),
        "context_size": 6,
        "meta_batch": 4,
        "initial_steps": 5,
        "prior_steps": 10,
        "posterior_steps": 5,
        "extra_steps": 10,
        "updates_per_iteration": 2,
    }
    of_sac: dict[str, Any] = {"batch_size": 7, "max_grad_norm": None, "reward_scaling": "constant", "reward_scale": 5.0}
    settings: dict[str, Any] = {
        "algorithm": "pearl",
        "env": EnvConfig(benchmark="toy-ml", max_episode_steps=HORIZON, num_goals=GOALS),
        "network": NetworkConfig(actor_widths=(8,), critic_widths=(8,)),
        "meta": MetaConfig(batch_size=2, adaptation_episodes=2, test_episodes=1),
        "eval": EvalConfig(every_env_steps=0, goals=2, final_goals=2),
        "replay": ReplayConfig(capacity_per_task=60),
    }
    return tiny_config(
        pearl=PearlConfig(**{**small, **(pearl or {})}),
        sac=SacConfig(**{**of_sac, **(sac or {})}),
        **{**settings, **changes},
    )


def learner(pearl: dict[str, Any] | None = None, sac: dict[str, Any] | None = None, **changes: Any) -> Pearl:
    return Pearl(config(pearl, sac, **changes), SUITE, torch.device("cpu"))


def block(slots: Array, reward: Array, draws: np.random.Generator, tag: str = "", steps: int = HORIZON) -> Block:
    """Returns one episode [steps, env] of random numbers for each slot [env], with a reward for each [step, env]."""
    shape = (steps, len(slots))
    last = np.zeros(shape, bool)
    last[-1] = True
    return Block(
        obs=draws.normal(size=(*shape, 6)).astype(np.float32),
        action=draws.uniform(-1, 1, (*shape, 2)).astype(np.float32),
        reward=np.broadcast_to(reward, shape).astype(np.float32),
        next_obs=draws.normal(size=(*shape, 6)).astype(np.float32),
        terminated=np.zeros(shape, bool),
        truncated=last,
        success=np.zeros(shape, bool),
        valid=np.ones(shape, bool),
        task_id=np.broadcast_to(slots // GOALS, shape).astype(np.int32),
        goal_id=np.broadcast_to(slots % GOALS, shape).astype(np.int32),
        slot=np.broadcast_to(slots, shape).astype(np.int32),
        episode_id=np.zeros(shape, np.int64),
        trial_id=np.zeros(shape, np.int64),
        weights_version=0,
        tag=tag,
        episodes=Episodes.empty(),
    )


def answer(request: CollectRequest, reward: float, draws: np.random.Generator) -> list[Block]:
    """Returns what a request asks for, every reward the same number."""
    assert request.unit is Unit.EPISODES
    assert request.slots is not None
    return [block(np.array(request.slots), np.array(reward), draws, request.tag, HORIZON * request.amount)]


def collected(found: Pearl) -> Pearl:
    """Returns the learner after its first collections, when updates are due."""
    draws = np.random.default_rng(0)
    for _ in range(20):
        found.receive(answer(found.request(), draws.normal(), draws))
        if found.behind():
            return found
    raise AssertionError("after 20 requests no update is due")


def collections(found: Pearl, iterations: int) -> Iterator[tuple[CollectRequest, float]]:
    """Runs iterations; yields each request when it was answered, and the reward of its answer: 1, 2, 3, ..."""
    draws, number = np.random.default_rng(0), 0.0
    for _ in range(iterations):
        while not found.behind():
            request = found.request()
            number += 1.0
            found.receive(answer(request, number, draws))
            yield request, number
        while found.update() is not None:
            pass


def rewards_of_context(found: Pearl, slot: int) -> set[float]:
    context = torch.cat([found.sample_context(torch.tensor([slot])) for _ in range(40)], dim=1)
    return set(context[0, :, -1].tolist())


# the posterior


def test_product_of_gaussians_is_the_closed_form():
    # precisions 1 and 2 add up to 3, means weigh by them; equal factors halve the variance
    mean, variance = torch.tensor([[[1.0, 0.0], [3.0, 4.0]]]), torch.tensor([[[1.0, 2.0], [0.5, 2.0]]])
    found_mean, found_variance = product_of_gaussians(mean, variance)
    torch.testing.assert_close(found_mean, torch.tensor([[7 / 3, 2.0]]))
    torch.testing.assert_close(found_variance, torch.tensor([[1 / 3, 1.0]]))


def test_no_factor_is_surer_than_the_least_variance():
    mean, variance = torch.tensor([[[0.0], [1.0]]]), torch.tensor([[[1e-12], [1e-7]]])
    found_mean, found_variance = product_of_gaussians(mean, variance)
    torch.testing.assert_close(found_mean, torch.tensor([[0.5]]))
    torch.testing.assert_close(found_variance, torch.tensor([[0.5e-7]]))


def test_posterior_does_not_depend_on_the_order_of_transitions():
    encoder = collected(learner()).encoder
    context = torch.randn(2, 9, 9, generator=torch.Generator().manual_seed(0))
    order = torch.randperm(9, generator=torch.Generator().manual_seed(1))
    straight, shuffled = (product_of_gaussians(*encoder(rows)) for rows in (context, context[:, order]))
    torch.testing.assert_close(shuffled, straight)
    context[0, 4, 0] += 1.0
    changed = product_of_gaussians(*encoder(context))[0]
    assert not torch.allclose(changed[0], straight[0][0], rtol=1e-6)
    torch.testing.assert_close(changed[1], straight[0][1])


def test_kl_is_the_closed_form_and_a_sum_over_tasks_and_dimensions():
    # N(1, 1): 1/2; N(0, 4): (4 - 1 - log 4) / 2
    mean, variance = torch.tensor([[1.0, 0.0]]), torch.tensor([[1.0, 4.0]])
    once = losses.kl_from_prior(mean, variance)
    torch.testing.assert_close(once, torch.tensor(0.5 + 1.5 - np.log(4.0) / 2, dtype=torch.float32))
    for dim in (0, 1):
        twice = losses.kl_from_prior(torch.cat([mean, mean], dim), torch.cat([variance, variance], dim))
        torch.testing.assert_close(twice, 2 * once)


def test_next_observations_are_context_only_when_asked_for():
    for wanted, width in ((False, 6 + 2 + 1), (True, 6 + 2 + 1 + 6)):
        found = collected(learner({"next_obs_in_context": wanted}))
        assert found.sample_context(torch.tensor([0])).shape == (1, 6, width)
        assert found.update() is not None


# where gradients go


def gradients(found: Pearl, which: str) -> dict[str, list[Tensor | None]]:
    """Returns the gradients of one loss by the parameters of every network; the latent variable has its graph."""
    slots = torch.tensor([0, 4, 4])
    batch, context = found.sample(slots), found.sample_context(slots)
    mean, variance = product_of_gaussians(*found.encoder(context))
    z = mean + variance.sqrt()
    assert isinstance(found.values, ValueNetwork)
    q = torch.rand(2, 3, 7, generator=torch.Generator().manual_seed(0))
    loss = {
        "q": lambda: found.q_loss(batch, z)[0],
        "kl": lambda: losses.kl_from_prior(mean, variance),
        "value": lambda: found.values.loss(batch, z, q, q[0]),
        "actor": lambda: found.actor_loss(batch, z)[0],
    }[which]()
    networks = {
        "encoder": found.encoder,
        "critics": found.critics,
        "value": found.values.value,
        "actor": found.actor,
    }
    return {
        name: list(torch.autograd.grad(loss, list(network.parameters()), retain_graph=True, allow_unused=True))
        for name, network in networks.items()
    }


@pytest.mark.parametrize(
    ("loss", "reached"),
    [
        ("q", {"encoder", "critics"}),
        ("kl", {"encoder"}),
        ("value", {"value"}),
        ("actor", {"actor", "critics"}),  # through the critics to the actor; only the actor is stepped
    ],
)
def test_each_loss_reaches_its_networks_and_no_other(loss: str, reached: set[str]):
    for network, found in gradients(collected(learner()), loss).items():
        if network in reached:
            assert all(gradient is not None and gradient.abs().max() > 0 for gradient in found), network
        else:
            assert found == [None] * len(found), network


class WrittenOut:
    """One update as the authors' code makes it: rows of all tasks in one table, distributions of torch, no stack."""

    def __init__(self, found: Pearl) -> None:
        self.learner = found
        streams = {name: torch.Generator() for name in ("noise", "slots", "replay", "context")}
        for name, stream in streams.items():
            stream.set_state(found.state_dict()["streams"][name])
        self.slots = torch.randint(found.replay.num_slots, (4,), generator=streams["slots"])
        rows = found.replay.sample(self.slots, 7, streams["replay"])
        self.obs, self.action, self.next_obs = (part.reshape(28, -1) for part in (rows.obs, rows.action, rows.next_obs))
        self.reward, self.terminated = rows.reward.reshape(28), rows.terminated.reshape(28)
        seen = found.contexts.sample(self.slots, 6, streams["context"])
        self.context = torch.cat([seen.obs, seen.action, seen.reward.unsqueeze(2)], dim=2)
        self.z_noise = torch.randn(4, LATENT, generator=streams["noise"])
        self.action_noise = torch.randn(4, 7, 2, generator=streams["noise"]).reshape(28, 2)

    @staticmethod
    def network(parameters: list[Tensor], x: Tensor, net: int = 0) -> Tensor:
        hidden = torch.relu(x @ parameters[0][net].T + parameters[1][net])
        return hidden @ parameters[2][net].T + parameters[3][net]

    def gradients(self, networks: dict[str, list[Tensor]], later_critics: list[Tensor]) -> dict[str, list[Tensor]]:
        """Returns what each network is stepped along; actor and value ask the critics after their step."""
        means, factors = self.network(networks["encoder"], self.context).chunk(2, dim=2)
        variances = torch.nn.functional.softplus(factors)
        posterior_variance = 1.0 / (1.0 / variances).sum(dim=1)
        posterior = Normal((means / variances).sum(dim=1) * posterior_variance, posterior_variance.sqrt())
        z = posterior.loc + posterior.scale * self.z_noise
        task_z = torch.cat([one.repeat(7, 1) for one in z])
        kl = torch.distributions.kl_divergence(posterior, Normal(torch.tensor(0.0), torch.tensor(1.0))).sum()
        inputs = torch.cat([self.obs, task_z, self.action], dim=1)
        with torch.no_grad():
            next_value = self.network(networks["target_value"], torch.cat([self.next_obs, task_z], dim=1))[:, 0]
            target = 5.0 * self.reward + (1 - self.terminated) * 0.99 * next_value
        errors = [self.network(networks["critics"], inputs, net)[:, 0] - target for net in (0, 1)]
        q_loss = (errors[0] ** 2).mean() + (errors[1] ** 2).mean()

        task_z = task_z.detach()
        mean, log_std = self.network(networks["actor"], torch.cat([self.obs, task_z], dim=1)).chunk(2, dim=1)
        before = mean + log_std.exp() * self.action_noise
        action = torch.tanh(before)
        log_prob = (Normal(mean, log_std.exp()).log_prob(before) - torch.log(1 - action**2)).sum(dim=1)
        inputs = torch.cat([self.obs, task_z, action], dim=1)
        q = torch.min(*(self.network(later_critics, inputs, net)[:, 0] for net in (0, 1)))
        value = self.network(networks["value"], torch.cat([self.obs, task_z], dim=1))[:, 0]
        value_loss = ((value - (q - log_prob).detach()) ** 2).mean()
        actor_loss = (log_prob - q).mean() + 1e-3 * (mean**2).mean() + 1e-3 * (log_std**2).mean()
        actor_loss = actor_loss + 0.02 * (before**2).sum(dim=1).mean()
        loss_of = {"encoder": q_loss + 0.3 * kl, "critics": q_loss, "value": value_loss, "actor": actor_loss}
        return {
            name: list(torch.autograd.grad(loss, networks[name], retain_graph=True)) for name, loss in loss_of.items()
        }


def networks_of(found: Pearl) -> dict[str, torch.nn.Module]:
    assert isinstance(found.values, ValueNetwork)
    return {
        "encoder": found.encoder,
        "critics": found.critics,
        "value": found.values.value,
        "target_value": found.values.target_value,
        "actor": found.actor,
    }


def test_an_update_is_the_published_one_written_out():
    # large heads, so that no gradient is lost in rounding
    found = collected(learner({"kl_weight": 0.3, "pre_tanh_regularization": 0.02}, {"adam_eps": 1e-8}))
    generator = torch.Generator().manual_seed(5)
    with torch.no_grad():
        for network in networks_of(found).values():
            for parameter in list(network.parameters())[-2:]:
                parameter.copy_(torch.randn(parameter.shape, generator=generator) * 0.1)
    written = WrittenOut(found)
    before = {
        name: [p.detach().clone().requires_grad_() for p in network.parameters()]
        for name, network in networks_of(found).items()
    }
    found.update()
    later_critics = [p.detach() for p in found.critics.parameters()]
    expected = written.gradients(before, later_critics)
    for name, network in networks_of(found).items():
        if name != "target_value":
            for parameter, gradient in zip(network.parameters(), expected[name], strict=True):
                # float32 sums in another order
                torch.testing.assert_close(parameter.grad, gradient, rtol=2e-4, atol=2e-5, msg=lambda m, n=name: n + m)
    value, target_value = networks_of(found)["value"], networks_of(found)["target_value"]
    for slow, old, fast in zip(target_value.parameters(), before["target_value"], value.parameters(), strict=True):
        torch.testing.assert_close(slow, 0.995 * old + 0.005 * fast)


def test_every_network_is_stepped_by_an_update():
    found = collected(learner())
    before = {name: [p.detach().clone() for p in network.parameters()] for name, network in networks_of(found).items()}
    found.update()
    for name, network in networks_of(found).items():
        for old, new in zip(before[name], network.parameters(), strict=True):
            assert not torch.equal(old, new), name


# targets


def test_target_of_the_critics_is_worked_out_by_hand():
    reward, next_value = torch.tensor([[2.0, 2.0]]), torch.tensor([[10.0, 10.0]])
    found = losses.value_bootstrap(reward, torch.tensor([[0.0, 1.0]]), next_value, gamma=0.9)
    torch.testing.assert_close(found, torch.tensor([[11.0, 2.0]]))


def test_target_of_the_value_network_is_the_smaller_q_minus_log_pi():
    q = torch.tensor([[[3.0, 1.0]], [[2.0, 5.0]]])
    loss = losses.value_loss(torch.tensor([[0.0, 0.0]]), q, torch.tensor([[0.5, -1.0]]))
    torch.testing.assert_close(loss, torch.tensor((1.5**2 + 2.0**2) / 2))


def test_q_loss_adds_the_two_mean_squared_errors():
    q = torch.tensor([[[1.0, 2.0]], [[4.0, 0.0]]])
    torch.testing.assert_close(losses.q_loss(q, torch.zeros(1, 2)), torch.tensor((1 + 4) / 2 + 16 / 2))


def test_a_time_limit_does_not_end_the_bootstrap():
    settings = config(env=EnvConfig(benchmark="ML1", tasks=("toy-reach-anywhere",), max_episode_steps=5, num_goals=3))
    engine = LocalEngine(settings, build_suite(settings))
    engine.advance(2 * HORIZON, lambda: True)
    found = engine.learner
    engine.close()
    assert isinstance(found, Pearl)
    assert isinstance(found.values, ValueNetwork)
    with torch.no_grad():
        for parameter in found.values.target_value.parameters():
            parameter.zero_()
        found.values.target_value.shared[-1].fill_(100.0)
    batch = found.sample(torch.tensor([0, 1] * 20))  # every fifth transition ends an episode at its time limit
    target = found.values.target(batch, torch.zeros(40, LATENT), found.act)
    torch.testing.assert_close(target, batch.reward + 0.99 * 100.0)


def test_rewards_are_scaled_for_the_critics_and_raw_for_the_encoder():
    found = learner()
    draws = np.random.default_rng(0)
    while not found.behind():
        found.receive(answer(found.request(), 2.0, draws))
    slots = torch.tensor([0, 1])
    assert set(found.sample(slots).reward.flatten().tolist()) == {10.0}
    assert set(found.sample_context(slots)[:, :, -1].flatten().tolist()) == {2.0}


def test_rewards_of_the_context_have_a_scale_of_their_own_in_training_and_at_meta_test():
    settings = {"context_reward_scale": 0.25}
    found, draws = learner(settings), np.random.default_rng(0)
    while not found.behind():
        found.receive(answer(found.request(), 2.0, draws))
    slots = torch.tensor([0, 1])
    assert set(found.sample_context(slots)[:, :, -1].flatten().tolist()) == {0.5}
    assert set(found.sample(slots).reward.flatten().tolist()) == {10.0}
    scaled, raw = PearlAdapter(config(settings), SUITE), PearlAdapter(config(), SUITE)
    episode = block(np.arange(2), np.array(2.0), draws)
    for adapter in (scaled, raw):
        adapter.begin(found.policy_weights(), 2)
    of_quarter = raw.observe(dataclasses.replace(episode, reward=episode.reward / 4))["z_mean"]
    np.testing.assert_array_equal(scaled.observe(episode)["z_mean"], of_quarter)


# what the encoder sees


def test_every_slot_is_collected_once_before_the_first_update():
    found = learner(meta=MetaConfig(batch_size=4), env=EnvConfig(benchmark="toy-ml", max_episode_steps=5, num_goals=5))
    draws, slots, tags = np.random.default_rng(0), list[int](), set[str]()
    for _ in range(3):
        request = found.request()
        slots += request.slots or ()
        tags.add(request.tag)
        assert [one.task_id * 5 + one.goals[0] for one in request.assignments or ()] == list(request.slots or ())
        found.receive(answer(request, 0.0, draws))
    # five goals of each class do not divide by two at a time: the first ones come again
    assert sorted(slots) == [0, 0, 1, 2, 3, 4, 5, 5, 6, 7, 8, 9]
    assert tags == {"initial"}
    assert found.request().tag == "prior"
    assert found.behind() == 0


def test_an_iteration_collects_prior_then_posterior_then_extra_episodes():
    found = learner()
    draws, asked = np.random.default_rng(0), list[tuple[str, int, bool]]()
    while not found.behind():
        request = found.request()
        assert found.request().weights.keys() == request.weights.keys()  # asking twice changes nothing
        asked.append((request.tag, request.amount, "z_mean" in request.weights))
        found.receive(answer(request, 0.0, draws))
    assert asked == [
        *[("initial", 1, False)] * 3,
        ("prior", 2, False),
        ("posterior", 1, True),
        ("extra", 1, True),
        ("extra", 1, True),
    ]
    assert [found.update() is not None for _ in range(3)] == [True, True, False]
    assert found.request().tag == "prior"


def test_steps_are_made_up_to_whole_episodes():
    assert [whole_episodes(steps, 30) for steps in (0, 1, 30, 31, 60)] == [0, 1, 1, 2, 2]
    plan = collection_plan(config({"prior_steps": 11, "posterior_steps": 0, "extra_steps": 6}))
    assert [(phase.tag, phase.episodes) for phase in plan] == [("prior", 3), ("extra", 1), ("extra", 1)]


def test_context_is_the_newest_collection_without_the_extra_steps():
    found = learner()
    seen = dict[int, set[float]]()  # slot → rewards that its context may hold
    for request, number in collections(found, 6):
        for slot in request.slots or ():
            if request.tag in ("initial", "prior"):
                seen[slot] = set()
            if request.tag != "extra":
                seen[slot].add(number)
            assert rewards_of_context(found, slot) == seen[slot], request.tag
    assert len(seen) == 6
    assert {len(rewards) for rewards in seen.values()} == {2}, "all slots were collected again"
    for slot, rewards in seen.items():  # while actor and critics learn from everything
        rows = found.replay.sample(torch.tensor([slot]), 2000, torch.Generator().manual_seed(0))
        assert set(rows.reward.flatten().tolist()) > rewards


def test_context_is_one_of_the_newest_collections_when_more_are_kept():
    found = learner({"contexts_kept": 2})
    rewards = dict[int, list[set[float]]]()  # slot → those of each of its collections
    for request, number in collections(found, 14):
        for slot in request.slots or ():
            if request.tag in ("initial", "prior"):
                rewards.setdefault(slot, []).append(set())
            if request.tag != "extra":
                rewards[slot][-1].add(number)
    assert min(len(seen) for seen in rewards.values()) >= 3, "all slots were collected so often"
    for slot, seen in rewards.items():
        drawn = [set(found.sample_context(torch.tensor([slot]))[0, :, -1].tolist()) for _ in range(60)]
        for context in drawn:
            assert any(context <= collection for collection in seen[-2:]), "of one collection only"
        assert set.union(*drawn) == set.union(*seen[-2:])


def test_contexts_of_a_replay_that_was_lost_are_forgotten():
    replay = Replay(1, 20, 1, 1, torch.device("cpu"))
    contexts, slots = NewestRanges(replay, kept=3), np.array([0])

    def collect(reward: float) -> None:
        contexts.begin(slots)
        column = np.full((4, 1), reward, np.float32)
        replay.add(0, column, column, column[:, 0], column, np.zeros(4, bool))
        contexts.extend(slots)

    for reward in (1.0, 2.0, 3.0):
        collect(reward)
    replay.clear(0)
    collect(4.0)
    rows = contexts.sample(torch.tensor([0] * 50), 1, torch.Generator().manual_seed(0))
    assert set(rows.reward.flatten().tolist()) == {4.0}


def test_context_is_drawn_at_random_from_all_of_it():
    found = learner({"context_size": 6000})
    draws = np.random.default_rng(0)
    while found.request().tag == "initial":
        found.receive(answer(found.request(), 0.0, draws))
    request = found.request()
    numbers = np.arange(2 * HORIZON)[:, np.newaxis]
    found.receive([block(np.array(request.slots), numbers, draws, "prior", 2 * HORIZON)])
    slot = torch.tensor([(request.slots or ())[0]])
    rows = found.sample_context(slot)[0, :, -1]
    counts = np.bincount(rows.numpy().astype(int))
    np.testing.assert_allclose(counts, 600, atol=120)  # each has a standard deviation of 23
    assert not torch.equal(rows, found.sample_context(slot)[0, :, -1])
    assert not torch.equal(rows, rows.sort().values)


def test_context_and_batch_are_drawn_independently():
    alone, beside = collected(learner()), collected(learner())
    slots = torch.tensor([0, 5])
    for _ in range(3):
        beside.sample_context(slots)
    assert torch.equal(alone.sample(slots).obs, beside.sample(slots).obs)
    alone.sample(slots)
    assert alone.sample(slots).obs.shape[:2] == (2, 7)
    assert alone.sample_context(slots).shape[:2] == (2, 6)


# how it acts


def acting(weights: dict[str, Array], num_episodes: int, slots: tuple[int, ...], horizon: int = 2) -> Array:
    """Returns the latent variables of a real collector, [episode, step, env, latent]."""
    settings = config(env=EnvConfig(benchmark="ML1", tasks=("toy-reach-anywhere",), max_episode_steps=horizon))
    suite = build_suite(settings)
    assignments = [Assignment(0, (goal,)) for goal in range(len(slots))]
    envs = build_envs(settings, assignments, terminate_on_success=False)
    collector = Collector(envs, PearlPolicy(settings, suite), torch.Generator().manual_seed(0), [0] * len(slots))
    actor = Pearl(settings, suite, torch.device("cpu")).policy_weights()
    parts = []
    for part in range(2):  # the second request is a new one with the same weights
        request = CollectRequest(
            {**actor, **weights}, part, Unit.EPISODES, num_episodes // 2, Mode.EXPLORE, tuple(assignments), slots
        )
        parts.append(collector.collect(request).extras["z"])
    envs.close()
    z: Array = np.concatenate(parts)
    return z.reshape(num_episodes, horizon, len(slots), LATENT)


def test_latent_variable_stays_for_an_episode_and_is_drawn_anew_for_the_next():
    z = acting({}, num_episodes=6, slots=(0, 1), horizon=4)
    assert (z == z[:, :1]).all()
    first = z[:, 0].reshape(12, LATENT)  # of all episodes and environments
    assert len(np.unique(first[:, 0])) == 12


def test_latent_variable_comes_from_the_posterior_of_its_slot():
    mean = np.arange(8 * LATENT, dtype=np.float32).reshape(8, LATENT)
    variance = np.full((8, LATENT), 0.25, np.float32)
    variance[5] = 4.0
    z = acting({"z_mean": mean, "z_variance": variance}, num_episodes=800, slots=(5, 2))[:, 0]
    for env, (slot, std) in enumerate(((5, 2.0), (2, 0.5))):
        # four standard errors of mean and deviation
        np.testing.assert_allclose(z[:, env].mean(axis=0), mean[slot], atol=4 * std / np.sqrt(800))
        np.testing.assert_allclose(z[:, env].std(axis=0), std, atol=4 * std / np.sqrt(1600))


def test_latent_variable_comes_from_the_prior_without_a_posterior():
    z = acting({}, num_episodes=800, slots=(0,))[:, 0, 0]
    np.testing.assert_allclose(z.mean(axis=0), 0.0, atol=4 / np.sqrt(800))
    np.testing.assert_allclose(z.std(axis=0), 1.0, atol=4 / np.sqrt(1600))


def test_weights_without_a_posterior_put_the_prior_back():
    policy, draws = PearlPolicy(config(), SUITE), torch.Generator().manual_seed(0)
    actor = learner().policy_weights()
    posterior = {"z_mean": np.full((1, LATENT), 50.0, np.float32), "z_variance": np.ones((1, LATENT), np.float32)}
    obs, blank = torch.ones(1, 6), Previous(torch.zeros(1, 2), torch.zeros(1), torch.zeros(1))
    found = []
    for weights in ({**actor, **posterior}, actor):
        policy.load(weights)
        state = policy.initial_state(1)
        step = policy.act(obs, blank, state, torch.zeros(1, dtype=torch.int64), Mode.DETERMINISTIC, draws)
        found.append(float(step.extras["z"].mean()))
    assert found[0] > 40.0
    assert abs(found[1]) < 10.0


@pytest.mark.parametrize("kept", [1, 2])
def test_posterior_that_acts_is_that_of_the_slots_own_newest_context(kept: int):
    found = learner({"context_size": 2000, "contexts_kept": kept})
    draws = np.random.default_rng(0)
    while (request := found.request()).tag in ("initial", "prior"):
        found.receive(answer(request, draws.normal(), draws))
    assert request.slots is not None
    for slot in request.slots:
        first = found.contexts.first[slot].max()
        held = found.replay._slot_rows(slot, first, first + 2 * HORIZON).unsqueeze(0)
        # every transition about 200 times: the mean is that of each once, the variance a two-hundredth
        mean, variance = product_of_gaussians(*found.encoder(held[:, :, :9]))
        np.testing.assert_allclose(request.weights["z_mean"][slot], mean[0].detach(), atol=2e-4)
        np.testing.assert_allclose(request.weights["z_variance"][slot] * 200, variance[0].detach(), rtol=0.05)
    other = ({*range(6)} - {*request.slots}).pop()
    assert (request.weights["z_mean"][other] == 0).all()
    assert (request.weights["z_variance"][other] == 1).all()


def test_actions_follow_the_latent_variable_in_every_mode_but_random():
    settings = config()
    policy = PearlPolicy(settings, SUITE)
    weights = learner().policy_weights()
    for name in weights:
        weights[name] = weights[name] * (100 if name.startswith("actor") else 1)
    policy.load(weights)
    obs, blank = torch.ones(2, 6), Previous(torch.zeros(2, 2), torch.zeros(2), torch.zeros(2))
    states = [torch.tensor([[z, 0.0, 0.0, 0.0]] * 2) for z in (-1.0, 1.0)]
    for mode in Mode:
        low, high = (
            policy.act(obs, blank, state, torch.zeros(2, dtype=torch.int64), mode, torch.Generator().manual_seed(0))
            for state in states
        )
        assert torch.equal(low.action, high.action) == (mode is Mode.RANDOM)
        assert torch.equal(low.state, states[0])
        assert low.action.abs().max() <= 1.0


def test_only_the_environments_that_begin_forget_their_latent_variable():
    policy = PearlPolicy(config(), SUITE)
    state = torch.tensor([[1.0, 2.0, 3.0, 0.0], [4.0, 5.0, 6.0, 0.0]])
    begun = policy.begin(state, torch.tensor([False, True]), Boundary.EPISODE)
    blank = Previous(torch.zeros(2, 2), torch.zeros(2), torch.zeros(2))
    slots, draws = torch.zeros(2, dtype=torch.int64), torch.Generator().manual_seed(0)
    after = policy.act(torch.ones(2, 6), blank, begun, slots, Mode.EXPLORE, draws).state
    assert after is not None
    assert torch.equal(after[0], state[0])
    assert not (after[1] == state[1])[:LATENT].any()
    again = policy.act(torch.ones(2, 6), blank, after, slots, Mode.EXPLORE, draws).state
    assert again is not None
    assert torch.equal(again, after)


# meta-test


def test_adapter_finds_the_posterior_of_everything_that_a_slot_experienced():
    found = learner()
    adapter = PearlAdapter(config(), SUITE)
    draws = np.random.default_rng(0)
    for trial in range(2):  # the second one must not remember the first
        adapter.begin(found.policy_weights(), 2)
        episodes = [block(np.array([1, 0]), draws.normal(size=(HORIZON, 2)), draws) for _ in range(3)]
        cut = dataclasses.replace(
            episodes[1], valid=np.repeat(np.arange(HORIZON)[:, None] < 3, 2, axis=1), reward=episodes[1].reward + 50.0
        )
        for one in (episodes[0], cut, episodes[2]):
            weights = adapter.observe(one)
        for env, slot in enumerate((1, 0)):
            parts = [
                context_rows(*(torch.from_numpy(column[:steps, env])[None] for column in columns), None)
                for one, steps in ((episodes[0], HORIZON), (cut, 3), (episodes[2], HORIZON))
                for columns in [(one.obs, one.action, one.reward)]
            ]
            mean, variance = product_of_gaussians(*found.encoder(torch.cat(parts, dim=1)))
            np.testing.assert_allclose(weights["z_mean"][slot], mean[0].detach(), rtol=1e-4, atol=1e-6, err_msg=trial)
            np.testing.assert_allclose(weights["z_variance"][slot], variance[0].detach(), rtol=1e-4)
        np.testing.assert_array_equal(adapter.adapt()["z_mean"], weights["z_mean"])


def test_adapter_explores_with_the_prior_first():
    found = learner()
    adapter = PearlAdapter(config({"prior_episodes": 2}), SUITE)
    draws = np.random.default_rng(0)
    assert "z_mean" not in adapter.begin(found.policy_weights(), 2)
    assert "z_mean" not in adapter.adapt()
    observed = [adapter.observe(block(np.arange(2), np.array(1.0), draws)) for _ in range(2)]
    assert ["z_mean" in weights for weights in observed] == [False, True]
    np.testing.assert_array_equal(observed[1]["actor.stack.shared.0"], found.policy_weights()["actor.stack.shared.0"])


# what it is saved with


def state_of(found: Pearl) -> dict[str, Any]:
    flat = dict[str, Any]()

    def walk(value: Any, path: str) -> None:
        if isinstance(value, dict):
            for key, inner in value.items():
                walk(inner, f"{path}/{key}")
        else:
            flat[path] = value

    walk(found.state_dict(), "")
    return flat


@pytest.mark.parametrize("learned_temperature", [False, True])
@pytest.mark.parametrize("until", [10, 60, 75, 80, 105, 190])  # in the initial collection, and in every phase after it
def test_a_restored_learner_goes_on_bit_for_bit(tmp_path: Path, until: int, learned_temperature: bool):
    settings = config(
        {"learned_temperature": learned_temperature},
        env=EnvConfig(benchmark="ML1", tasks=("toy-reach-anywhere",), max_episode_steps=5, num_goals=6),
    )
    suite = build_suite(settings)
    one, other = LocalEngine(settings, suite), LocalEngine(dataclasses.replace(settings, seed=9), suite)
    one.advance(until, lambda: False)
    state = {"learner": one.learner.state_dict(), "collection": one.collection_state()}
    folder = save_checkpoint(tmp_path, one.learner.env_steps, state, one.learner.replay, keep=1)
    loaded = load_state(folder)
    other.learner.load_state_dict(loaded["learner"])
    assert other.learner.replay is not None
    load_replay(tmp_path, folder, other.learner.replay)
    # goals are those of the seed: the environments of the other are replaced by those of the first
    other.close()
    other._collector = LocalEngine(settings, suite)._collector
    assert other.restore_collection(loaded["collection"])
    for engine in (one, other):
        engine.advance(until + 170, lambda: False)
    assert one.learner.gradient_steps >= 2
    expected, found = state_of(one.learner), state_of(other.learner)
    assert expected.keys() == found.keys()
    for path, value in expected.items():
        if isinstance(value, Tensor | np.ndarray):
            np.testing.assert_array_equal(np.asarray(found[path]), np.asarray(value), err_msg=path)
        else:
            assert found[path] == value, path
    one.close()
    other._collector.close()


def test_a_stopped_and_resumed_run_equals_the_one_that_was_not(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(training._Stop, "pause", lambda self: True)
    runs = []
    for folder, stop_at in (("whole", None), ("cut", 130)):
        settings = config(
            {"contexts_kept": 2},
            env=EnvConfig(benchmark="ML1", tasks=("toy-reach-anywhere",), max_episode_steps=5, num_goals=6),
            checkpoint=CheckpointConfig(every_env_steps=100, keep=20),
            eval=EvalConfig(every_env_steps=200, goals=2, final_goals=2),
            total_env_steps=400,
            runs_dir=str(tmp_path / folder),
        )
        ended = training.train(settings, StopAt(stop_at))
        assert (ended.stopped_by is not None) == (stop_at is not None)
        if stop_at is not None:
            assert training.resume(ended.run, (), StopAt(None)).stopped_by is None
        runs.append(ended.run)
    assert_equal_states(*runs)
    assert load_state(sorted((runs[0] / "checkpoints").iterdir())[-1])["learner"]["gradient_steps"] > 0


def test_without_its_replay_a_restored_learner_begins_with_all_slots_again():
    found, restored = collected(learner()), learner()
    restored.load_state_dict(found.state_dict())
    request = restored.request()
    assert request.tag == "initial"
    assert "z_mean" not in request.weights


def test_evaluating_a_run_again_needs_no_room_for_its_replay(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    settings = config(
        {"contexts_kept": 2},
        env=EnvConfig(benchmark="ML1", tasks=("toy-reach-anywhere",), max_episode_steps=5, num_goals=6),
        total_env_steps=60,
        runs_dir=str(tmp_path),
    )
    run = training.train(settings, StopAt(None)).run
    # of the 6 slots' transitions with 16 numbers, room for 25 of each but not for 60
    monkeypatch.setattr(ring, "available_bytes", lambda device: 6 * 30 * 16 * 4)
    assert settings.smallest_capacity() == 50
    again = training.evaluate(run, 2, StopAt(None))
    (at_the_end,) = (run / "evaluations").iterdir()
    assert again["estimators"] == json.loads(at_the_end.read_text())["estimators"]


# the other temperature


def test_learned_temperature_bootstraps_from_the_target_critics():
    found = collected(learner({"learned_temperature": True}, {"initial_alpha": 0.5}))
    assert isinstance(found.values, TargetCritics)
    batch = found.sample(torch.tensor([0, 3]))
    z = torch.randn(2, LATENT, generator=torch.Generator().manual_seed(0))
    action, log_prob = torch.rand(2, 7, 2) * 2 - 1, torch.randn(2, 7)
    target = found.values.target(batch, z, lambda obs, latent: (action, log_prob))
    rows = torch.cat([batch.next_obs, z[:, None].expand(2, 7, LATENT), action], dim=2)
    values = found.values.target_critics.stack(rows, None)[..., 0]
    expected = batch.reward + 0.99 * (torch.minimum(*values) - 0.5 * log_prob)
    torch.testing.assert_close(target, expected)


def test_learned_temperature_falls_while_the_policy_is_more_random_than_asked_for():
    found = collected(learner({"learned_temperature": True}, {"target_entropy": -50.0, "initial_alpha": 0.5}))
    metrics = found.update()
    assert metrics is not None
    assert float(metrics.values["train/alpha"]) < 0.5
    assert "train/loss/value" not in metrics.values


# what is refused

TOO_SMALL = (
    "replay.capacity_per_task: {} of pearl's collections bring a slot up to {} transitions, and its context would be "
    "larger than its buffer of {}; take at least {}, or lower pearl.contexts_kept or the steps that pearl collects"
)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"replay": ReplayConfig(capacity_per_task=24)},
            TOO_SMALL.format(1, 25, 24, 25),
        ),
        (
            {"pearl": {"contexts_kept": 3}},
            TOO_SMALL.format(3, 75, 60, 75),
        ),
        (
            {"pearl": {"initial_steps": 61}},
            TOO_SMALL.format(1, 65, 60, 65),
        ),
        (
            {"sac": {"reward_scaling": "per_task_return"}},
            "sac.reward_scaling: pearl has one scale for all tasks, its temperature; take constant or none",
        ),
        (
            {"surgery": SurgeryConfig(method="pcgrad")},
            "surgery.method: pearl has one loss for all sampled tasks together; take mean",
        ),
        ({"pearl": {"prior_steps": 0}}, "pearl.prior_steps: 0 is too small; it must be at least 1"),
    ],
)
def test_settings_that_cannot_be_are_refused_in_one_line(changes: dict[str, Any], message: str):
    with pytest.raises(ConfigError) as caught:
        config(**changes)
    assert str(caught.value) == message


def test_more_goals_at_once_than_there_are_are_refused():
    with pytest.raises(ConfigError, match=r"meta\.batch_size: 8 asks for 4 goals of each of the 2 .* take at most 6"):
        learner(meta=MetaConfig(batch_size=8))


# what it learns


@pytest.fixture(scope="module")
def learned() -> Iterator[tuple[RunConfig, LocalEngine]]:
    """Returns the toy row, trained."""
    settings = load_config(TOY)
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    engine = LocalEngine(settings, build_suite(settings))
    engine.advance(settings.total_env_steps, lambda: False)
    torch.set_num_threads(threads)
    yield settings, engine
    engine.close()


@pytest.mark.slow
@pytest.mark.parametrize("adapts", [True, False], ids=["adaptation", "adaptation cut"])
def test_adapted_policies_do_better_than_the_prior_on_held_out_goals(
    learned: tuple[RunConfig, LocalEngine], adapts: bool, monkeypatch: pytest.MonkeyPatch
):
    settings, engine = learned
    if not adapts:
        monkeypatch.setattr(PearlAdapter, "adapt", lambda self: self._weights)
    evaluator = MetaEvaluator(settings, build_suite(settings))
    episodes = evaluator.run(engine.learner.policy_weights(), 50)
    evaluator.close()
    held_out = episodes.task_id == 1
    prior, adapted = (episodes.returns[held_out & (episodes.adapted == point)].mean() for point in (0, 6))
    # seeds 1, 2 and 3 end at 154, 125 and 126 against 68, 68 and 64: about twice the prior's return
    assert (adapted > 1.5 * prior) == adapts


# on Ray


@pytest.mark.ray
@pytest.mark.parametrize("workers", [1, 2])
def test_workers_collect_what_one_process_does(workers: int):
    pytest.importorskip("ray")
    from mtrl.engine.build import build_engine

    settings = config(env=EnvConfig(benchmark="ML1", tasks=("toy-reach-anywhere",), max_episode_steps=5, num_goals=6))
    rllib = RllibConfig(num_env_runners=workers, num_cpus_per_env_runner=0.5, object_store_bytes=80_000_000)
    remote = dataclasses.replace(settings, engine="rllib", rllib=rllib)
    learners = []
    for one in (settings, remote):
        engine = build_engine(one, build_suite(one))
        engine.advance(160, lambda: False)
        learners.append(engine.learner)
        engine.close()
    local, found = learners
    assert isinstance(local, Pearl)
    assert isinstance(found, Pearl)
    assert local.gradient_steps == found.gradient_steps == 4
    np.testing.assert_array_equal(found.contexts.begun, local.contexts.begun)
    np.testing.assert_array_equal(found.contexts.first, local.contexts.first)
    np.testing.assert_array_equal(found.contexts.count, local.contexts.count)
    if workers == 1:  # more of them draw other noise
        for name, number in local.actor.state_dict().items():
            np.testing.assert_array_equal(found.actor.state_dict()[name], number, err_msg=name)

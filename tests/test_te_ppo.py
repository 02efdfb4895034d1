"""Task embeddings: one draw for each episode, what the density depends on, the raised reward, and what infers."""

from __future__ import annotations

import dataclasses
import math
from typing import Any

import numpy as np
import pytest
import torch
from builders import tiny_config

from mtrl.config import EnvConfig, NetworkConfig, OnPolicyConfig, PpoConfig, RunConfig, SurgeryConfig, TePpoConfig
from mtrl.data import Block, Trajectories
from mtrl.learners.build import build_learner
from mtrl.learners.episodes import PolicyBatch, policy_batch
from mtrl.learners.on_policy import MultiTaskOnPolicy
from mtrl.learners.ppo import Ppo
from mtrl.learners.protocol import Boundary, Mode, Previous
from mtrl.learners.te_policy import TaskEmbeddingPolicy
from mtrl.learners.te_ppo import TaskEmbeddingPpo, window_index
from mtrl.learners.trust_region import flat
from mtrl.networks.gaussian import log_prob
from mtrl.networks.task_embedding import TaskEmbeddingGaussian
from mtrl.rollout.build import build_collector, build_suite

pytestmark = pytest.mark.usefixtures("one_torch_thread")
CPU = torch.device("cpu")
LATENT = 3


def config_of(**changes: Any) -> RunConfig:
    settings: dict[str, Any] = {
        "algorithm": "te_ppo",
        "env": EnvConfig(benchmark="toy", max_episode_steps=9, num_goals=4, copies=2),
        "network": NetworkConfig(architecture="one_hot", actor_widths=(8, 8), activation="tanh"),
        "on_policy": OnPolicyConfig(episodes=2),
        "ppo": PpoConfig(lr=1e-2, epochs=1, minibatches=1),
        "te_ppo": TePpoConfig(latent_dim=LATENT, window=3, inference_widths=(8,)),
    }
    return tiny_config(**{**settings, **changes})


def collected(config: RunConfig) -> tuple[MultiTaskOnPolicy, Block]:
    learner = build_learner(config, build_suite(config), CPU)
    assert isinstance(learner, MultiTaskOnPolicy)
    collector = build_collector(config, build_suite(config))
    block = collector.collect(learner.request())
    collector.close()
    return learner, block


@pytest.fixture(scope="module")
def episodes() -> tuple[MultiTaskOnPolicy, Trajectories]:
    learner, block = collected(config_of())
    return learner, Trajectories.from_blocks([block], 4)


def parts_of(learner: MultiTaskOnPolicy) -> tuple[TaskEmbeddingGaussian, TaskEmbeddingPpo]:
    assert isinstance(learner.network, TaskEmbeddingGaussian)
    assert isinstance(learner._improvement, TaskEmbeddingPpo)
    return learner.network, learner._improvement


# acting


def test_an_episode_draws_its_embedding_once(episodes):
    _, trajectories = episodes
    noise = trajectories.extras["noise"]  # [task, episode, step, latent]
    np.testing.assert_array_equal(noise, np.broadcast_to(noise[:, :, :1], noise.shape))
    drawn = noise[:, :, 0].reshape(-1, LATENT)
    assert len(np.unique(drawn, axis=0)) == len(drawn) == 4 * 4


def policy_of(config: RunConfig, learner: MultiTaskOnPolicy) -> TaskEmbeddingPolicy:
    policy = TaskEmbeddingPolicy(config, build_suite(config))
    policy.load(learner.policy_weights())
    return policy


def test_evaluation_acts_with_the_mean_embedding_of_the_task(episodes):
    learner, _ = episodes
    network, _ = parts_of(learner)
    policy, slot = policy_of(config_of(), learner), torch.tensor([3, 1])
    obs = torch.randn(2, 6, generator=torch.Generator().manual_seed(0))
    blank = Previous(torch.zeros(2, 2), torch.zeros(2), torch.zeros(2))
    answer = policy.act(obs, blank, policy.initial_state(2), slot, Mode.DETERMINISTIC, torch.Generator())
    with torch.no_grad():
        rows = torch.cat([obs, torch.tanh(network.mean)[slot]], dim=1).unsqueeze(0)
        expected = network.network(rows)[0][0]
    torch.testing.assert_close(answer.action, expected.clamp(-1, 1))
    assert not answer.extras


@pytest.mark.parametrize("boundary", list(Boundary))
def test_only_where_an_episode_begins_is_an_embedding_drawn(episodes, boundary):
    learner, _ = episodes
    policy, slot, generator = policy_of(config_of(), learner), torch.tensor([0, 1]), torch.Generator().manual_seed(0)
    blank = Previous(torch.zeros(2, 2), torch.zeros(2), torch.zeros(2))
    first = policy.act(torch.zeros(2, 6), blank, policy.initial_state(2), slot, Mode.EXPLORE, generator)
    state = policy.begin(first.state, torch.tensor([False, True]), boundary)
    second = policy.act(torch.zeros(2, 6), blank, state, slot, Mode.EXPLORE, generator)
    assert torch.equal(first.extras["noise"][0], second.extras["noise"][0])
    assert not torch.equal(first.extras["noise"][1], second.extras["noise"][1])


# learning


def test_the_density_at_the_start_is_that_which_acted(episodes):
    learner, trajectories = episodes
    network, improvement = parts_of(learner)
    batch = improvement.batch(trajectories)
    with torch.no_grad():
        mean, log_std = network(batch.obs, torch.arange(4))
    torch.testing.assert_close(log_prob(batch.sample, mean, log_std), batch.log_prob, rtol=1e-4, atol=1e-4)


def test_the_density_depends_on_the_embedding_of_its_own_task(episodes):
    learner, trajectories = episodes
    network, improvement = parts_of(learner)
    batch = improvement.batch(trajectories)
    losses = Ppo(config_of(), network, CPU).losses(batch, None)
    for parameter in network.private:
        (gradient,) = torch.autograd.grad(losses[2], parameter, retain_graph=True)
        assert gradient[2].abs().min() > 0.0
        assert not gradient[[0, 1, 3]].any()


@pytest.mark.parametrize("method", ["mean", "pcgrad"])
def test_policy_and_embeddings_learn_together(method):
    learner, block = collected(config_of(surgery=SurgeryConfig(method=method)))
    before = {name: value.clone() for name, value in learner.network.state_dict().items()}
    learner.receive([block])
    learner.update()
    unchanged = [name for name, value in learner.network.state_dict().items() if torch.equal(value, before[name])]
    assert not unchanged


def test_surgery_leaves_embeddings_their_own_gradient():
    """One step with and without surgery of tasks in conflict moves the policy differently, and embeddings alike."""
    found = []
    for method in ("mean", "pcgrad"):
        config = config_of(
            surgery=SurgeryConfig(method=method),
            ppo=PpoConfig(lr=1e-2, epochs=1, minibatches=1, max_grad_norm=None),
        )
        learner, block = collected(config)
        learner.receive([block])
        assert learner._batch is not None
        columns = {name: column[:1].expand_as(column) for name, column in learner._batch.state_dict().items()}
        columns["advantage"] = columns["advantage"] * torch.tensor([[1.0], [-2.0], [1.0], [0.5]])
        learner._batch = PolicyBatch(**columns)
        learner.update()
        found.append(parts_of(learner)[0])
    plain, surgery = found
    for one, other in zip(plain.private, surgery.private, strict=True):
        torch.testing.assert_close(one, other)
    # where Adam's first step goes is the sign of the gradient, which surgery turns for some numbers
    assert float((flat(plain.shared) - flat(surgery.shared)).detach().abs().max()) > 1e-2


def test_entropy_of_embeddings_is_rewarded(episodes):
    learner, trajectories = episodes
    network, improvement = parts_of(learner)
    batch = improvement.batch(trajectories)
    batch = dataclasses.replace(batch, advantage=torch.zeros_like(batch.advantage))
    ppo = PpoConfig(entropy_coefficient=0.0)
    config = config_of(ppo=ppo, te_ppo=TePpoConfig(latent_dim=LATENT, encoder_entropy_coefficient=0.5))
    regularized = TaskEmbeddingPpo(config, build_suite(config), network, CPU)._ppo
    # the standard deviation begins at half of 0.2
    nats = LATENT * (math.log(0.1) + 0.5 * math.log(2 * math.pi * math.e))
    torch.testing.assert_close(regularized.losses(batch, None).detach(), torch.full((4,), -0.5 * nats))


def test_window_holds_the_newest_steps_of_the_episode():
    # episodes of 4 steps: 0 1 2 3 | 4 5 6 7
    found = window_index(torch.tensor([[0, 1, 3, 4, 6]]), length=4, window=3)
    assert found.tolist() == [[[0, 0, 0], [1, 0, 0], [3, 2, 1], [4, 4, 4], [6, 5, 4]]]


def test_embeddings_are_inferred_from_the_newest_observations_and_the_action(episodes):
    learner, trajectories = episodes
    network, improvement = parts_of(learner)
    batch = improvement.batch(trajectories)
    index = torch.tensor([[0, 13], [1, 17], [35, 9], [20, 2]])  # [task, chosen]; 4 episodes of 9 steps
    with torch.no_grad():
        found = improvement.log_density(batch.obs, batch.sample, index)
        for task in range(4):
            for column in range(2):
                episode, step = divmod(int(index[task, column]), 9)
                past = [trajectories.obs[task, episode, max(step - back, 0)] for back in range(3)]
                row = np.concatenate([*past, trajectories.action[task, episode, step]])
                mean, log_std = improvement.inference(torch.from_numpy(row).view(1, 1, -1), None).view(-1).chunk(2)
                noise = torch.from_numpy(trajectories.extras["noise"][task, episode, step])
                embedding, std = (one[task] for one in network.embedding())
                expected = torch.distributions.Normal(mean, log_std.exp()).log_prob(embedding + std * noise).sum()
                torch.testing.assert_close(found[task, column], expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("coefficient", [0.0, 2.0])
def test_rewards_are_raised_by_how_well_the_embedding_is_inferred(episodes, coefficient):
    learner, trajectories = episodes
    network, _ = parts_of(learner)
    te_ppo = TePpoConfig(latent_dim=LATENT, window=3, inference_widths=(8,), inference_coefficient=coefficient)
    config = config_of(te_ppo=te_ppo)
    improvement = TaskEmbeddingPpo(config, build_suite(config), network, CPU)
    with torch.no_grad():
        improvement.inference.shared[-1].copy_(torch.tensor([[0.0, 0.0, 0.0, -0.3, -0.3, -0.3]]))
    batch = improvement.batch(trajectories)
    index = torch.arange(36).expand(4, -1)
    with torch.no_grad():
        density = improvement.log_density(batch.obs, batch.sample, index)
    assert (density > 3.0).any() or (density < -3.0).any()
    assert ((density > -3.0) & (density < 3.0)).any()
    bonus = coefficient * density.clamp(-3.0, 3.0).view(4, 4, 9).numpy()
    obs = np.concatenate([trajectories.obs, trajectories.extras["noise"]], axis=3)
    raised = dataclasses.replace(trajectories, obs=obs, reward=trajectories.reward + bonus)
    expected = policy_batch(raised, config.on_policy, CPU)
    torch.testing.assert_close(batch.advantage, expected.advantage, rtol=1e-4, atol=1e-4)


def test_what_infers_learns_to_infer():
    config = config_of(ppo=PpoConfig(lr=1e-9, epochs=200, minibatches=1))
    learner, block = collected(config)
    _, improvement = parts_of(learner)
    learner.receive([block])
    batch = learner._batch
    assert batch is not None
    index = torch.arange(36).expand(4, -1)
    density = []
    for _ in range(2):
        with torch.no_grad():
            density.append(float(improvement.log_density(batch.obs, batch.sample, index).mean()))
        learner.update()
    assert density[1] > density[0] + 1.0
    assert learner.gradient_steps == 2 * 200

"""The SAC learner: when it asks, when it updates, what an update does, what is refused."""

import copy
import dataclasses

import numpy as np
import pytest
import torch
from builders import CountingEnvs, filled_learner, suite, tiny_config

from mtrl.config import ConfigError, SacConfig, SurgeryConfig
from mtrl.data import Block
from mtrl.learners.mtsac import MultiTaskSac, NonFiniteError
from mtrl.learners.policies import SacPolicy
from mtrl.learners.protocol import Mode, Previous
from mtrl.learners.reward_scaling import RewardScaling, largest_discounted_return
from mtrl.networks.actor import squashed_sample
from mtrl.rollout.collector import Collector


def learner(num_tasks=2, **sac):
    settings = {"batch_size": 4, "warmup_steps_per_task": 10, "samples_per_insert": 4.0, **sac}
    return MultiTaskSac(tiny_config(sac=SacConfig(**settings)), suite(num_tasks, obs_dim=3), torch.device("cpu"))


def collect(learner, rounds=1):
    collector = Collector(
        CountingEnvs(num_envs=2), SacPolicy(tiny_config().network, suite(2, obs_dim=3)), torch.Generator(), seeds=[0, 1]
    )
    for _ in range(rounds):
        learner.receive([collector.collect(learner.request())])


def count_updates(learner):
    updates = 0
    while learner.update() is not None:
        updates += 1
    return updates


def test_actions_are_random_until_the_warm_up_is_over():
    young = learner()
    collect(young, rounds=9)
    assert young.request().mode is Mode.RANDOM
    collect(young, rounds=1)
    assert young.request().mode is Mode.EXPLORE


def test_updates_keep_to_the_samples_per_insert():
    counted = learner()
    collect(counted, rounds=10)
    assert count_updates(counted) == 0
    # 5 vector steps of 2 environments x 4 samples per insert = 40 samples = 5 updates of 2 x 4
    collect(counted, rounds=5)
    assert count_updates(counted) == 5
    assert counted.gradient_steps == 5


def test_fractions_of_an_update_are_not_lost():
    slow = learner(samples_per_insert=1.0)
    collect(slow, rounds=10)
    updates = []
    for _ in range(8):
        collect(slow)
        updates.append(count_updates(slow))
    assert updates == [0, 0, 0, 1, 0, 0, 0, 1]


@pytest.mark.parametrize("method", ["mean", "pcgrad"])
def test_a_step_is_adam_on_the_clipped_gradient_of_the_mean_loss(method):
    """Two tasks with the same transitions and equal heads do not conflict, so that surgery is plain training."""
    made = filled_learner(num_tasks=2, method=method)
    with torch.no_grad():
        for head in (*made.actor.stack.private, *made.critics.stack.private):
            head[:, 1] = head[:, 0]
        for stack in (made.actor.stack, made.critics.stack):
            stack.shared[0][:, :, -2:] = 0.0  # the columns of the one-hot task id
    batch = made.sample()
    batch = dataclasses.replace(
        batch,
        **{
            name: getattr(batch, name)[:1].expand_as(getattr(batch, name))
            for name in ("obs", "action", "reward", "next_obs", "terminated")
        },
    )
    target = torch.ones(2, 8)
    made.critic_target = lambda batch: target
    reference = copy.deepcopy(made.critics)
    adam = torch.optim.Adam(reference.parameters(), lr=3e-4, eps=1e-5)
    for _ in range(3):
        made._update_critics(batch, measure=False)
        (reference(batch.obs, batch.action, batch.task_id) - target).square().mean().backward()
        torch.nn.utils.clip_grad_norm_(reference.parameters(), 1.0)
        adam.step()
        adam.zero_grad()
    for found, expected in zip(made.critics.parameters(), reference.parameters(), strict=True):
        torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("architecture", ["one_hot", "multi_head"])
def test_an_actor_step_is_adam_on_the_gradient_of_the_mean_loss(architecture):
    made = filled_learner(architecture=architecture)
    batch, noise = made.sample(), torch.randn(3, 8, 2, generator=torch.Generator().manual_seed(0))
    made._normal = lambda like: noise
    reference = copy.deepcopy(made.actor)
    adam = torch.optim.Adam(reference.parameters(), lr=3e-4, eps=1e-5)
    for _ in range(3):
        made._update_actor(batch, measure=False)
        mean, log_std = reference(batch.obs, batch.task_id)
        action, log_prob = squashed_sample(mean, log_std, noise)
        q = made.critics(batch.obs, action, batch.task_id).min(dim=0).values
        adam.zero_grad()
        (made.log_alpha.exp().detach()[:, None] * log_prob - q).mean().backward()
        torch.nn.utils.clip_grad_norm_(reference.parameters(), 1.0)
        adam.step()
    for found, expected in zip(made.actor.parameters(), reference.parameters(), strict=True):
        torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("method", ["mean", "pcgrad", "direction_only", "magnitude_only"])
@pytest.mark.parametrize("architecture", ["one_hot", "multi_head"])
def test_every_method_moves_every_parameter(method, architecture):
    made = filled_learner(method=method, architecture=architecture)
    before = [p.detach().clone() for p in (*made.actor.parameters(), *made.critics.parameters(), made.log_alpha)]
    metrics = made.update()
    after = [*made.actor.parameters(), *made.critics.parameters(), made.log_alpha]
    assert all(not torch.equal(old, new) for old, new in zip(before, after, strict=True))
    assert metrics.values["train/loss/critic"].shape == (3,)
    assert metrics.values["train/alpha"].shape == (3,)


def test_measuring_does_not_change_training_under_surgery():
    runs = []
    for every in (0, 1):
        config = dataclasses.replace(tiny_config(), surgery=SurgeryConfig(method="pcgrad", statistics_every=every))
        made = MultiTaskSac(config, suite(), torch.device("cpu"))
        source = filled_learner()
        made.replay, made.env_steps = source.replay, 10**9
        for _ in range(3):
            made.update()
        runs.append(made)
    for a, b in zip(runs[0].actor.parameters(), runs[1].actor.parameters(), strict=True):
        assert torch.equal(a, b)


def test_measurements_are_reported_for_actor_and_critics():
    config = dataclasses.replace(tiny_config(), surgery=SurgeryConfig(statistics_every=2))
    made = MultiTaskSac(config, suite(), torch.device("cpu"))
    made.replay, made.env_steps = filled_learner().replay, 10**9
    first, second = made.update(), made.update()
    assert {"actor/cosine", "critic/conflicts", "critic/xi", "actor/magnitude_similarity"} <= set(first.matrices)
    assert first.matrices["actor/cosine"].shape == (3, 3)
    assert {"pcgrad/critic/curvature", "pcgrad/actor/curvature"} <= set(first.values)
    assert not second.matrices


def test_curvature_of_a_step_is_that_of_the_loss_along_it():
    """Twice what the loss after the step has more than its first-order expansion says."""
    made = filled_learner()
    made._critic_descent._max_grad_norm = None
    made._critic_optimizer = torch.optim.SGD(made.critics.parameters(), lr=1e-4)
    made._critic_descent._optimizer = made._critic_optimizer
    batch = made.sample()
    noise = made._noise.get_state()
    target = made.critic_target(batch)

    def loss():
        return float((made.critics(batch.obs, batch.action, batch.task_id) - target).square().mean().detach())

    params = list(made.critics.parameters())
    before, old = loss(), [p.detach().clone() for p in params]
    gradient = torch.autograd.grad(
        (made.critics(batch.obs, batch.action, batch.task_id) - target).square().mean(), params
    )
    made._noise.set_state(noise)
    metrics = made._update_critics(batch, measure=True)
    dot = sum(float((g * (p.detach() - o)).sum()) for g, p, o in zip(gradient, params, old, strict=True))
    # float32 losses of some tens leave an error of about 1e-5 in their difference
    assert float(metrics.values["pcgrad/critic/curvature"]) == pytest.approx(2 * (loss() - before - dot), abs=3e-5)
    assert dot < 0


def test_equal_seeds_give_equal_weights_and_other_seeds_do_not():
    weights = []
    for seed in (1, 1, 2):
        made = MultiTaskSac(tiny_config(seed=seed), suite(), torch.device("cpu"))
        made.replay, made.env_steps = filled_learner().replay, 10**9
        for _ in range(5):
            made.update()
        weights.append(torch.cat([p.detach().flatten() for p in made.actor.parameters()]))
    assert torch.equal(weights[0], weights[1])
    assert not torch.equal(weights[0], weights[2])


def test_a_saved_learner_goes_on_the_same():
    whole = filled_learner(method="pcgrad")
    for _ in range(3):
        whole.update()
    half = filled_learner(method="pcgrad")
    state = whole.state_dict()
    state = {
        **state,
        **{n: {k: v.clone() for k, v in state[n].items()} for n in ("actor", "critics", "target_critics")},
    }
    half.load_state_dict(state)
    for made in (whole, half):
        for _ in range(3):
            made.update()
    for a, b in zip(whole.critics.parameters(), half.critics.parameters(), strict=True):
        assert torch.equal(a, b)


def test_nan_from_an_environment_is_refused_with_task_goal_and_worker():
    made = learner()
    collector = Collector(
        CountingEnvs(num_envs=2), SacPolicy(tiny_config().network, suite(2, obs_dim=3)), torch.Generator(), seeds=[0, 1]
    )
    block = collector.collect(made.request())
    reward = block.reward.copy()
    reward[0, 1] = np.nan
    broken = Block(**{**{f.name: getattr(block, f.name) for f in dataclasses.fields(block)}, "reward": reward})
    with pytest.raises(
        NonFiniteError, match="reward of task-1 goal 0 from worker 0, environment 1, at update 0: its environment"
    ):
        made.receive([broken])
    assert made.replay.added.tolist() == [0, 0]


def test_surgery_of_one_task_is_refused_with_the_fix():
    with pytest.raises(ConfigError, match=r"needs at least 2 tasks, the run has 1; set surgery.method=mean"):
        MultiTaskSac(tiny_config(surgery=SurgeryConfig(method="pcgrad")), suite(1), torch.device("cpu"))


def test_single_task_learning_needs_no_surgery():
    single = filled_learner(num_tasks=1)
    assert single.update() is not None


def test_policies_sample_or_take_the_mode():
    policy = SacPolicy(tiny_config().network, suite())
    policy.load({name: p.numpy() for name, p in filled_learner().actor.state_dict().items()})
    obs, slot = torch.randn(4, 5), torch.tensor([0, 1, 2, 0])
    previous = Previous(torch.zeros(4, 2), torch.zeros(4), torch.zeros(4))
    generator = torch.Generator().manual_seed(0)
    modes = [
        policy.act(obs, previous, None, slot, mode, generator).action
        for mode in (Mode.DETERMINISTIC, Mode.DETERMINISTIC, Mode.EXPLORE, Mode.EXPLORE, Mode.RANDOM)
    ]
    assert torch.equal(modes[0], modes[1])
    assert not torch.equal(modes[2], modes[3])
    assert all(action.abs().max() <= 1 for action in modes)


def test_largest_discounted_return_by_hand():
    # from the third step 4; from the second 0 + 0.5 * 4; from the first -10 + 0.5 * 2
    assert largest_discounted_return([-10.0, 0.0, 4.0], 0.5) == 9.0


def test_rewards_are_scaled_per_task_by_the_largest_return():
    scaling = RewardScaling(SacConfig(gamma=0.5, reward_scaling="per_task_return", reward_scale=2.0), 2)
    assert scaling.factors().tolist() == [2.0, 2.0]
    collector = Collector(
        CountingEnvs(num_envs=2), SacPolicy(tiny_config().network, suite(2, obs_dim=3)), torch.Generator(), seeds=[0, 1]
    )
    made = learner()
    for _ in range(2):  # an episode that spans two blocks: 1 + 0.5 + 0.25
        scaling.observe(collector.collect(dataclasses.replace(made.request(), amount=2)))
    assert scaling.largest_return.tolist() == [1.75, 1.75]
    np.testing.assert_allclose(scaling.factors(), [2 / 1.75] * 2)


def test_the_replay_keeps_raw_rewards_and_the_batch_scaled_ones():
    made = filled_learner(reward_scaling="constant", reward_scale=0.1)
    stored = made.replay.sample(torch.tensor([0]), 200, torch.Generator().manual_seed(0)).reward
    assert float(stored.max()) > 5
    assert float(made.sample().reward.max()) <= 1.0


def test_loaded_weights_are_sent_with_a_version_of_their_own():
    made, other = filled_learner(), filled_learner()
    other.update()
    before = made.request()
    made.load_weights(other.state_dict())
    after = made.request()
    assert after.version > before.version
    name = "stack.shared.0"
    np.testing.assert_array_equal(after.weights[name], other.request().weights[name])
    assert not np.array_equal(after.weights[name], before.weights[name])

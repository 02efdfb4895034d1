"""RL²: its memory through trials, advantages through borders, PPO, adaptation by remembering; what it learns."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from builders import CountingEnvs, tiny_config
from test_resume import StopAt, assert_equal_states
from torch import Tensor

from envs.episodes import Assignment
from mtrl import load_policy
from mtrl import train as training
from mtrl.checkpoint import load_state, newest_checkpoint
from mtrl.config import (
    CheckpointConfig,
    ConfigError,
    EnvConfig,
    EvalConfig,
    MetaConfig,
    NetworkConfig,
    OnPolicyConfig,
    PpoConfig,
    Rl2Config,
    RunConfig,
    SurgeryConfig,
)
from mtrl.config_io import load_config
from mtrl.data import Array, Block
from mtrl.engine.local import LocalEngine
from mtrl.learners import trials as trials_module
from mtrl.learners.protocol import Boundary, CollectRequest, Mode, PolicyStep, Unit
from mtrl.learners.rl2 import Rl2
from mtrl.learners.rl2_policy import START_HIDDEN, START_PREVIOUS, Rl2Adapter, Rl2Policy, Rl2Steps
from mtrl.learners.trials import TrialBatch, network_inputs, trial_advantages, trial_batch
from mtrl.meta_evaluation import MetaEvaluator
from mtrl.networks.build import Suite, build_recurrent
from mtrl.networks.gaussian import log_prob
from mtrl.networks.recurrent import RecurrentGaussian
from mtrl.rollout.build import build_envs, build_suite
from mtrl.rollout.collector import Collector

pytestmark = pytest.mark.usefixtures("one_torch_thread")
SUITE = Suite(("a", "b"), obs_dim=3, action_dim=2, test_task_names=("c",))
TOY_ROW = Path(__file__).parents[1] / "configs" / "toy" / "rl2_ppo.yaml"


def config(**changes: Any) -> RunConfig:
    return tiny_config(
        algorithm="rl2_ppo",
        env=EnvConfig(benchmark="toy-ml", max_episode_steps=7, num_goals=4),
        network=NetworkConfig(actor_widths=(8,), activation="tanh"),
        **{
            "meta": MetaConfig(batch_size=4, episodes=3, adaptation_episodes=2, test_episodes=2),
            "ppo": PpoConfig(lr=1e-2, epochs=2, minibatches=2),
            "rl2": Rl2Config(hidden_size=8),
            **changes,
        },
    )


def weights_of(network: RecurrentGaussian) -> dict[str, Array]:
    return {name: value.numpy() for name, value in network.state_dict().items()}


def lively_network(settings: RunConfig, suite: Suite = SUITE) -> RecurrentGaussian:
    """A network whose actions depend on what it remembers; at the start its output layer is almost zero."""
    network = build_recurrent(
        settings.network, settings.on_policy, settings.rl2, suite, torch.Generator().manual_seed(1)
    )
    with torch.no_grad():
        network.head_weight *= 100.0
    return network


class CountedRewards(CountingEnvs):
    """Every step of an environment has another reward: 1, 2, 3, ...; episodes of environment 0 are shorter."""

    rewarded = 0.0

    def step(self, actions: Array, *, out: Array | None = None) -> Any:
        self.horizon = np.array([2, 3])
        obs, _, *rest = super().step(actions, out=out)
        self.rewarded += 1.0
        return obs, np.full(self.num_envs, self.rewarded), *rest


class Spy(Rl2Policy):
    """Keeps every state after a step."""

    def __init__(self, settings: RunConfig, suite: Suite) -> None:
        super().__init__(settings, suite)
        self.states: list[Tensor] = []

    def act(self, *arguments: Any) -> PolicyStep:
        step = super().act(*arguments)
        assert step.state is not None
        self.states.append(step.state.clone())
        return step


class Forgetful(Rl2Policy):
    """Forgets at the end of every episode, as plain recurrent PPO would."""

    def begin(self, state: Tensor | None, mask: Tensor, boundary: Boundary) -> Tensor:
        return super().begin(state, mask, Boundary.TRIAL)


def trial_request(weights: Mapping[str, Array], version: int, episodes: int, **more: Any) -> CollectRequest:
    return CollectRequest(
        weights, version, Unit.TRIALS, 1, Mode.EXPLORE, slots=(0, 1), episodes_per_trial=episodes, **more
    )


def counted_trial(policy: Rl2Policy, weights: Mapping[str, Array], episodes: int = 2) -> Block:
    made = Collector(CountedRewards(), policy, torch.Generator().manual_seed(2), seeds=[0, 1])
    return made.collect(trial_request(weights, 0, episodes))


def small(**changes: Any) -> RunConfig:
    """Trials of two episodes in two environments of CountedRewards."""
    return config(**{"meta": MetaConfig(batch_size=2, episodes=2), **changes})


# ---- the network


def test_one_step_at_a_time_equals_whole_sequences() -> None:
    network = lively_network(config())
    inputs = torch.randn(3, 40, 7, generator=torch.Generator().manual_seed(3))
    begin = torch.randn(3, 8, generator=torch.Generator().manual_seed(4))
    mean, log_std, hiddens = network(inputs, begin)
    hidden = begin
    for step in range(40):
        found = network(inputs[:, step : step + 1], hidden)
        hidden = found[2][:, 0]
        # float32: sums in another order
        for one, whole in zip(found, (mean, log_std, hiddens), strict=True):
            torch.testing.assert_close(one[:, 0], whole[:, step], rtol=0, atol=1e-6)
    assert (mean[:, 20] - network(inputs[:, 20:21], begin)[0][:, 0]).abs().max() > 1e-2  # memory matters


@pytest.mark.parametrize("num_threads", [2, 3, 8])
def test_a_single_step_is_a_sequence_of_one_however_many_threads_share_it(num_threads: int) -> None:
    settings, generator = config(), torch.Generator().manual_seed(0)
    network = lively_network(settings)
    obs, previous = torch.randn(5, SUITE.obs_dim, generator=generator), torch.randn(5, 4, generator=generator)
    hidden = torch.randn(5, 8, generator=generator)
    found = []
    for number in (1, num_threads):
        steps = Rl2Steps(
            dataclasses.replace(settings, env=dataclasses.replace(settings.env, num_threads=number)), SUITE
        )
        steps.load(weights_of(network))
        found.append(steps.advance(obs, previous, hidden))
    with torch.no_grad():
        whole = network(network_inputs(obs, previous, settings.rl2.reward_scale).unsqueeze(1), hidden)
    torch.testing.assert_close(found[0], found[1], rtol=0, atol=0)
    for one, of_sequence in zip(found[0], whole, strict=True):
        torch.testing.assert_close(one, of_sequence[:, 0], rtol=0, atol=1e-6)


@pytest.mark.parametrize("wrong", ["obs", "previous", "hidden"])
def test_compiled_code_gets_nothing_of_other_sizes(wrong: str) -> None:
    widths = {"obs": SUITE.obs_dim, "previous": SUITE.action_dim + 2, "hidden": 8}
    given = {name: torch.zeros(5, width + (name == wrong)) for name, width in widths.items()}
    shapes = rf"\[5, {widths[wrong] + 1}\]; the policy takes \[5, {widths[wrong]}\]"
    with pytest.raises(ValueError, match=f"{wrong} is {shapes}"):
        Rl2Steps(config(), SUITE).advance(**given)


def test_the_recurrent_unit_is_the_published_one() -> None:
    """Eq. 5 to 8 of arXiv 1406.1078, with the reset gate behind the product as in cuDNN, for one step by hand."""
    network = lively_network(config())
    inputs, hidden = torch.randn(1, 1, 7), torch.randn(1, 8)
    encoded = torch.tanh(inputs[0] @ network.encoder[0].T)
    from_input, from_hidden = network.gru.all_weights[0][:2]
    ours = [encoded @ rows.T for rows in from_input.chunk(3)]
    past = [hidden @ rows.T for rows in from_hidden.chunk(3)]
    reset, update = torch.sigmoid(ours[0] + past[0]), torch.sigmoid(ours[1] + past[1])
    candidate = torch.tanh(ours[2] + reset * past[2])
    expected = (1 - update) * candidate + update * hidden
    torch.testing.assert_close(network(inputs, hidden)[2][0], expected, rtol=0, atol=1e-6)


def test_first_actions_are_noise_of_the_initial_deviation() -> None:
    settings = config(on_policy=OnPolicyConfig(initial_std=0.5, min_std=0.2), rl2=Rl2Config(hidden_size=8, max_std=1.5))
    network = build_recurrent(settings.network, settings.on_policy, settings.rl2, SUITE, torch.Generator())
    mean, log_std, _ = network(torch.randn(2, 9, 7), network.no_memory(2))
    assert mean.abs().max() < 0.05
    assert (log_std.exp() - 0.5).abs().max() < 0.05


@pytest.mark.parametrize(("bias", "deviation"), [(100.0, 1.5), (-100.0, 0.2)])
def test_deviations_stay_within_their_limits(bias: float, deviation: float) -> None:
    settings = config(on_policy=OnPolicyConfig(initial_std=0.5, min_std=0.2), rl2=Rl2Config(hidden_size=8, max_std=1.5))
    network = lively_network(settings)
    with torch.no_grad():
        network.head_bias += bias
    mean, log_std, _ = network(torch.randn(2, 9, 7), network.no_memory(2))
    torch.testing.assert_close(log_std.exp(), torch.full_like(log_std, deviation))
    assert mean.abs().max() <= 1.0


# ---- memory through a trial


@pytest.mark.parametrize("policy", [Rl2Policy, Forgetful])
def test_the_policy_that_acted_is_the_one_that_learns(policy: type[Rl2Policy]) -> None:
    """Densities recomputed over whole trials are those of the steps, so memory lasted through every episode.

    Whoever forgets at the ends of episodes, or sees other last steps there, fails this.
    """
    settings = small()
    learner = Rl2(settings, SUITE, torch.device("cpu"))
    learner.network.load_state_dict(lively_network(settings).state_dict())
    block = counted_trial(policy(settings, SUITE), learner.policy_weights())
    assert not block.valid.all()  # one trial is shorter, and what follows it is of another
    learner.request()
    learner.receive([block])
    assert learner._trials is not None
    divergence = float(learner.loss(learner._trials)[1]["train/kl"])
    if policy is Rl2Policy:
        assert divergence < 1e-10  # float32: log-densities agree to 1e-6
    else:
        assert divergence > 1e-3


def test_memory_lasts_through_episodes_and_ends_with_the_trial() -> None:
    settings = small()
    begun: list[Tensor] = []

    class Watching(Spy):
        def act(self, obs: Tensor, previous: Any, state: Tensor | None, *rest: Any) -> PolicyStep:
            assert state is not None
            begun.append(state.clone())
            return super().act(obs, previous, state, *rest)

    policy = Watching(settings, SUITE)
    made = Collector(CountingEnvs(), policy, torch.Generator().manual_seed(2), seeds=[0, 1])
    request = trial_request(weights_of(lively_network(settings)), 0, 2)
    made.collect(dataclasses.replace(request, amount=2))
    fresh = [bool(state[0, 0]) for state in begun]
    # two trials of two episodes of three steps
    assert fresh == [True, False, False, False, False, False] * 2
    torch.testing.assert_close(begun[3], policy.states[2], rtol=0, atol=0)  # the border between the episodes
    assert begun[3][:, 1:].abs().max() > 0.01


def test_the_last_step_of_an_episode_reaches_the_next_ones_first() -> None:
    """Horizons of 2 and 3 steps, time limits only; rewards count up: what is seen at each first step, by hand."""
    settings = small()
    block = counted_trial(Rl2Policy(settings, SUITE), weights_of(lively_network(settings)))
    batch = trial_batch([block], settings, num_tasks=2, device=torch.device("cpu"))
    reward, done = batch.inputs[..., -2], batch.inputs[..., -1]
    torch.testing.assert_close(reward[0, :4], torch.tensor([0.0, 0.1, 0.2, 0.3]))
    torch.testing.assert_close(reward[1, :6], torch.tensor([0.0, 0.1, 0.2, 0.3, 0.4, 0.5]))
    assert done[0, :4].tolist() == [0, 0, 1, 0]
    assert done[1].tolist() == [0, 0, 0, 1, 0, 0]
    action = batch.inputs[..., 3:5]
    assert not action[:, 0].any()
    torch.testing.assert_close(action[:, 1:], torch.from_numpy(block.action).transpose(0, 1)[:, :-1])
    torch.testing.assert_close(batch.sample.clamp(-1, 1)[:, :-1], action[:, 1:])
    assert batch.mask.tolist() == [[True] * 4 + [False] * 2, [True] * 6]
    torch.testing.assert_close(batch.episode_return, torch.tensor([[3.0, 7.0], [6.0, 15.0]]))


def test_actions_are_cut_off_and_their_samples_are_not() -> None:
    settings = small(on_policy=OnPolicyConfig(initial_std=1.9))
    block = counted_trial(Rl2Policy(settings, SUITE), weights_of(lively_network(settings)))
    assert np.abs(block.action).max() == 1.0
    assert np.abs(block.extras["sample"]).max() > 1.0
    np.testing.assert_array_equal(block.extras["sample"].clip(-1, 1), block.action)


def test_trials_of_several_workers_are_laid_out_by_slot() -> None:
    settings = small()
    block = counted_trial(Rl2Policy(settings, SUITE), weights_of(lively_network(settings)))

    def only(env: int, steps: int) -> Block:
        arrays = {
            name: value[:steps, env : env + 1]
            for name, value in vars(block).items()
            if isinstance(value, np.ndarray) and name != "initial_state"
        }
        extras = {name: value[:steps, env : env + 1] for name, value in block.extras.items()}
        return dataclasses.replace(block, **arrays, extras=extras)

    whole = trial_batch([block], settings, 2, torch.device("cpu"))
    apart = trial_batch([only(1, 6), only(0, 4)], settings, 2, torch.device("cpu"))
    for name, value in whole.state_dict().items():
        masked = value if name == "episode_return" else value[whole.mask]
        other = getattr(apart, name)
        assert torch.equal(other if name == "episode_return" else other[apart.mask], masked), name
    with pytest.raises(ValueError, match=r"trials of the slots \[0\]; expected one of each of 2"):
        trial_batch([only(0, 4)], settings, 2, torch.device("cpu"))


def test_more_than_one_trial_of_a_slot_is_refused() -> None:
    settings = small()
    made = Collector(CountingEnvs(), Rl2Policy(settings, SUITE), torch.Generator(), seeds=[0, 1])
    request = trial_request(weights_of(lively_network(settings)), 0, 2)
    block = made.collect(dataclasses.replace(request, amount=2))
    with pytest.raises(ValueError, match="slot 0 holds the trials"):
        trial_batch([block], settings, 2, torch.device("cpu"))


# ---- advantages


def advantages(reward: list[list[float]], value: list[list[float]], mask: list[list[int]], **on_policy: Any) -> Tensor:
    """Returns advantages with a baseline made by hand."""
    settings = OnPolicyConfig(**{"gamma": 0.5, "gae_lambda": 0.5, "normalize_advantages": False, **on_policy})
    with pytest.MonkeyPatch.context() as patch:
        values = torch.tensor(value)
        patch.setattr(trials_module, "linear_values", lambda inputs, coefficients: values.unsqueeze(1))
        inputs = torch.zeros(len(reward), len(reward[0]), 1)
        valid = torch.tensor(mask, dtype=torch.bool)
        return trial_advantages(inputs, torch.tensor(reward), valid, len(reward), settings, Rl2Config(baseline="trial"))


def test_advantages_run_through_the_border_and_end_with_the_trial() -> None:
    """Two trials of two episodes of two steps, the second trial one step shorter, by hand with gamma = lambda = 1/2.

    Errors r + V'/2 − V of the first: 0+1−1, 0+1.5−2, 8+2−3, 4+0−4 = 0, −0.5, 7, 0; sums with 1/4 from behind.
    """
    found = advantages([[0, 0, 8, 4], [2, 2, 2, 99.0]], [[1, 2, 3, 4], [1, 1, 1, 99.0]], [[1, 1, 1, 1], [1, 1, 1, 0]])
    torch.testing.assert_close(found[0], torch.tensor([0.25 * 1.25, 1.25, 7.0, 0.0]))
    torch.testing.assert_close(found[1], torch.tensor([1.5 + 0.25 * 1.75, 1.5 + 0.25 * 1.0, 1.0, 0.0]))


def test_exploration_is_credited_with_what_later_episodes_bring() -> None:
    """A reward in the second episode alone; without discount every step of the first has all of it."""
    found = advantages([[0, 0, 0, 5.0]], [[0.0] * 4], [[1] * 4], gamma=1.0, gae_lambda=1.0)
    torch.testing.assert_close(found, torch.full((1, 4), 5.0))


def test_the_baselines_time_is_that_of_the_trial() -> None:
    """Rewards that jump between two equal episodes: only a time that goes on over the border can tell them apart."""
    steps = 30
    inputs = torch.zeros(1, 2 * steps, 1)
    reward = torch.cat([torch.zeros(1, steps), torch.ones(1, steps)], dim=1)
    settings = OnPolicyConfig(gamma=0.0, normalize_advantages=False)
    found = trial_advantages(inputs, reward, torch.ones(1, 2 * steps, dtype=torch.bool), 1, settings, Rl2Config())
    assert found.abs().mean() < 0.2  # with the time of the episode it would be 0.5


@pytest.mark.parametrize(
    ("baseline", "groups"),
    [("trial", [[0], [1], [2], [3]]), ("class", [[0, 2], [1, 3]]), ("all", [[0, 1, 2, 3]])],
)
def test_a_baseline_is_shared_by_what_it_says(baseline: str, groups: list[list[int]]) -> None:
    """Slots are of classes a, b, a, b; what shares a baseline is computed as if there were nothing else."""
    generator = torch.Generator().manual_seed(5)
    inputs, reward = torch.randn(4, 20, 2, generator=generator), torch.randn(4, 20, generator=generator)
    reward += torch.tensor([[0.0], [10.0], [1.0], [12.0]])
    mask = torch.ones(4, 20, dtype=torch.bool)
    found = trial_advantages(inputs, reward, mask, 2, OnPolicyConfig(), Rl2Config(baseline=baseline))
    for group in groups:
        alone = trial_advantages(
            inputs[group], reward[group], mask[group], 1, OnPolicyConfig(), Rl2Config(baseline="all")
        )
        torch.testing.assert_close(found[group], alone)
        assert float(found[group].mean().abs()) < 1e-5
        assert float(found[group].std(unbiased=False)) == pytest.approx(1.0, abs=1e-4)
        assert len(group) == 1 or float(found[group[0]].mean().abs()) > 1e-3  # and not centred in anything smaller


# ---- PPO


def handmade(learner: Rl2, ratios: list[list[float]], advantage: list[list[float]]) -> TrialBatch:
    """Trials of 3 and 2 steps at which the policy now is so much likelier than the one that acted."""
    generator = torch.Generator().manual_seed(6)
    inputs, sample = torch.randn(2, 3, 7, generator=generator), torch.randn(2, 3, 2, generator=generator)
    mean, log_std, _ = learner.network(inputs, learner.network.no_memory(2))
    old = (log_prob(sample, mean, log_std) - torch.tensor(ratios).log()).detach()
    mask = torch.tensor([[True, True, True], [True, True, False]])
    old[1, 2] = -1e9  # padding is never looked at
    return TrialBatch(inputs, sample, old, torch.tensor(advantage), mask, torch.zeros(2, 3))


def test_the_loss_is_that_of_ppo() -> None:
    """min(r A, clip(r) A) by hand with clip 0.2, the mean over each trial, then over trials; minus 0.1 x entropy."""
    settings = small(ppo=PpoConfig(minibatches=2, clip=0.2, entropy_coefficient=0.1))
    learner = Rl2(settings, SUITE, torch.device("cpu"))
    learner.network.load_state_dict(lively_network(settings).state_dict())
    batch = handmade(learner, [[1.5, 0.5, 1.1], [1.5, 0.5, 1.0]], [[1.0, 1.0, 2.0], [-1.0, -1.0, 50.0]])
    loss, values = learner.loss(batch)
    surrogate = -(np.mean([1.2, 0.5, 2.2]) + np.mean([-1.5, -0.8])) / 2
    assert float(values["train/loss/surrogate"]) == pytest.approx(surrogate, rel=1e-5)
    _, log_std, _ = learner.network(batch.inputs, learner.network.no_memory(2))
    each = (log_std.detach() + 0.5 * math.log(2 * math.pi * math.e)).sum(dim=2)
    spread = float((each[0].mean() + each[1, :2].mean()) / 2)
    assert float(values["train/entropy"]) == pytest.approx(spread, rel=1e-5)
    assert float(loss.detach()) == pytest.approx(surrogate - 0.1 * spread, rel=1e-5)
    assert float(values["train/clipped_share"]) == pytest.approx((2 / 3 + 1) / 2)
    expected = (
        np.mean([r - 1 - math.log(r) for r in (1.5, 0.5, 1.1)]),
        np.mean([r - 1 - math.log(r) for r in (1.5, 0.5)]),
    )
    assert float(values["train/kl"]) == pytest.approx(np.mean(expected), rel=1e-4)


def test_clipped_steps_have_no_gradient() -> None:
    learner = Rl2(small(ppo=PpoConfig(minibatches=2, entropy_coefficient=0.0)), SUITE, torch.device("cpu"))
    batch = handmade(learner, [[1.5, 0.5, 1.3], [1.5, 0.5, 1.0]], [[1.0, -1.0, 2.0], [1.0, -1.0, 9.0]])
    learner.loss(batch)[0].backward()  # type: ignore[no-untyped-call] # torch's
    assert all(not parameter.grad.any() for parameter in learner.network.parameters() if parameter.grad is not None)


def gradients(steps: int, bptt_steps: int | None) -> tuple[list[Tensor], Tensor]:
    """Returns the gradient of a loss over trials by the network, and of the loss at the last step by the inputs."""
    settings = small(rl2=Rl2Config(hidden_size=8, bptt_steps=bptt_steps))
    learner = Rl2(settings, SUITE, torch.device("cpu"))
    learner.network.load_state_dict(lively_network(settings).state_dict())
    generator = torch.Generator().manual_seed(7)
    inputs = torch.randn(2, steps, 7, generator=generator).requires_grad_()
    sample, signs = torch.randn(2, steps, 2, generator=generator), torch.randn(2, steps, generator=generator)
    everywhere = torch.ones(2, steps, dtype=torch.bool)
    batch = TrialBatch(inputs, sample, torch.zeros(2, steps), signs, everywhere, torch.zeros(2, 2))
    with torch.no_grad():
        old = log_prob(sample, *learner.network(inputs, learner.network.no_memory(2))[:2])
    loss, values = learner.loss(dataclasses.replace(batch, log_prob=old))
    assert float(values["train/kl"]) < 1e-10  # the numbers of the forward pass are the same in any case
    found = torch.autograd.grad(loss, list(learner.network.parameters()), retain_graph=True)
    mean, log_std = learner._distributions(batch)
    last = (mean[:, -1].sum() + log_std[:, -1].sum(),)
    return list(found), torch.autograd.grad(last, inputs)[0]


def test_truncated_gradients_are_the_full_ones_where_a_chunk_holds_the_trial() -> None:
    full, _ = gradients(12, None)
    for bptt_steps in (12, 50):
        for one, other in zip(gradients(12, bptt_steps)[0], full, strict=True):
            assert torch.equal(one, other)


@pytest.mark.parametrize("steps", [12, 11, 9])
def test_truncated_gradients_stop_at_the_start_of_a_chunk(steps: int) -> None:
    full, by_inputs = gradients(steps, None)
    cut, cut_by_inputs = gradients(steps, 4)
    assert by_inputs[:, 0].abs().max() > 0
    begin = (steps - 1) // 4 * 4
    assert not cut_by_inputs[:, :begin].any()
    torch.testing.assert_close(cut_by_inputs[:, begin:], by_inputs[:, begin:], rtol=0, atol=1e-6)
    assert any(not torch.allclose(one, other, atol=1e-5) for one, other in zip(cut, full, strict=True))


def test_an_update_makes_all_passes_and_learns_from_every_trial() -> None:
    settings = config(ppo=PpoConfig(lr=1e-2, epochs=3, minibatches=2))
    engine = LocalEngine(settings, build_suite(settings))
    learner = engine.learner
    assert isinstance(learner, Rl2)
    assert learner.update() is None
    before = learner.policy_weights()
    request = learner.request()
    assert learner.request().assignments == request.assignments
    learner.receive([engine._collector.collect(request)])
    assert (learner.behind(), learner.env_steps) == (1, 4 * 3 * 7)
    metrics = learner.update()
    assert learner.request().assignments != request.assignments  # other goals
    assert metrics is not None
    assert metrics.num_samples == 3 * 4 * 3 * 7
    assert metrics.values["train/return_first_episode"].shape == (4,)
    assert (learner.behind(), learner.gradient_steps, learner.update()) == (0, 6, None)
    assert any((before[name] != after).any() for name, after in learner.policy_weights().items())
    engine.close()


def test_passes_end_where_the_divergence_is_too_large() -> None:
    settings = config(ppo=PpoConfig(lr=0.1, epochs=50, minibatches=2, target_kl=1e-3))
    engine = LocalEngine(settings, build_suite(settings))
    learner = engine.learner
    learner.receive([engine._collector.collect(learner.request())])
    metrics = learner.update()
    assert metrics is not None
    assert metrics.values["train/kl"] > 1e-3
    assert 2 <= learner.gradient_steps < 20
    engine.close()


# ---- adaptation


class Explorer:
    """Explores held-out toy goals with weights of an adapter."""

    def __init__(self, policy: Rl2Policy, settings: RunConfig) -> None:
        self.assignments = (Assignment(0, (0,)), Assignment(1, (1,)))
        envs = build_envs(settings, list(self.assignments), terminate_on_success=False, split="test")
        self.policy, self.version = policy, 0
        self.collector = Collector(envs, policy, torch.Generator().manual_seed(8), seeds=[0, 1])

    def __call__(self, weights: Mapping[str, Array], episodes: int) -> Block:
        self.version += 1
        return self.collector.collect(trial_request(weights, self.version, episodes, assignments=self.assignments))

    def test(self, weights: Mapping[str, Array], episodes: int) -> Block:
        self.version += 1
        return self.collector.collect(
            CollectRequest(
                weights,
                self.version,
                Unit.EPISODES,
                episodes,
                Mode.DETERMINISTIC,
                assignments=self.assignments,
                slots=(0, 1),
            )
        )


@pytest.fixture
def explorer() -> Iterator[Explorer]:
    settings = config()
    made = Explorer(Spy(settings, build_suite(settings)), settings)
    yield made
    made.collector.close()


def adapter_of(settings: RunConfig) -> tuple[Rl2Adapter, Mapping[str, Array]]:
    suite = build_suite(settings)
    made = Rl2Adapter(settings, suite)
    return made, made.begin(weights_of(lively_network(settings, suite)), 2)


def test_the_adapter_remembers_what_the_policy_did(explorer: Explorer) -> None:
    adapter, weights = adapter_of(config())
    block = explorer(weights, 3)
    adapted = adapter.observe(block)
    assert isinstance(explorer.policy, Spy)
    np.testing.assert_array_equal(adapted[START_HIDDEN], explorer.policy.states[-1][:, 1:].numpy())
    expected = np.concatenate([block.action[-1], block.reward[-1][:, None], np.ones((2, 1), np.float32)], axis=1)
    np.testing.assert_array_equal(adapted[START_PREVIOUS], expected)


def test_the_adapter_leaves_out_what_is_no_part_of_the_trial() -> None:
    """The first environment ends two steps earlier; what it does until the other one ends is not remembered."""
    settings = small()
    policy = Spy(settings, SUITE)
    adapter = Rl2Adapter(settings, SUITE)
    weights = adapter.begin(weights_of(lively_network(settings)), 2)
    block = counted_trial(policy, weights)
    assert block.valid.sum(axis=0).tolist() == [4, 6]
    found = adapter.observe(block)
    np.testing.assert_array_equal(found[START_HIDDEN][0], policy.states[3][0, 1:].numpy())
    np.testing.assert_array_equal(found[START_HIDDEN][1], policy.states[5][1, 1:].numpy())
    assert found[START_PREVIOUS][:, -2].tolist() == [4, 6]  # the last rewards


def test_exploration_goes_on_where_it_stopped(explorer: Explorer) -> None:
    """Three episodes in one request, or in three with what was observed in between and tests beside: bit for bit."""
    adapter, weights = adapter_of(config())
    whole = explorer(weights, 3)
    other = Explorer(Rl2Policy(config(), build_suite(config())), config())
    parts = []
    for _ in range(3):
        parts.append(other(weights, 1))
        weights = adapter.observe(parts[-1])
        other.test(adapter.adapt(), 2)
    np.testing.assert_array_equal(np.concatenate([part.action for part in parts]), whole.action)
    other.collector.close()


@pytest.mark.parametrize("restores", [True, False])
def test_every_test_episode_begins_from_the_memory_of_the_exploration(explorer: Explorer, *, restores: bool) -> None:
    """Environment and policy are deterministic, so test episodes are equal, unless one learns from the one before."""
    adapter, weights = adapter_of(config())
    remembering = adapter.observe(explorer(weights, 2))
    block = explorer.test(adapter.adapt() if restores else remembering, 2)
    first, second = block.action[:7], block.action[7:]
    assert (np.abs(first - second).max() == 0.0) == restores
    network = lively_network(config(), build_suite(config()))
    with torch.no_grad():
        hidden, previous = (torch.from_numpy(remembering[name]) for name in (START_HIDDEN, START_PREVIOUS))
        inputs = network_inputs(torch.from_numpy(block.obs[0]), previous, 0.1)
        mean, _, _ = network(inputs.unsqueeze(1), hidden)
    np.testing.assert_allclose(first[0], mean[:, 0].numpy(), atol=1e-6)  # the policy acts with compiled code
    assert previous[:, -1].tolist() == [1.0, 1.0]  # an episode had ended


def test_without_episodes_the_adapter_knows_nothing(explorer: Explorer) -> None:
    adapter, weights = adapter_of(config())
    plain = weights_of(lively_network(config(), build_suite(config())))
    block = explorer.test(adapter.adapt(), 1)
    np.testing.assert_array_equal(explorer.test(plain, 1).action, block.action)
    np.testing.assert_array_equal(explorer.test(weights, 1).action, block.action)
    adapter.observe(explorer(weights, 1))
    again = adapter.begin(plain, 2)  # forgets
    np.testing.assert_array_equal(explorer.test(again, 1).action, block.action)


def test_evaluation_runs_every_goal_of_both_splits_after_its_adaptation() -> None:
    settings = config(meta=MetaConfig(batch_size=4, episodes=2, adaptation_episodes=2, test_episodes=2, curve=(0, 1)))
    suite = build_suite(settings)
    evaluator = MetaEvaluator(settings, suite)
    episodes = evaluator.run(weights_of(lively_network(settings, suite)), 3)
    assert len(episodes) == 6 * 3 * 3 * 2
    by_point = {point: episodes.returns[episodes.adapted == point] for point in (0, 1, 2)}
    for returns in by_point.values():  # both test episodes of a goal begin alike
        assert len(set(np.round(returns, 12))) <= len(returns) // 2
    assert (by_point[0] != by_point[2]).any()
    evaluator.close()


# ---- runs


def test_a_learner_goes_on_from_its_state_bit_for_bit() -> None:
    settings = config()
    engine = LocalEngine(settings, build_suite(settings))
    learner = engine.learner
    engine.advance(84, lambda: False)
    learner.receive([engine._collector.collect(learner.request())])  # stopped with trials at hand
    other = Rl2(settings, build_suite(settings), torch.device("cpu"))
    other.load_state_dict(learner.state_dict())
    for one in (learner, other):
        one.update()
    assert other.request().assignments == learner.request().assignments
    block = engine._collector.collect(learner.request())
    for one in (learner, other):
        one.receive([block])
        one.update()
    assert (other.env_steps, other.gradient_steps) == (learner.env_steps, learner.gradient_steps) == (252, 12)
    for name, weights in learner.policy_weights().items():
        np.testing.assert_array_equal(other.policy_weights()[name], weights)
    engine.close()


@pytest.mark.parametrize("stops", [(1,), (170, 250)], ids=str)
def test_a_stopped_and_resumed_run_equals_the_uninterrupted_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, stops: tuple[int, ...]
) -> None:
    monkeypatch.setattr(training._Stop, "pause", lambda self: True)
    settings = config(
        total_env_steps=420,
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


def test_a_policy_that_remembers_is_not_loaded_as_one_that_does_not(tmp_path: Path) -> None:
    settings = config(total_env_steps=84, runs_dir=str(tmp_path), eval=EvalConfig(goals=1, final_goals=1))
    run = training.train(settings, StopAt(None)).run
    with pytest.raises(ValueError, match="rl2_ppo remembers"):
        load_policy(run)


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
        engine.advance(300, lambda: False)
        episodes = engine.evaluate(2)
        found.append((engine.learner.policy_weights(), episodes.returns))
        engine.close()
    assert engines[0].learner.gradient_steps == engines[1].learner.gradient_steps >= 16
    for name, weights in found[0][0].items():
        np.testing.assert_array_equal(found[1][0][name], weights)
    np.testing.assert_array_equal(found[1][1], found[0][1])


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"ppo": PpoConfig(minibatches=5)}, "ppo.minibatches: 5 shares of whole trials need as many trials"),
        ({"surgery": SurgeryConfig(method="pcgrad")}, "surgery.method: pcgrad is not built for rl2_ppo"),
        (
            {"on_policy": OnPolicyConfig(initial_std=2.0)},
            "on_policy.initial_std: 2.0 is not between min_std=1e-06 and rl2.max_std=2.0",
        ),
        ({"collection": "async"}, "collection: async collects with old weights"),
    ],
)
def test_what_does_not_suit_is_refused_in_one_line(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError) as refused:
        LocalEngine(config(**changes), build_suite(config()))
    assert str(refused.value).startswith(message)
    assert "\n" not in str(refused.value)


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("rl2")
    overrides = [f"runs_dir={folder}", "total_env_steps=450_000", "eval.every_env_steps=0", "eval.final_goals=1"]
    return training.train(load_config(TOY_ROW, overrides), StopAt(None)).run


@pytest.mark.slow
@pytest.mark.parametrize("policy", [Rl2Policy, Forgetful])
def test_the_last_episode_of_a_trial_is_better_than_the_first_on_held_out_goals(
    trained: Path, policy: type[Rl2Policy]
) -> None:
    """By a return of 20 at least, of 30 steps worth at most 10; the same weights without memory gain nothing."""
    settings = load_config(trained / "config.yaml")
    assignments = [Assignment(0, (goal,)) for goal in range(settings.env.num_goals)]
    envs = build_envs(settings, assignments, terminate_on_success=False, split="test")
    made = Collector(
        envs, policy(settings, build_suite(settings)), torch.Generator().manual_seed(9), [0] * len(assignments)
    )
    weights = {name: value.numpy() for name, value in load_state(newest_checkpoint(trained)[0])["policy"].items()}
    slots, episodes = tuple(range(len(assignments))), settings.meta.episodes
    block = made.collect(
        CollectRequest(weights, 1, Unit.TRIALS, 1, Mode.EXPLORE, tuple(assignments), slots, episodes_per_trial=episodes)
    )
    made.close()
    returns = block.reward.reshape(episodes, -1, len(slots)).sum(axis=1).mean(axis=1)  # [episode]
    gain = float(returns[-1] - returns[0])
    print(f"{policy.__name__}: mean return of episodes {np.round(returns, 1).tolist()}, gain {gain:.1f}")
    assert (gain > 20.0) == (policy is Rl2Policy)


def test_inputs_are_obs_action_scaled_reward_and_done() -> None:
    found = network_inputs(torch.tensor([[1.0, 2.0]]), torch.tensor([[0.5, -0.5, 30.0, 1.0]]), 0.1)
    torch.testing.assert_close(found, torch.tensor([[1.0, 2.0, 0.5, -0.5, 3.0, 1.0]]))

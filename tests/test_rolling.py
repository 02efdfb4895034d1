"""Policies that act in compiled code between the steps of the simulator, against those that act step by step."""

import dataclasses
import platform

import numba
import numpy as np
import pytest
import torch

import envs
from envs.simulator import Actor
from mtrl.config import EnvConfig, EvalConfig, MetaConfig, NetworkConfig, PpoConfig, Rl2Config, RunConfig
from mtrl.learners.build import build_policy
from mtrl.learners.protocol import CollectRequest, Mode, Unit
from mtrl.learners.rl2_policy import START_HIDDEN, Rl2Adapter
from mtrl.networks.compiled.actors import pointer_to
from mtrl.rollout.build import build_envs, build_suite, training_assignments
from mtrl.rollout.collector import Collector

TASKS = ("reach-v3", "push-v3", "drawer-close-v3")
NUM_ENVS = 6
SIZES = (NUM_ENVS, 39, 4)

pytestmark = pytest.mark.skipif(
    (platform.system(), platform.machine()) != ("Linux", "x86_64"),
    reason="compiled environments are for Linux on x86-64",
)


def _wave(context, group, turn, obs, reward, action):
    seen, chosen = (
        numba.carray(pointer_to(obs), (NUM_ENVS, 39), np.float64),
        numba.carray(pointer_to(action), (NUM_ENVS, 4), np.float32),
    )
    for env in range(3 * group, 3 * group + 3):
        for index in range(4):
            chosen[env, index] = np.float32(np.sin(50.0 * seen[env, index] + 30.0 * seen[env, 4 + index]))
    if turn == context and group == 1:
        chosen[4, 0] = np.nan


WAVE = numba.cfunc("void(int64,int64,int64,int64,int64,int64)")(_wave)


def wave(obs):
    with np.errstate(all="raise"):
        return np.sin(50.0 * obs[:, :4] + 30.0 * obs[:, 4:8]).astype(np.float32)


def environments(num_threads=2, **more):
    made = envs.make("custom", tasks=TASKS, copies=2, num_goals=2, backend="compiled", num_threads=num_threads, **more)
    return made, made.reset(seed=0)[0]


@pytest.mark.parametrize("num_threads", [1, 2, 3])
def test_rolls_equal_steps_and_end_with_episodes(num_threads):
    rolling, stepping = (environments(num_threads, max_episode_steps=70) for _ in range(2))
    obs, lengths = stepping[1], []
    for _ in range(4):
        rolled = rolling[0].roll(Actor(WAVE.address, -1, 2, SIZES), 1000)
        lengths.append(len(rolled.steps.reward))
        for turn, action in enumerate(rolled.steps.action):
            np.testing.assert_array_equal(action, wave(obs))
            obs, reward, _, truncated, infos = stepping[0].step(action)
            np.testing.assert_array_equal(rolled.steps.reward[turn], reward)
            np.testing.assert_array_equal(rolled.steps.info["obj_to_target"][turn], infos["obj_to_target"])
            led_to = np.stack(infos["final_obs"]) if truncated.any() else obs
            np.testing.assert_array_equal(rolled.steps.obs[turn], led_to)
        np.testing.assert_array_equal(rolled.truncated, truncated)
        np.testing.assert_array_equal(rolled.obs, obs)
    assert lengths == [50, 20, 50, 20]
    for made, _ in (rolling, stepping):
        made.close()


def test_a_roll_ends_where_physics_breaks():
    made, _ = environments()
    rolled = made.roll(Actor(WAVE.address, 7, 2, SIZES), 40)
    assert rolled.steps.unstable.sum(axis=1).tolist() == [0] * 7 + [1]
    assert rolled.truncated.tolist() == [False] * 4 + [True, False]
    made.close()


def test_a_roll_ends_with_the_first_success_of_those_that_move():
    made, _ = environments()
    made.toggle_terminate_on_success(True)
    succeeds = np.zeros((500, NUM_ENVS), bool)
    actor = Actor(PULL.address, 0, 1, SIZES)
    for step in range(500):
        rolled = made.roll(actor, 1)
        succeeds[step] = rolled.steps.info["success"][0] == 1.0
        if succeeds[step].any():
            break
    made.reset(seed=0)
    steps = 0
    while not (rolled := made.roll(actor, 1000)).terminated.any():
        steps += len(rolled.steps.reward)
    assert steps + len(rolled.steps.reward) == step + 1
    np.testing.assert_array_equal(rolled.terminated, succeeds[step])
    made.set_active(np.zeros(NUM_ENVS, bool))
    assert len(made.roll(actor, 30).steps.reward) == 30
    made.close()


def _pull(context, group, turn, obs, reward, action):
    seen, chosen = (
        numba.carray(pointer_to(obs), (NUM_ENVS, 39), np.float64),
        numba.carray(pointer_to(action), (NUM_ENVS, 4), np.float32),
    )
    for env in range(NUM_ENVS):
        for index in range(3):
            chosen[env, index] = np.float32(10.0 * (seen[env, 36 + index] - seen[env, index]))
        chosen[env, 3] = np.float32(0.0)


PULL = numba.cfunc("void(int64,int64,int64,int64,int64,int64)")(_pull)


def test_environments_that_cannot_roll_say_so():
    made = envs.make("toy")
    made.reset(seed=0)
    assert made.most_steps_at_once == 0
    with pytest.raises(RuntimeError, match=r"toy.*call step"):
        made.roll(Actor(0, 0, 1, SIZES), 1)
    made.close()


@pytest.mark.parametrize("sizes", [(NUM_ENVS + 1, 39, 4), (NUM_ENVS, 40, 4), (NUM_ENVS, 39, 3)])
def test_actors_made_for_other_environments_are_refused(sizes):
    made, _ = environments()
    with pytest.raises(ValueError, match=rf"\({', '.join(map(str, sizes))}\); these environments have \(6, 39, 4\)"):
        made.roll(Actor(WAVE.address, -1, 2, sizes), 10)
    made.close()


def config(algorithm, num_threads=2):
    copies = 1 if algorithm == "rl2_ppo" else 2
    return RunConfig(
        algorithm=algorithm,
        env=EnvConfig(benchmark="custom-ml", tasks=TASKS, test_tasks=("window-open-v3",), max_episode_steps=60,
                      num_goals=2, copies=copies, num_threads=num_threads, backend="compiled"),
        network=NetworkConfig(actor_widths=(16, 24), activation="tanh"),
        meta=MetaConfig(batch_size=NUM_ENVS // copies, episodes=2),
        ppo=PpoConfig(minibatches=1),
        rl2=Rl2Config(hidden_size=12),
        eval=EvalConfig(goals=1, final_goals=1),
    )  # fmt: skip


def numbers(settings):
    """Returns weights of a policy, other ones for each slot where it takes them."""
    policy, draws = build_policy(settings, build_suite(settings)), torch.Generator().manual_seed(3)
    if settings.algorithm == "rl2_ppo":
        shapes = {name: number.shape for name, number in policy._steps._network.state_dict().items()}
    else:
        shapes = {name: (NUM_ENVS, *shape) for name, shape in policy._shapes.items()}
    return {name: (0.3 * torch.randn(shape, generator=draws)).numpy() for name, shape in shapes.items()}


def collected(settings, requests, *, rolls=True):
    """Returns blocks of requests, and the random numbers that come next."""
    suite, draws = build_suite(settings), torch.Generator().manual_seed(0)
    made = build_envs(settings, training_assignments(settings), terminate_on_success=False)
    collector = Collector(made, build_policy(settings, suite), draws, seeds=list(range(NUM_ENVS)))
    if not rolls:
        collector._rolling = None
    blocks = [collector.collect(request) for request in requests]
    made.close()
    return blocks, torch.randn(3, generator=draws)


def request(settings, unit=Unit.TRIALS, amount=1, mode=Mode.EXPLORE):
    slots = tuple(range(NUM_ENVS))
    return CollectRequest(numbers(settings), 0, unit, amount, mode, slots=slots, episodes_per_trial=2)


def assert_equal(one, other, tolerance=0.0):
    for field in dataclasses.fields(one):
        here, there = getattr(one, field.name), getattr(other, field.name)
        if isinstance(here, np.ndarray):
            np.testing.assert_allclose(here, there, rtol=tolerance, atol=tolerance, err_msg=field.name)
            assert here.dtype == there.dtype, field.name
    assert one.extras.keys() == other.extras.keys()
    for name, values in one.extras.items():
        np.testing.assert_allclose(values, other.extras[name], rtol=tolerance, atol=tolerance, err_msg=name)


@pytest.mark.parametrize("mode", [Mode.EXPLORE, Mode.DETERMINISTIC, Mode.RANDOM])
@pytest.mark.parametrize(("algorithm", "tolerance"), [("maml_trpo", 0.0), ("rl2_ppo", 2e-3)])
def test_a_policy_collects_the_same_in_compiled_code(algorithm, tolerance, mode):
    settings = config(algorithm)
    asked = [request(settings, mode=mode)]
    (one,), next_draws = collected(settings, asked)
    (other,), other_draws = collected(settings, asked, rolls=False)
    # RL2's tanh and exp round otherwise than torch's, which contacts enlarge; perceptrons are the same to the last bit
    assert_equal(one, other, tolerance)
    for field in dataclasses.fields(one.episodes):
        np.testing.assert_allclose(
            getattr(one.episodes, field.name), getattr(other.episodes, field.name), rtol=tolerance
        )
    assert torch.equal(next_draws, other_draws)
    if algorithm == "rl2_ppo":
        start = {name: getattr(one, name)[:10] for name in ("obs", "action", "reward")}
        for name, values in start.items():
            np.testing.assert_allclose(values, getattr(other, name)[:10], rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("algorithm", ["maml_trpo", "rl2_ppo"])
def test_neither_threads_nor_the_lengths_of_rolls_change_a_number(algorithm):
    whole = collected(config(algorithm), [request(config(algorithm), Unit.STEPS, 75)])[0][0]
    parts = [request(config(algorithm), Unit.STEPS, amount) for amount in (3, 40, 1, 31)]
    alone = collected(config(algorithm, num_threads=1), parts)[0]
    many = collected(config(algorithm, num_threads=5), parts)[0]  # some find no rows of RL2 to act for
    for blocks in (alone, many):
        np.testing.assert_array_equal(whole.obs, np.concatenate([block.obs for block in blocks]))
        for name, values in whole.extras.items():
            np.testing.assert_array_equal(
                values, np.concatenate([block.extras[name] for block in blocks]), err_msg=name
            )


def test_the_adapter_remembers_what_a_rolled_policy_did_to_the_last_bit():
    settings, asked = config("rl2_ppo"), request(config("rl2_ppo"), Unit.STEPS, 100)
    suite = build_suite(settings)
    made = build_envs(settings, training_assignments(settings), terminate_on_success=False)
    collector = Collector(made, build_policy(settings, suite), torch.Generator().manual_seed(0), list(range(NUM_ENVS)))
    adapter = Rl2Adapter(settings, suite)
    adapter.begin(asked.weights, NUM_ENVS)
    remembered = adapter.observe(collector.collect(asked))[START_HIDDEN]
    np.testing.assert_array_equal(remembered, collector._state[:, 1:].numpy())
    assert np.abs(remembered).max() > 0.1
    made.close()


def test_what_was_drawn_for_steps_that_were_not_made_is_drawn_again():
    settings = config("maml_trpo")
    policy = build_policy(settings, build_suite(settings))
    policy.load(numbers(settings))
    slot, draws = torch.arange(NUM_ENVS), torch.Generator().manual_seed(5)
    policy.roll(9, None, None, slot, Mode.EXPLORE, draws).finish(2)
    expected = torch.Generator().manual_seed(5)
    for _ in range(2):
        torch.randn(NUM_ENVS, 4, generator=expected)
    assert torch.equal(draws.get_state(), expected.get_state())

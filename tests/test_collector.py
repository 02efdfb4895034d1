"""Collection on environments with known answers."""

import numpy as np
import torch
from builders import CountingEnvs

from mtrl.data import Trajectories
from mtrl.learners.protocol import CollectRequest, Mode, PolicyStep, Unit
from mtrl.rollout.collector import Collector


class RecordingPolicy:
    """Acts with its number of calls; remembers what it was given; its state counts steps since a trial began."""

    def __init__(self):
        self.loads, self.previous, self.begun, self.states, self.calls = [], [], [], [], 0

    def load(self, weights):
        self.loads.append(weights)

    def initial_state(self, num_envs):
        return torch.zeros(num_envs, 1)

    def begin(self, state, mask, boundary):
        self.begun.append((boundary.value, mask.tolist()))
        return torch.where(mask[:, None] & (boundary.value == "trial"), torch.zeros_like(state), state)

    def act(self, obs, previous, state, slot, mode, generator):
        self.calls += 1
        self.previous.append(previous)
        self.states.append(state.clone())
        action = torch.full((len(obs), 2), self.calls / 100)
        return PolicyStep(action, state + 1, {"slot_seen": slot.clone()})


def collector(envs=None):
    policy = RecordingPolicy()
    return Collector(envs or CountingEnvs(), policy, torch.Generator(), seeds=[0, 1]), policy


def request(unit=Unit.STEPS, amount=5, version=0, **more):
    return CollectRequest({}, version, unit, amount, Mode.EXPLORE, **more)


def test_next_obs_at_the_end_of_an_episode_is_its_last_observation():
    block = collector()[0].collect(request(amount=4))
    # horizon 3: observation = [environment, episode, step]
    assert block.obs[:, 0, 1:].tolist() == [[0, 0], [0, 1], [0, 2], [1, 0]]
    assert block.next_obs[:, 0, 1:].tolist() == [[0, 1], [0, 2], [0, 3], [1, 1]]


def test_truncation_and_termination_stay_apart():
    truncated = collector(CountingEnvs(horizon=2))[0].collect(request(amount=2))
    assert truncated.truncated[:, 0].tolist() == [False, True]
    assert not truncated.terminated.any()
    terminated = collector(CountingEnvs(horizon=2, terminates=True))[0].collect(request(amount=2))
    assert terminated.terminated.all()
    assert not terminated.truncated.any()


def test_blocks_continue_where_the_last_one_stopped():
    whole = collector()[0].collect(request(amount=7))
    parts, _ = collector()
    first, second = parts.collect(request(amount=3)), parts.collect(request(amount=4))
    np.testing.assert_array_equal(whole.obs, np.concatenate([first.obs, second.obs]))
    np.testing.assert_array_equal(whole.episode_id, np.concatenate([first.episode_id, second.episode_id]))


def test_last_reward_and_done_reach_the_next_episodes_first_step():
    _, policy = made = collector()
    made[0].collect(request(amount=4))
    previous = policy.previous[3]  # the first step of the second episode
    assert previous.done.tolist() == [1, 1]
    assert previous.reward.tolist() == [1, 1]
    torch.testing.assert_close(previous.action, torch.full((2, 2), 0.03))
    assert policy.previous[0].action.any().item() is False


def test_episode_records_add_up():
    block = collector()[0].collect(request(amount=6))
    episodes = block.episodes
    assert len(episodes) == 4
    assert episodes.returns.tolist() == [3, 3, 3, 3]
    assert episodes.length.tolist() == [3, 3, 3, 3]
    assert episodes.success.all()
    assert episodes.first_success_step.tolist() == [1, 1, 1, 1]
    assert not episodes.last_step_success.any()
    assert episodes.goal_id.tolist() == [0, 0, 1, 1]


def test_success_at_the_last_step_is_seen():
    episodes = collector(CountingEnvs(success_at=2))[0].collect(request(amount=3)).episodes
    assert episodes.success.all()
    assert episodes.last_step_success.all()
    assert episodes.first_success_step.tolist() == [2, 2]


def test_episodes_are_counted_per_environment_and_padding_is_invalid():
    class Uneven(CountingEnvs):
        def step(self, actions, *, out=None):
            self.horizon = np.array([2, 3])
            return super().step(actions, out=out)

    block = collector(Uneven())[0].collect(request(Unit.EPISODES, amount=1))
    assert block.valid.tolist() == [[True, True], [True, True], [False, True]]
    assert block.env_steps() == 5
    assert len(block.episodes) == 2


def test_whole_episodes_begin_afresh():
    made, _ = collector()
    made.collect(request(amount=1))
    block = made.collect(request(Unit.EPISODES, amount=2))
    assert block.obs[0, :, 2].tolist() == [0, 0]
    assert block.valid.all()
    assert block.obs.shape[0] == 6


def test_state_lasts_through_the_episodes_of_a_trial():
    made, policy = collector()
    made.collect(request(Unit.TRIALS, amount=2, episodes_per_trial=2))
    counts = [int(state[0]) for state in policy.states]
    assert counts == [0, 1, 2, 3, 4, 5, 0, 1, 2, 3, 4, 5]
    # the first step of a trial has no previous step, the first step of its second episode has
    assert [float(previous.done[0]) for previous in policy.previous] == [0, 0, 0, 1, 0, 0, 0, 0, 0, 1, 0, 0]


def test_trials_are_numbered():
    block = collector()[0].collect(request(Unit.TRIALS, amount=2, episodes_per_trial=2))
    assert len(np.unique(block.trial_id[:, 0])) == 2
    assert (np.diff(block.trial_id[:, 0]) >= 0).all()


def test_weights_are_loaded_once_per_version():
    made, policy = collector()
    for version in (0, 0, 1):
        made.collect(request(amount=1, version=version))
    assert len(policy.loads) == 2


def test_slots_of_the_request_reach_policy_and_block():
    block = collector()[0].collect(request(amount=1, slots=(7, 3)))
    assert block.slot.tolist() == [[7, 3]]
    assert block.extras["slot_seen"].tolist() == [[7, 3]]


def test_initial_state_is_the_one_before_the_first_step():
    made, _ = collector()
    made.collect(request(amount=2))
    assert made.collect(request(amount=1)).initial_state.tolist() == [[2], [2]]


def test_trajectories_hold_whole_episodes_by_slot():
    block = collector()[0].collect(request(Unit.EPISODES, amount=2))
    trajectories = Trajectories.from_blocks([block], num_slots=2)
    assert trajectories.obs.shape == (2, 2, 3, 3)
    assert trajectories.mask.all()
    assert trajectories.obs[1, 0, :, 0].tolist() == [1, 1, 1]
    assert trajectories.obs[0, :, 0, 2].tolist() == [0, 0]


def test_a_restored_collector_goes_on_as_the_one_it_was_saved_from():
    old, old_policy = collector(CountingEnvs(horizon=4))
    trials = request(Unit.TRIALS, amount=1, episodes_per_trial=3)
    old.collect(trials)
    old.collect(request(amount=5))
    state = old.get_state()
    new, new_policy = collector(CountingEnvs(horizon=4))
    new.set_state(state)
    new_policy.calls = old_policy.calls
    expected, found = old.collect(request(amount=9)), new.collect(request(amount=9))
    for name in ("obs", "action", "next_obs", "truncated", "goal_id", "episode_id", "trial_id", "initial_state"):
        np.testing.assert_array_equal(getattr(found, name), getattr(expected, name), err_msg=name)
    np.testing.assert_array_equal(found.episodes.returns, expected.episodes.returns)
    for ours, theirs in zip(new_policy.previous, old_policy.previous[-9:], strict=True):
        assert all(torch.equal(a, b) for a, b in zip(ours, theirs, strict=True))

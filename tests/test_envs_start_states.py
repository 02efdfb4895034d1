"""Start states kept in files against those made anew."""

import json
import logging

import numpy as np
import pytest

import envs
from envs import start_states
from envs.episodes import Assignment
from envs.state_codec import encode

# live views, a value set at the first step, float32 attributes, two objects
TASKS = ("basketball-v3", "bin-picking-v3", "drawer-close-v3", "hammer-v3")


@pytest.fixture
def empty_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("MTRL_CACHE", str(tmp_path))
    forget()
    yield tmp_path
    forget()


def forget():
    """Makes this process forget its start states, as a new process has."""
    start_states.start_states.cache_clear()


def run(num_steps=80):
    """Returns everything that episodes of all tasks say, from a start state that is restored."""
    env = envs.make("custom", tasks=TASKS, num_goals=2)
    env.assign([Assignment(task, (1,)) for task in range(len(TASKS))])
    said = [env.reset(seed=0)[0]]
    for action in np.random.default_rng(0).uniform(-1, 1, (num_steps, len(TASKS), 4)).astype(np.float32):
        obs, reward, _, _, infos = env.step(action)
        said += [obs, reward, infos["grasp_reward"], infos["in_place_reward"]]
    env.close()
    return said


def test_a_state_from_a_file_runs_as_the_one_it_was_made_of(empty_cache):
    made = run()
    files = list(empty_cache.rglob("*.npz"))
    assert len(files) == len(TASKS)
    written = [file.stat().st_mtime_ns for file in files]
    forget()
    for one, again in zip(made, run(), strict=True):
        np.testing.assert_array_equal(one, again)
    assert [file.stat().st_mtime_ns for file in files] == written


def test_every_number_and_type_comes_back(empty_cache):
    run(num_steps=1)
    made = dict(start_states.start_states()._known)
    forget()
    run(num_steps=1)
    for key, (snapshot, obs) in start_states.start_states()._known.items():
        expected, first = made[key]
        np.testing.assert_array_equal(obs, first)
        ours, theirs = encode(snapshot), encode(expected)
        assert json.dumps(ours.pop("python")) == json.dumps(theirs.pop("python"))
        for name, array in ours.items():
            np.testing.assert_array_equal(array, theirs[name])
        assert not obs.flags.writeable


def test_a_damaged_file_is_made_anew(empty_cache, caplog):
    made = run(num_steps=5)
    files = sorted(empty_cache.rglob("*.npz"))
    files[0].write_bytes(files[0].read_bytes()[:1000])
    files[1].write_bytes(b"")
    forget()
    with caplog.at_level(logging.WARNING):
        again = run(num_steps=5)
    assert caplog.text.count("is damaged") == 2
    for one, other in zip(made, again, strict=True):
        np.testing.assert_array_equal(one, other)


def test_a_folder_that_cannot_be_written_is_done_without(tmp_path, monkeypatch, caplog):
    (tmp_path / "file").write_text("")
    monkeypatch.setattr(start_states, "cache_folder", lambda: tmp_path / "file")
    forget()
    with caplog.at_level(logging.WARNING):
        assert len(run(num_steps=1)) == 5
    assert caplog.text.count("cannot keep start states") == 1
    assert "is damaged" not in caplog.text
    forget()

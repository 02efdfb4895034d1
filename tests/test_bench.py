"""What `mtrl bench` measures is what it says; how fast this machine is, no test asks."""

import json
import sys
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from builders import tiny_config

from mtrl.bench import checkpoint, memory
from mtrl.bench import run as benches
from mtrl.bench.checkpoint import bench_checkpoint
from mtrl.bench.meta import bench_iteration
from mtrl.bench.products import count_products, products_s
from mtrl.bench.workers import bench_row_on_ray
from mtrl.config import ConfigError, EnvConfig, MetaConfig, PpoConfig, ReplayConfig, SurgeryConfig
from mtrl.config_io import to_yaml
from mtrl.replay.ring import untouched_zeros
from mtrl.rollout.build import build_suite

CAPACITY, NUM_NEW = 3000, 300
FIGURES = {
    "replay_bytes",
    "full_save_s",
    "full_save_bytes",
    "incremental_save_s",
    "incremental_save_bytes",
    "load_s",
}
MEMORY = {"memory_bytes", "peak_memory_bytes", "peak_over_memory"}


def config():
    return tiny_config(surgery=SurgeryConfig(method="pcgrad"), replay=ReplayConfig(capacity_per_task=CAPACITY))


@pytest.fixture
def row(tmp_path, monkeypatch):
    """A row of seconds in place of that of MT50."""
    path = tmp_path / "row.yaml"
    path.write_text(to_yaml(config()))
    monkeypatch.setattr(checkpoint, "ROW", path)


def test_a_second_save_writes_only_what_is_new(tmp_path):
    found = bench_checkpoint(config(), tmp_path, NUM_NEW)
    suite = build_suite(config())
    row_bytes = 4 * (2 * suite.obs_dim + suite.action_dim + 2)
    assert found["replay_bytes"] == CAPACITY * suite.num_tasks * row_bytes
    assert found["full_save_bytes"] > found["replay_bytes"]
    # networks are written both times; the rest are headers and digits of counters
    saved = (CAPACITY * suite.num_tasks - NUM_NEW) * row_bytes
    assert found["full_save_bytes"] - found["incremental_save_bytes"] == pytest.approx(saved, abs=1000)
    assert not list(tmp_path.iterdir())


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux lets a process forget its peak")
def test_the_record_holds_every_figure_beside_the_machine(row, tmp_path, capsys):
    out = tmp_path / "new" / "checkpoint.json"
    benches.run_benches("checkpoint", out)
    record = json.loads(out.read_text())
    (title,) = record["figures"]
    assert title == f"checkpoint, toy, {CAPACITY * build_suite(config()).num_tasks:,} transitions"
    found = record["figures"][title]
    assert set(found) == FIGURES | MEMORY
    assert all(value > 0 for value in found.values())
    assert found["peak_over_memory"] == found["peak_memory_bytes"] / found["memory_bytes"]
    assert {"torch", "cpu", "git_commit"} <= set(record["machine"])
    assert [path.name for path in out.parent.iterdir()] == ["checkpoint.json"]
    printed = capsys.readouterr().out
    assert all(name in printed for name in found)


def test_memory_is_left_out_where_the_peak_cannot_be_set_back(tmp_path, monkeypatch):
    monkeypatch.setattr(memory, "_CLEAR_REFS", tmp_path / "nowhere" / "clear_refs")
    assert set(bench_checkpoint(config(), tmp_path, NUM_NEW)) == FIGURES


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux lets a process forget its peak")
def test_the_peak_is_that_since_it_was_last_forgotten():
    num_bytes = 200_000_000
    # fresh pages: malloc may hand out memory that was resident all along, and the peak would not rise
    held = untouched_zeros(num_bytes // 400, 100).fill_(1.0)
    del held
    if not memory.forget_peak():
        pytest.skip("this kernel does not let a process forget its peak")
    before = memory.resident_bytes()
    assert memory.peak_bytes() == pytest.approx(before, abs=num_bytes / 10)  # threads of others allocate too
    held = untouched_zeros(num_bytes // 400, 100).fill_(1.0)
    del held
    assert memory.peak_bytes() - before == pytest.approx(num_bytes, rel=0.1)


def test_another_replay_than_was_saved_is_no_measurement(tmp_path, monkeypatch):
    def as_many_others(run, folder, replay):
        for slot in range(replay.num_slots):
            n = CAPACITY + NUM_NEW // replay.num_slots
            replay.add(slot, np.ones((n, 6)), np.ones((n, 2)), np.ones(n), np.ones((n, 6)), np.zeros(n))

    monkeypatch.setattr(checkpoint, "load_replay", as_many_others)
    with pytest.raises(RuntimeError, match="is not the one that was saved"):
        bench_checkpoint(config(), tmp_path, NUM_NEW)


def test_a_small_disk_is_refused_before_anything_is_written(row, tmp_path, monkeypatch):
    monkeypatch.setattr(checkpoint.shutil, "disk_usage", lambda folder: SimpleNamespace(free=1000))
    out = tmp_path / "new" / "checkpoint.json"
    with pytest.raises(ConfigError, match=r"new has 0\.00 GiB free, .* are needed .* give --out in a") as refused:
        benches.run_benches("checkpoint", out)
    assert "\n" not in str(refused.value)
    assert not list(out.parent.iterdir())


@pytest.mark.parametrize("algorithm", ["maml_trpo", "rl2_ppo"])
def test_an_iteration_is_split_into_its_parts(algorithm):
    settings = tiny_config(
        algorithm=algorithm,
        env=EnvConfig(benchmark="toy-ml", max_episode_steps=10, num_goals=4),
        meta=MetaConfig(batch_size=4, episodes=2, adaptation_episodes=2, test_episodes=1),
        ppo=PpoConfig(epochs=2, minibatches=2),
    )
    found = bench_iteration(settings)
    assert found["env_steps"] == {"maml_trpo": 2, "rl2_ppo": 1}[algorithm] * 4 * 2 * 10
    assert found["learn_over_products"] == found["learn_s"] / found["products_s"] > 1.0
    assert found["collect_over_simulate"] == found["collect_s"] / found["simulate_s"]


def test_products_of_forward_and_backward_are_counted():
    layers = torch.nn.Sequential(torch.nn.Linear(3, 5), torch.nn.Linear(5, 2))
    obs = torch.randn(7, 3)
    counts = count_products(lambda: layers(obs).sum().backward())
    # forward of both layers, weight gradients of both, input gradient of the second
    expected = [(7, 3, 5), (7, 5, 2), (5, 7, 3), (2, 7, 5), (7, 2, 5)]
    assert sum(product.flops() * count for product, count in counts.items()) == sum(
        2 * m * k * n for m, k, n in expected
    )
    assert counts.total() == 5
    batched = count_products(lambda: torch.bmm(torch.ones(4, 2, 3), torch.ones(4, 3, 6)))
    assert [product.flops() for product in batched.elements()] == [2 * 4 * 2 * 3 * 6]
    assert products_s(counts) > 0.0


def test_layers_in_one_piece_are_not_passed_over():
    with pytest.raises(RuntimeError, match="were not counted"):
        count_products(lambda: torch.nn.LSTM(3, 4, batch_first=True)(torch.randn(2, 5, 3)))


def test_all_leaves_out_what_needs_gigabytes(monkeypatch):
    called = []
    for name in benches.BENCHES:
        monkeypatch.setitem(benches.BENCHES, name, lambda options, name=name: called.append(name) or {})
    benches.run_benches("all", None)
    assert called == ["update", "envs", "tasks", "loop", "workers"]


@pytest.mark.ray
@pytest.mark.parametrize(
    ("collection", "figures"),
    [("sync", {"round_trip"}), ("async", {"away_s", "held_up", "updates_while_away"})],
)
def test_workers_of_a_row_are_timed_and_one_is_killed(collection, figures):
    pytest.importorskip("ray")
    found = bench_row_on_ray(tiny_config(collection=collection, torch_threads=1), num_seconds=2.0)
    assert found.keys() == {"updates_per_s", "control_plane"} | figures
    assert found["updates_per_s"] > 0
    shares = [value for name, value in found.items() if name in ("control_plane", "round_trip", "held_up")]
    assert all(0.0 < share < 1.0 for share in shares)

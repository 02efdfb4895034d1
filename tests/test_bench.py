"""What `mtrl bench` measures is what it says; how fast this machine is, no test asks."""

import json
import os
import sys
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from builders import tiny_config

from mtrl.bench import checkpoint, memory, overlap, update
from mtrl.bench import run as benches
from mtrl.bench.checkpoint import bench_checkpoint
from mtrl.bench.meta import bench_iteration
from mtrl.bench.overlap import bench_overlap, bench_overlaps
from mtrl.bench.products import count_products, products_s
from mtrl.bench.training import BareSimulator, bench_threads, bench_training, threads_of
from mtrl.bench.update import UpdateBench, bench_projection, bench_update
from mtrl.bench.workers import bench_row_on_ray
from mtrl.config import (
    ConfigError,
    EnvConfig,
    MetaConfig,
    NetworkConfig,
    PpoConfig,
    ReplayConfig,
    SacConfig,
    SurgeryConfig,
)
from mtrl.config_io import to_yaml
from mtrl.learners.build import build_learner
from mtrl.replay.ring import untouched_zeros
from mtrl.rollout.build import build_collector, build_suite

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
needs_two_cores = pytest.mark.skipif(
    not hasattr(os, "sched_getaffinity") or len(os.sched_getaffinity(0)) < 2, reason="needs two cores and Linux"
)


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
    found = bench_iteration(settings, rounds=2)
    assert found["env_steps"] == {"maml_trpo": 2, "rl2_ppo": 1}[algorithm] * 4 * 2 * 10
    assert found["learn_over_products"] == found["learn_s"] / found["products_s"]
    least, most = found["collect_over_simulate_least"], found["collect_over_simulate_most"]
    assert 0.0 < least <= found["collect_over_simulate"] <= most
    assert least <= found["collect_s"] / found["simulate_s"] <= most


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
    assert called == ["update", "envs", "tasks", "loop", "training", "workers", "overlap"]


@pytest.mark.usefixtures("one_torch_thread")
def test_updates_are_timed_beside_their_products():
    found = bench_update(UpdateBench(num_tasks=3, batch_size=4, widths=(8, 8), repeats=2, warm_up=1))
    assert all(value > 0 for value in found.values())
    assert found["plain_over_products"] == found["plain_s"] / found["products_s"]
    assert found["pcgrad_over_plain"] == found["pcgrad_s"] / found["plain_s"]
    assert found["pcgrad_updates_per_s"] == 1 / found["pcgrad_s"]
    assert found["plain_updates_per_s"] == 1 / found["plain_s"]


def test_the_projection_is_timed_for_one_net_and_for_both_critics(monkeypatch):
    shapes = []
    monkeypatch.setattr(update, "pcgrad_weights", lambda gram, orders: shapes.append((gram.shape, orders.shape)))
    assert bench_projection(num_tasks=4, repeats=1).keys() == {"one_net_s", "two_nets_s"}
    assert set(shapes) == {((nets, 4, 4), (nets, 4, 3)) for nets in (1, 2)}


def test_updates_of_all_sizes_have_names_of_their_own(monkeypatch):
    monkeypatch.setattr(update, "bench_update", lambda sizes: {"sizes": sizes})
    monkeypatch.setattr(update, "bench_projection", lambda num_tasks: {})
    found = update.bench_updates()
    assert found["update, MT10, 3x400, 10x128"]["sizes"] == UpdateBench()
    wanted = {f"update, MT{tasks}, 3x{width}, {tasks}x128" for tasks in (10, 50) for width in (256, 400, 1024)}
    assert found.keys() == wanted | {"projection, 50 tasks"}
    assert all(figures["sizes"].num_tasks == int(title[10:12]) for title, figures in found.items() if "MT" in title)


@pytest.mark.usefixtures("one_torch_thread")
def test_the_parts_of_training_are_put_together_as_the_loop_does_it():
    settings = tiny_config(
        env=EnvConfig(benchmark="toy", max_episode_steps=20, num_goals=4, copies=2),
        sac=SacConfig(batch_size=8, samples_per_insert=8.0, warmup_steps_per_task=10, collect_steps=3),
    )
    found = bench_training(settings, repeats=2, num_rounds=4)
    assert all(value > 0 for name, value in found.items() if name != "policy_s")
    assert found["policy_s"] == found["collect_s"] - found["simulate_s"]
    # 8 environments, 8 samples per insert, 4 tasks x 8 samples per update
    assert found["updates_per_vector_step"] == 2.0
    one_step = found["collect_s"] + found["receive_s"] + found["snapshot_s"] / 3 + 2 * found["update_s"]
    assert found["predicted_s"] == pytest.approx(one_step)
    assert found["explained"] == found["predicted_s"] / found["loop_s"]
    assert found["env_steps_per_s"] == 8 / found["loop_s"]
    assert found["updates_per_s"] == 2 / found["loop_s"]
    assert 0.0 < found["collect_share"] + found["receive_share"] + found["update_share"] <= 1.0
    assert found["sample_s"] < found["update_s"]
    if sys.platform == "linux":
        assert found["peak_memory_bytes"] >= found["memory_bytes"]


@pytest.mark.usefixtures("one_torch_thread")
def test_updates_are_timed_with_each_number_of_threads():
    before = torch.get_num_threads()
    found = bench_threads(tiny_config(), repeats=1)
    assert torch.get_num_threads() == before
    times = {int(name.removeprefix("update_s_with_")): value for name, value in found.items() if name != "fastest"}
    assert times.keys() == {2**power for power in range(len(os.sched_getaffinity(0)).bit_length())}
    assert times[int(found["fastest"])] == min(times.values()) > 0


def test_the_next_bench_has_the_threads_that_it_would_have_alone():
    before = torch.get_num_threads()
    with threads_of(tiny_config(torch_threads=before + 1)):
        assert torch.get_num_threads() == before + 1
    assert torch.get_num_threads() == before


def test_the_simulator_alone_makes_the_steps_of_the_collector_again():
    settings = config()
    suite = build_suite(settings)
    collector, simulator = build_collector(settings, suite), BareSimulator(settings)
    state = collector.get_state()
    request = build_learner(settings, suite, torch.device("cpu")).request()
    blocks = [collector.collect(request) for _ in range(25)]  # across the ends of episodes
    assert simulator.seconds(state, blocks) > 0
    again, before = simulator._envs.get_state(), collector.get_state()["envs"]
    assert again.keys() == before.keys()
    for name, value in before.items():
        np.testing.assert_equal(again[name], value)
    simulator.close()
    collector.close()


@pytest.mark.parametrize("measure", [bench_training, bench_overlap])
def test_learners_without_a_replay_are_refused(measure):
    with pytest.raises(ConfigError, match="this bench is for rows with algorithm=mtsac"):
        measure(tiny_config(algorithm="mtppo", network=NetworkConfig(architecture="one_hot")), 1, 1)


@needs_two_cores
@pytest.mark.usefixtures("one_torch_thread")
def test_both_sides_of_an_overlap_are_timed_alone_and_together():
    before = os.sched_getaffinity(0)
    found = bench_overlap(tiny_config(steps_per_request=5), repeats=2, num_requests=3)
    assert os.sched_getaffinity(0) == before
    assert all(value > 0 for value in found.values())
    assert found["collection_cores"] == 1
    assert found["learner_cores"] == len(before) - 1
    assert found["loop_over_slower"] == found["loop_s"] / max(found["collect_s"], found["learn_s"])
    assert found["loop_over_slower_simulation"] == found["loop_s"] / max(found["simulate_s"], found["learn_s"])


def test_where_there_are_two_cores_the_overlap_of_each_row_is_measured(monkeypatch):
    monkeypatch.setattr("os.sched_getaffinity", lambda pid: {0, 1}, raising=False)
    monkeypatch.setattr(overlap, "bench_overlap", lambda config: {"loop_s": 1.0})
    assert bench_overlaps().keys() == {"overlap, mt10-pcgrad", "overlap, quickstart"}


def test_where_threads_share_one_core_no_overlap_is_measured(monkeypatch):
    monkeypatch.setattr("os.sched_getaffinity", lambda pid: {0}, raising=False)
    assert bench_overlaps() == {}


@pytest.mark.ray
@pytest.mark.parametrize(
    ("collection", "figures"),
    [("sync", {"round_trip"}), ("async", {"away_s", "held_up", "updates_while_away"})],
)
def test_workers_of_a_row_are_timed_and_one_is_killed(collection, figures):
    pytest.importorskip("ray")
    found = bench_row_on_ray(tiny_config(collection=collection, torch_threads=1), num_seconds=0.05)
    assert found.keys() == {"updates_per_s", "control_plane", "broadcast_s"} | figures
    assert found["updates_per_s"] > 0
    assert found["broadcast_s"] > 0
    shares = [value for name, value in found.items() if name in ("control_plane", "round_trip", "held_up")]
    assert all(0.0 < share < 1.0 for share in shares)

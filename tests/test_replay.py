"""The ring: what is kept, what is drawn, what is saved."""

import sys

import numpy as np
import pytest
import torch

from mtrl.bench.memory import resident_bytes
from mtrl.replay import ring
from mtrl.replay.ring import Replay


def replay(slots=2, capacity=5):
    return Replay(slots, capacity, obs_dim=3, action_dim=2, device=torch.device("cpu"))


def add(replay, slot, numbers):
    """Adds transitions whose every entry tells the number of the transition."""
    column = np.asarray(numbers, np.float32)
    replay.add(
        slot,
        np.repeat(column[:, None], 3, 1),
        np.repeat(column[:, None], 2, 1),
        column,
        np.repeat(column[:, None], 3, 1) + 0.5,
        column % 2,
    )


def numbers_in(replay, slot, n=400):
    drawn = replay.sample(torch.tensor([slot]), n, torch.Generator().manual_seed(0))
    return sorted({int(number) for number in drawn.reward[0]})


@pytest.mark.parametrize("capacity", [1, 3, 5])
@pytest.mark.parametrize("sizes", [(2,), (5,), (2, 2, 2), (7,), (4, 9)])
def test_the_newest_transitions_are_kept(capacity, sizes):
    ring_of_one = replay(slots=1, capacity=capacity)
    total = 0
    for size in sizes:
        add(ring_of_one, 0, range(total, total + size))
        total += size
    assert numbers_in(ring_of_one, 0) == list(range(max(0, total - capacity), total))


def test_a_sampled_row_is_one_transition():
    filled = replay()
    add(filled, 0, range(5))
    rows = filled.sample(torch.tensor([0]), 50, torch.Generator().manual_seed(0))
    number = rows.reward[0]
    torch.testing.assert_close(rows.obs[0], number[:, None].expand(-1, 3))
    torch.testing.assert_close(rows.action[0], number[:, None].expand(-1, 2))
    torch.testing.assert_close(rows.next_obs[0], number[:, None].expand(-1, 3) + 0.5)
    torch.testing.assert_close(rows.terminated[0], number % 2)


def test_slots_are_drawn_from_separately_and_independently():
    filled = replay(capacity=100)
    add(filled, 0, range(100))
    add(filled, 1, range(1000, 1100))
    rows = filled.sample(torch.tensor([1, 0]), 60, torch.Generator().manual_seed(0)).reward
    assert (rows[0] >= 1000).all()
    assert (rows[1] < 100).all()
    assert not torch.equal(rows[0] - 1000, rows[1])


def test_drawing_is_uniform():
    filled = replay(slots=1, capacity=5)
    add(filled, 0, range(5))
    rows = filled.sample(torch.tensor([0]), 20_000, torch.Generator().manual_seed(0)).reward[0]
    counts = np.bincount(rows.numpy().astype(int))
    # each count has a standard deviation of 57
    np.testing.assert_allclose(counts, 4000, atol=300)


def test_a_cleared_slot_forgets_and_others_do_not():
    filled = replay()
    add(filled, 0, range(3))
    add(filled, 1, range(3))
    filled.clear(0)
    assert filled.sizes.tolist() == [0, 3]
    with pytest.raises(ValueError, match=r"replay slots \[0\] are empty"):
        filled.sample(torch.tensor([0, 1]), 2, torch.Generator())


def range_of(filled, slot, first, count, n=400):
    slots = torch.tensor([slot])
    draws = torch.Generator().manual_seed(0)
    drawn = filled.sample_range(slots, np.array([first]), np.array([count]), n, draws)
    return sorted({int(number) for number in drawn.reward[0]})


@pytest.mark.parametrize(("first", "count"), [(4, 5), (4, 1), (6, 3), (8, 1)])
def test_a_range_is_drawn_from_and_nothing_beside_it(first, count):
    filled = replay(capacity=5)
    add(filled, 0, range(100, 105))
    add(filled, 1, range(9))  # the ring holds 4 to 8, the newest before the oldest
    assert range_of(filled, 1, first, count) == list(range(first, first + count))


@pytest.mark.parametrize(("first", "count"), [(3, 2), (8, 2), (9, 1), (5, 0)])
def test_a_range_that_is_not_all_there_is_refused(first, count):
    filled = replay(capacity=5)
    add(filled, 1, range(9))
    with pytest.raises(ValueError, match=r"replay slots \[1\] do not hold the ranges that were asked for"):
        range_of(filled, 1, first, count)


@pytest.mark.skipif(sys.platform != "linux", reason="memory of a process is read from /proc")
def test_memory_is_taken_as_slots_fill_up():
    np.empty(31_000_000, np.uint8)  # freed at once: from now on malloc keeps blocks of this size in its heap
    freed = [np.empty(31_000_000, np.uint8) for _ in range(10)]
    after = np.empty(20_000_000, np.uint8)  # keeps malloc from giving the heap back
    del freed  # 310 MB that malloc would hand out again, cleared and so touched
    before = resident_bytes()
    filled = replay(slots=50, capacity=100_000)
    add(filled, 0, range(10))
    add(filled, 49, range(10))
    assert filled.required_bytes > 190_000_000
    assert resident_bytes() - before < 50_000_000
    del after


def test_chunks_rebuild_the_replay():
    original, rebuilt = replay(), replay()
    chunks, since = [], np.zeros(2, np.int64)
    for first, size in ((0, 2), (2, 4), (6, 11)):
        add(original, 0, range(first, first + size))
        if first:
            add(original, 1, range(100 + first, 101 + first))
        chunks += original.chunks(since, most_rows=4)
        since = original.added.copy()
    for chunk in chunks:
        rebuilt.restore_chunk(chunk)
    assert rebuilt.added.tolist() == original.added.tolist()
    draws = [r.sample(torch.tensor([0, 1]), 40, torch.Generator().manual_seed(1)) for r in (original, rebuilt)]
    assert all(torch.equal(a, b) for a, b in zip(*draws, strict=True))


def test_a_chunk_of_another_shape_is_refused():
    original = replay(slots=1)
    add(original, 0, range(2))
    with pytest.raises(ValueError, match="1 slots of 10 numbers per transition, this run has 2"):
        replay(slots=2).restore_chunk(next(original.chunks(np.zeros(1, np.int64), most_rows=100)))


def test_memory_is_told_and_refused_with_the_sizes(monkeypatch):
    assert replay(slots=2, capacity=5).describe() == "replay: 2 slots x 5 transitions x 40 bytes = 0.00 GiB on cpu"
    monkeypatch.setattr(ring, "available_bytes", lambda device: 3 * ring.GIB)
    with pytest.raises(
        ValueError, match=r"= 3\.73 GiB on cpu do not fit: 3\.00 GiB are available; lower replay\.capacity"
    ):
        replay(slots=2, capacity=50_000_000)


def test_available_memory_of_this_machine_is_plausible():
    available = ring.available_bytes(torch.device("cpu"))
    assert 10**7 < available < 10**14

"""What holds for all tests."""

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch


@pytest.fixture(autouse=True)
def reports_of_broken_physics_stay_here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Keeps what tests break on purpose out of the user's cache."""
    monkeypatch.setattr("envs.unstable.cache_folder", lambda: tmp_path / "reports")


@pytest.fixture
def one_torch_thread() -> Iterator[None]:
    """Lets torch use one thread, as in remote workers: sums differ between numbers of threads."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)

"""What holds for all tests."""

from pathlib import Path

import pytest


@pytest.fixture(autouse=True)
def reports_of_broken_physics_stay_here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Keeps what tests break on purpose out of the user's cache."""
    monkeypatch.setattr("envs.unstable.cache_folder", lambda: tmp_path / "reports")

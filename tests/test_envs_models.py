"""Laws of the cache of compiled models: whole files only, rebuilt when damaged, optional."""

import logging
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import mujoco
import numpy as np
import pytest

from envs import cache, models

XML = """<mujoco><worldbody><include file="part.xml"/></worldbody></mujoco>"""
PART = """<mujocoinclude><body><freejoint/><geom size="0.{size}"/></body></mujocoinclude>"""


@pytest.fixture
def xml(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A small scene of two files, and an empty cache."""
    monkeypatch.setenv("MTRL_CACHE", str(tmp_path / "cache"))
    (tmp_path / "part.xml").write_text(PART.format(size=1))
    (tmp_path / "scene.xml").write_text(XML)
    return tmp_path / "scene.xml"


def files(xml: Path) -> list[Path]:
    return [path for path in (xml.parent / "cache").rglob("*") if path.is_file()]


def test_second_load_reads_the_file_and_gives_the_same_model(xml: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first = models.load_model(xml)
    assert len(files(xml)) == 1
    monkeypatch.setattr(mujoco.MjModel, "from_xml_path", None)  # would fail if called
    second = models.load_model(xml)
    assert second is not first
    np.testing.assert_array_equal(first.geom_size, second.geom_size)


@pytest.mark.parametrize(
    "damage",
    [
        lambda whole: b"",
        lambda whole: whole[: len(whole) // 2],
        lambda whole: whole[:200] + bytes([whole[200] ^ 1]) + whole[201:],
    ],
    ids=["empty", "cut off", "one bit"],
)
def test_damaged_file_is_made_anew(
    xml: Path, damage: Callable[[bytes], bytes], caplog: pytest.LogCaptureFixture
) -> None:
    models.load_model(xml)
    (file,) = files(xml)
    whole = file.read_bytes()
    file.write_bytes(damage(whole))
    with caplog.at_level(logging.WARNING):
        assert models.load_model(xml).ngeom == 1
    assert "damaged" in caplog.text
    assert file.read_bytes() == whole


def test_edit_of_an_included_file_is_noticed(xml: Path) -> None:
    assert models.load_model(xml).geom_size[0, 0] == 0.1
    (xml.parent / "part.xml").write_text(PART.format(size=3))
    assert models.load_model(xml).geom_size[0, 0] == 0.3


def test_unwritable_cache_costs_time_only(xml: Path, caplog: pytest.LogCaptureFixture) -> None:
    (xml.parent / "cache").write_text("a file where the folder should be")
    with caplog.at_level(logging.WARNING):
        assert models.load_model(xml).ngeom == 1
    assert "MTRL_CACHE" in caplog.text


def test_two_processes_may_fill_and_empty_the_cache_at_once(xml: Path) -> None:
    program = (
        "import logging, sys; from pathlib import Path; from envs import cache, models\n"
        "logging.basicConfig()\n"
        "for _ in range(100):\n"
        "    assert models.load_model(Path(sys.argv[1])).ngeom == 1\n"
        "    for file in cache.cache_folder().glob('models/*/*.mjb'): file.unlink(missing_ok=True)\n"
    )
    command = [sys.executable, "-c", program, str(xml)]
    running = [subprocess.Popen(command, stderr=subprocess.PIPE, text=True) for _ in range(2)]
    said = [process.communicate()[1] for process in running]
    assert [process.returncode for process in running] == [0, 0]
    assert said == ["", ""]  # no file was seen half written


def test_cache_folder_follows_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MTRL_CACHE", "/a")
    assert cache.cache_folder() == Path("/a")
    monkeypatch.delenv("MTRL_CACHE")
    monkeypatch.setenv("XDG_CACHE_HOME", "/b")
    assert cache.cache_folder() == Path("/b/mtrl")
    monkeypatch.delenv("XDG_CACHE_HOME")
    assert cache.cache_folder() == Path.home() / ".cache" / "mtrl"


def test_interrupted_write_leaves_nothing_behind(xml: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(*_: object) -> None:
        raise OSError("the disk is full")

    monkeypatch.setattr(Path, "replace", interrupted)
    assert models.load_model(xml).ngeom == 1
    assert files(xml) == []

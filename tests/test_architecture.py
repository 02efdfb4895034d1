"""The shape of the code: who imports whom, what works without what, what is shipped. No algorithm is tested here."""

import ast
import configparser
import fnmatch
import importlib.metadata
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from mtrl.config import ConfigError
from mtrl.engine import build as engine_build

ROOT = Path(__file__).parents[1]
SOURCES = sorted([*(ROOT / "mtrl").rglob("*.py"), *(ROOT / "envs").rglob("*.py")])

WITHOUT = """
import sys

class Refuse:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in {blocked!r}:
            raise ModuleNotFoundError(f"No module named {{name!r}}", name=name)

sys.meta_path.insert(0, Refuse())
"""
LOADED = "print(*sorted({name.partition('.')[0] for name in sys.modules}))"
TRAIN_A_LITTLE = """
import builders
import torch
from mtrl.engine.local import LocalEngine
from mtrl.rollout.build import build_suite

torch.set_num_threads(1)  # more would only compete with the tests
config = builders.tiny_config()
engine = LocalEngine(config, build_suite(config))
progress = engine.advance(100, lambda: False)
assert engine.learner.env_steps >= 100 and engine.learner.gradient_steps > 0
assert len(engine.evaluate(2)) == 2 * len(build_suite(config).task_names)
engine.close()
"""


def python(code: str, *arguments: str) -> str:
    """Returns what a fresh interpreter prints; fails with its traceback."""
    environment = {**os.environ, "PYTHONPATH": str(ROOT / "tests")}
    done = subprocess.run(
        [sys.executable, *arguments, "-c", code], cwd=ROOT, env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def loaded_by(statement: str) -> set[str]:
    return set(python(f"import sys\n{statement}\n{LOADED}").split())


def imported(path: Path) -> set[str]:
    """Returns the top-level packages that a file imports, anywhere in it."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name.partition(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            found.add(node.module.partition(".")[0])
    return found


def dotted_names(path: Path) -> set[str]:
    """Returns every name with dots that a file uses, as in `np.random.default_rng`."""
    return {ast.unparse(node) for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, ast.Attribute)}


def importers(*packages: str) -> set[str]:
    return {str(path.relative_to(ROOT)) for path in SOURCES if imported(path) & set(packages)}


def test_import_arrows_hold():
    # without the cache: it keeps how an import was resolved when the imported file did not exist yet
    code = "import sys; from importlinter.cli import lint_imports; sys.exit(lint_imports(no_cache=True))"
    environment = {**os.environ, "NO_COLOR": "1"}
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout[done.stdout.find("Contracts") :] + done.stderr


def test_only_the_rllib_engine_imports_ray():
    assert all(name.startswith("mtrl/engine/rllib/") for name in importers("ray"))


def test_only_envs_imports_the_simulators():
    assert all(name.startswith("envs/") for name in importers("metaworld", "mujoco"))


def test_envs_knows_nothing_of_learning():
    assert not [name for name in importers("torch", "mtrl", "ray") if name.startswith("envs/")]


def test_import_mtrl_is_light():
    assert not loaded_by("import mtrl") & {"torch", "ray", "mujoco", "metaworld", "matplotlib", "tensorboard"}


def test_import_of_the_command_line_is_light():
    assert not loaded_by("import mtrl.cli") & {"torch", "ray", "mujoco", "metaworld", "matplotlib", "tensorboard"}


def test_import_envs_is_light():
    assert not loaded_by("import envs") & {"torch", "mtrl", "ray", "mujoco", "metaworld"}


def test_training_in_one_process_needs_no_ray():
    python(WITHOUT.format(blocked=("ray",)) + TRAIN_A_LITTLE)


def test_toy_environments_need_no_simulator_and_no_torch():
    code = "import envs; made = envs.make('toy'); made.reset(seed=0); made.step(made.action_space.sample())"
    python(WITHOUT.format(blocked=("torch", "ray", "mujoco", "metaworld")) + code)


def test_without_ray_the_rllib_engine_is_refused_with_the_way_out(monkeypatch):
    import builders

    monkeypatch.setattr(engine_build.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ConfigError, match=r"engine: rllib needs ray.*mtrl\[ray\].*engine=local"):
        engine_build.build_engine(builders.tiny_config(engine="rllib"), builders.suite())


def test_no_module_hides_a_function_of_the_package():
    # importing `mtrl/x.py` sets `mtrl.x`: a function of that name would be gone afterwards
    import mtrl

    assert not [name for name in mtrl.__all__ if (ROOT / "mtrl" / f"{name}.py").exists()]
    assert all(callable(getattr(mtrl, name)) for name in mtrl.__all__)


def test_every_module_imports_without_a_warning():
    modules = [".".join(path.relative_to(ROOT).with_suffix("").parts) for path in SOURCES]
    chosen = [name for name in modules if ".rllib" not in name and not name.endswith(("__init__", "__main__"))]
    python(f"import importlib\nfor name in {chosen!r}: importlib.import_module(name)", "-W", "error")


def test_distribution_holds_exactly_the_two_packages():
    distribution = importlib.metadata.distribution("mtrl")
    assert sorted((distribution.read_text("top_level.txt") or "").split()) == ["envs", "mtrl"]


def test_every_folder_with_code_is_a_package_that_is_shipped():
    settings = configparser.ConfigParser()
    settings.read(ROOT / "setup.cfg")
    patterns = settings["options.packages.find"]["include"].split()
    for folder in {path.parent for path in SOURCES}:
        assert (folder / "__init__.py").exists(), f"{folder} would be left out of the distribution"
        name = ".".join(folder.relative_to(ROOT).parts)
        assert any(fnmatch.fnmatchcase(name, pattern) for pattern in patterns), name


def test_package_files_are_empty_but_for_the_two_ways_in():
    speaking = {str(path.relative_to(ROOT)) for path in SOURCES if path.name == "__init__.py" and path.read_text()}
    assert speaking <= {"mtrl/__init__.py", "envs/__init__.py"}


def test_nothing_is_pickled():
    assert not importers("pickle", "cloudpickle", "dill", "joblib", "shelve")
    assert not [path for path in SOURCES if {"torch.load", "torch.save"} & dotted_names(path)]


def test_no_random_number_comes_from_a_global_generator():
    allowed = {"SeedSequence", "default_rng", "Generator", "PCG64", "RandomState"}
    for path in SOURCES:
        drawn = {name.split(".")[2] for name in dotted_names(path) if re.match(r"(np|numpy)\.random\.\w+$", name)}
        assert drawn <= allowed, f"{path.name} uses np.random.{drawn - allowed}"
        assert "torch.manual_seed" not in dotted_names(path), path
        assert "random" not in imported(path), path


def test_no_module_is_a_drawer_for_everything():
    assert not [path for path in SOURCES if path.stem in {"utils", "util", "helpers", "common", "misc"}]


def test_container_does_not_run_as_root():
    lines = (ROOT / "docker" / "Dockerfile").read_text().splitlines()
    users = [line.split()[1] for line in lines if line.startswith("USER ")]
    assert users
    assert users[-1] not in ("root", "0")
    arguments = dict(line.removeprefix("ARG ").split("=") for line in lines if re.match(r"ARG \w+=", line))
    assert int(arguments["UID"]) > 0
    assert arguments["TORCH"] == "cpu"


def test_container_is_made_of_named_files_only():
    ignored = (ROOT / ".dockerignore").read_text().split("\n")
    assert ignored[1] == "*", "everything is left out but for what is named: no runs, no .venv, no .git"
    kept = [line.removeprefix("!") for line in ignored if line.startswith("!")]
    assert all((ROOT / name).exists() for name in kept)


def test_lock_file_pins_every_requirement():
    pinned = {}
    for line in (ROOT / "constraints-cpu.txt").read_text().splitlines():
        if not line.startswith("#"):
            name, version = line.split("==")
            pinned[_normal(name)] = version
    wanted = {_normal(re.match(r"[\w.-]+", text).group()) for text in importlib.metadata.requires("mtrl") or []}
    assert wanted <= set(pinned), f"constraints-cpu.txt lacks {wanted - set(pinned)}"
    assert "+" not in pinned["torch"], "a suffix as +cpu is not found on every index"


def test_ci_runs_what_the_makefile_offers():
    script, makefile = ROOT / ".ci" / "run", (ROOT / "Makefile").read_text()
    assert os.access(script, os.X_OK)
    targets = set(re.findall(r"^([a-z-]+):", makefile, flags=re.MULTILINE))
    called = set(re.findall(r"^make ([a-z-]+)", script.read_text(), flags=re.MULTILINE))
    assert {"check", "test", "test-all"} <= called <= targets
    assert {"demo", "test", "check", "bench", "format", "clean"} <= targets


def _normal(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()

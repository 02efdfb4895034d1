"""What the documentation shows works, and what it names exists."""

import json
import re
from pathlib import Path

import builders
import numpy as np
import pytest
import test_train
import torch

import mtrl
from mtrl import config, config_io
from mtrl import train as training
from mtrl.config_keys import groups, settings
from mtrl.learners import build as learners_build
from mtrl.surgery import build as surgery_build
from mtrl.train import RESUMABLE_CHANGES

ROOT = Path(__file__).parents[1]
PAGES = [*sorted((ROOT / "docs").rglob("*.md")), *(ROOT / name for name in ("README.md", "CONTRIBUTING.md"))]
PAGES += [ROOT / "configs" / "README.md", ROOT / "docker" / "README.md"]


def code_of(text, language):
    return re.findall(rf"^```{language}\n(.*?)^```", text, flags=re.MULTILINE | re.DOTALL)


def blocks(title, language):
    """Returns the code blocks of one section of docs/extend.md."""
    page = (ROOT / "docs" / "extend.md").read_text()
    (section,) = (part for part in page.split("\n## ") if part.startswith(title + "\n"))
    return code_of(section, language)


def run_blocks(title):
    """Runs the Python of a section as one script and returns its names."""
    names = {"__name__": "example"}
    for number, code in enumerate(blocks(title, "python"), start=1):
        exec(compile(code, f"docs/extend.md, {title}, block {number}", "exec"), names)
    return names


@pytest.fixture(autouse=True)
def one_thread():
    """Keeps torch's threads from competing over the examples' small networks."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture
def registries(monkeypatch):
    """Puts back what the examples register."""
    from envs.benchmarks import BENCHMARKS

    monkeypatch.setattr(config, "SURGERY_METHODS", config.SURGERY_METHODS)
    known = {id(registry): (registry, dict(registry)) for registry in (surgery_build.METHODS, BENCHMARKS)}
    yield
    for registry, before in known.values():
        registry.clear()
        registry.update(before)


@pytest.mark.usefixtures("registries")
def test_surgery_example_trains():
    names = run_blocks("A surgery method")
    losses = names["progress"].mean_values()["train/loss/critic"]
    assert names["engine"].learner.gradient_steps > 0
    assert losses.shape == (4,)
    assert torch.isfinite(losses).all()


@pytest.mark.usefixtures("registries")
def test_surgery_example_changes_what_is_learned():
    run_blocks("A surgery method")
    plain, surgery = builders.filled_learner(method="mean"), builders.filled_learner(method="equal_norms")
    for _ in range(3):
        plain.update()
        surgery.update()
    ours, theirs = surgery.actor.stack.shared[0], plain.actor.stack.shared[0]
    assert torch.isfinite(ours).all()
    assert not torch.equal(ours, theirs)


def test_surgery_example_needs_its_registration():
    with pytest.raises(config.ConfigError, match="equal_norms"):
        builders.filled_learner(method="equal_norms")


def test_benchmark_row_is_a_row(tmp_path):
    (row,) = blocks("A benchmark", "yaml")
    (tmp_path / "my_row.yaml").write_text(row)
    loaded = config_io.load_config(tmp_path / "my_row.yaml")
    assert loaded.env.tasks == ("reach-v3", "drawer-close-v3", "coffee-button-v3")
    assert loaded.surgery.method == "pcgrad"


@pytest.mark.usefixtures("registries")
def test_benchmark_example_runs():
    assert run_blocks("A benchmark")["environments"].num_tasks == 3


def test_algorithm_example_learns():
    names = run_blocks("An algorithm")
    learner = names["learner"]
    first = names["progress"].metrics[0].values["train/return"].numpy()
    assert learner.env_steps >= 20_000
    assert (learner.best_return > first).all()


def test_algorithm_example_trains_evaluates_saves_and_resumes_as_a_run(tmp_path, monkeypatch):
    names = run_blocks("An algorithm")

    def build(config, suite, device):
        generator = np.random.default_rng(config.seed)
        return names["HillClimber"](suite.num_tasks, suite.obs_dim, suite.action_dim, generator)

    monkeypatch.setitem(learners_build.LEARNERS, "mtsac", build)
    monkeypatch.setitem(learners_build.POLICIES, "mtsac", lambda config, suite: names["LinearPolicy"]())
    run = training.train(builders.run_in(tmp_path), test_train.Lines()).run
    training.resume(run, ["total_env_steps=800"], test_train.Lines())
    assert len(training.evaluate(run, 2, test_train.Lines())["episodes"]) == 4 * 2
    values = [json.loads(line)["values"] for line in (run / "metrics.jsonl").read_text().splitlines()]
    assert any("train/best_return/mean" in record for record in values)
    assert mtrl.load_policy(run)(np.zeros(6, np.float32), "toy-reach-up").shape == (2,)


def test_algorithm_example_resumes_where_it_stopped():
    names = run_blocks("An algorithm")
    learner = names["learner"]
    other = names["HillClimber"](4, 6, 2, np.random.default_rng(99))
    other.load_state_dict(learner.state_dict())
    for mine, restored in ((learner.request(), other.request()), (learner.request(), other.request())):
        np.testing.assert_array_equal(mine.weights["maps"], restored.weights["maps"])


def test_environment_examples_run():
    names = {}
    for code in code_of((ROOT / "docs" / "environments.md").read_text(), "python"):
        exec(code, names)
    assert names["obs"].shape == (20, 39)
    names["environments"].close()


def test_errors_that_are_shown_are_those_that_are_given():
    page = (ROOT / "docs" / "configuration.md").read_text()
    shown = re.findall(r"^\$ mtrl train (\S+) (\S+)\nmtrl: (.*)$", page, flags=re.MULTILINE)
    assert shown
    for path, override, message in shown:
        with pytest.raises(config.ConfigError) as caught:
            config_io.load_config(ROOT / path, [override])
        assert str(caught.value) == message


def test_settings_that_a_resumed_run_may_change_are_all_named():
    page = (ROOT / "docs" / "configuration.md").read_text()
    for key in RESUMABLE_CHANGES:
        assert f"`{key.removesuffix('.')}`" in page


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_links_lead_somewhere(page):
    for target in re.findall(r"\]\(([^)#\s]+)(?:#[^)]*)?\)", page.read_text()):
        if not target.startswith(("http://", "https://")):
            assert (page.parent / target).exists(), f"{page.name} links to {target}"


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_settings_and_files_that_are_named_exist(page):
    quoted = re.findall(r"`([^`\n]+)`", page.read_text())
    for words in quoted:
        for key in re.findall(rf"\b((?:{'|'.join(groups())})\.[a-z_]+)\b", words):
            # `sac.py` and `surgery.jsonl` are files
            assert key in settings() or key.endswith((".py", ".md", ".yaml", ".jsonl")), (
                f"{page.name} names a setting {key}"
            )
        if re.fullmatch(r"(mtrl|envs|tests|configs|docs|docker)/[\w/.-]+\.\w+", words):
            assert (ROOT / words).exists(), f"{page.name} names a file {words}"


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_chores_that_are_named_exist(page):
    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), flags=re.MULTILINE))
    assert set(re.findall(r"(?:`|^)make ([a-z-]+)", page.read_text(), flags=re.MULTILINE)) <= targets


def test_every_algorithm_has_its_page():
    for name in config.ALGORITHMS:
        assert (ROOT / "docs" / "algorithms" / f"{name}.md").exists()

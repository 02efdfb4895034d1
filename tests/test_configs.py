"""The rows in `configs/`: each loads, holds no default, cites its source, and claims nothing that is not published."""

import re
from dataclasses import fields
from pathlib import Path

import pytest

from mtrl.config import ExpectedConfig, RunConfig
from mtrl.config_io import flatten, load_config, load_with_sources
from mtrl.report.published import PUBLISHED

CONFIGS = Path(__file__).parent.parent / "configs"
ROWS = sorted(path.relative_to(CONFIGS).as_posix() for path in CONFIGS.rglob("*.yaml"))
METHODS = ("mtmhsac", "mtsac", "pcgrad", "pcgrad_direction_only", "pcgrad_magnitude_only")
ON_POLICY = ("mtppo", "mttrpo", "te_ppo")
SOURCE = re.compile(r"# Source: (none; |.*\(?arXiv \d{4}\.\d{5})")


def test_every_benchmark_has_every_method():
    for benchmark, methods in (("mt10", METHODS + ON_POLICY), ("mt25", METHODS), ("mt50", METHODS + ON_POLICY)):
        assert [row for row in ROWS if row.startswith(f"{benchmark}/")] == [
            f"{benchmark}/{name}.yaml" for name in sorted(methods)
        ]


@pytest.mark.parametrize("row", ROWS)
def test_a_row_cites_its_source_in_its_first_line(row):
    assert SOURCE.match((CONFIGS / row).read_text().splitlines()[0])


@pytest.mark.parametrize("row", ROWS)
def test_a_row_holds_nothing_that_is_the_default(row):
    config, sources = load_with_sources(CONFIGS / row)
    values, defaults = flatten(config), flatten(RunConfig())
    held = [key for key, source in sources.items() if source != "default"]
    assert [key for key in held if values[key] == defaults[key]] == []


@pytest.mark.parametrize("row", ROWS)
def test_a_row_is_named_after_its_file(row):
    words = re.split(r"[/_]", row.removesuffix(".yaml"))
    assert re.split(r"[-_]", load_config(CONFIGS / row).name) == words


@pytest.mark.parametrize("row", ROWS)
def test_a_claim_is_a_published_number_of_this_benchmark(row):
    config = load_config(CONFIGS / row)
    if config.expected == ExpectedConfig():
        return
    claims = [
        (number.benchmark, number.success, number.protocol.env_steps, number.protocol.seeds, number.source)
        for number in PUBLISHED
    ]
    claim = config.expected
    assert (config.env.benchmark, claim.success_rate, claim.env_steps, claim.seeds, claim.source) in claims


def test_published_settings_are_the_defaults():
    """Settings of the published MTSAC family, in which the rows of MT10, MT25 and MT50 agree."""
    shared = {field.name for field in fields(RunConfig)} - {"name", "total_env_steps", "env", "eval", "expected"}
    for benchmark in ("mt10", "mt25", "mt50"):
        row = load_config(CONFIGS / benchmark / "mtmhsac.yaml")
        assert all(getattr(row, name) == getattr(RunConfig(), name) for name in shared)


@pytest.mark.parametrize(
    ("benchmark", "total", "every"),
    [("mt10", 20_000_000, 200_000), ("mt25", 50_000_000, 500_000), ("mt50", 100_000_000, 1_000_000)],
)
def test_rows_of_a_benchmark_differ_only_in_the_method(benchmark, total, every):
    for method in METHODS:
        config = load_config(CONFIGS / benchmark / f"{method}.yaml")
        assert (config.env.benchmark, config.total_env_steps, config.eval.every_env_steps) == (
            benchmark.upper(),
            total,
            every,
        )
        assert config.network.architecture == ("one_hot" if method == "mtsac" else "multi_head")
        plain = method in ("mtsac", "mtmhsac")
        assert config.surgery.method == ("mean" if plain else method.removeprefix("pcgrad_"))


@pytest.mark.parametrize("benchmark", ["mt10", "mt50"])
def test_on_policy_rows_are_evaluated_as_the_others(benchmark):
    other = load_config(CONFIGS / benchmark / "mtsac.yaml")
    for method in ON_POLICY:
        config = load_config(CONFIGS / benchmark / f"{method}.yaml")
        assert config.algorithm == method
        assert (config.env, config.total_env_steps, config.eval) == (other.env, other.total_env_steps, other.eval)


def test_ppo_and_trpo_learn_from_the_same_data_with_the_same_network():
    for folder, methods in (("mt10", ("mtppo", "mttrpo")), ("mt50", ("mtppo", "mttrpo")), ("mt1", ("ppo", "trpo"))):
        ppo, trpo = (load_config(CONFIGS / folder / f"{method}.yaml") for method in methods)
        assert (ppo.env, ppo.network, ppo.on_policy, ppo.eval) == (trpo.env, trpo.network, trpo.on_policy, trpo.eval)
        assert ppo.on_policy.episodes * ppo.env.max_episode_steps == 10_000


def test_the_readme_lists_every_row_once():
    listed = re.findall(r"^\| \[(.+?)\]\((.+?)\)", (CONFIGS / "README.md").read_text(), flags=re.MULTILINE)
    assert sorted(text for text, _ in listed) == ROWS
    assert all(text == target for text, target in listed)


@pytest.mark.parametrize("row", [row for row in ROWS if load_config(CONFIGS / row).expected.success_rate is not None])
def test_the_readme_quotes_the_published_number(row):
    line = next(line for line in (CONFIGS / "README.md").read_text().splitlines() if f"[{row}]" in line)
    expected = load_config(CONFIGS / row).expected
    assert f"{expected.success_rate:g}" in line

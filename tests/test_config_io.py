import json
from pathlib import Path

import pytest
from omegaconf import OmegaConf

from mtrl.config import ALGORITHMS, ConfigError, EnvConfig, NetworkConfig, RunConfig, SacConfig
from mtrl.config_io import describe, difference, from_dict, load_config, load_with_sources, to_dict, to_yaml
from mtrl.config_keys import nearest, settings


@pytest.fixture
def write(tmp_path, monkeypatch):
    """Writes a row in the working directory, so that texts of errors do not depend on where tests run."""
    monkeypatch.chdir(tmp_path)

    def write_row(text):
        path = Path("row.yaml")
        path.write_text(text)
        return path

    return write_row


def error_of(path, *overrides):
    with pytest.raises(ConfigError) as caught:
        load_config(path, overrides)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_an_empty_file_gives_the_defaults(write):
    assert load_config(write("")) == RunConfig()


def test_a_group_without_lines_sets_nothing(write):
    assert load_config(write("sac:\n  # tau: 0.1\n")) == RunConfig()


def test_values_of_every_type_are_read(write):
    config = load_config(
        write("seed: 7\nname: a row\nsac: {tau: 1e-3, max_grad_norm: null}\ncheckpoint:\n  replay: false\n"),
        ["network.actor_widths=[64,32]", "env.tasks=[reach-v3]", "env.goal_seed=3"],
    )
    assert (config.seed, config.name, config.sac.tau, config.sac.max_grad_norm) == (7, "a row", 1e-3, None)
    assert not config.checkpoint.replay
    assert (config.network.actor_widths, config.env.tasks, config.env.goal_seed) == ((64, 32), ("reach-v3",), 3)


def test_exponents_without_a_dot_are_numbers(write):
    """YAML 1.1 reads `3e-4` as text."""
    config = load_config(write("total_env_steps: 20e6\nsac:\n  actor_lr: 3e-4\n"), ["sac.critic_lr=1e-4"])
    assert (config.sac.actor_lr, config.sac.critic_lr) == (3e-4, 1e-4)
    assert config.total_env_steps == 20_000_000
    assert isinstance(config.total_env_steps, int)


def test_digits_may_be_grouped(write):
    assert load_config(write("total_env_steps: 1_000_000")).total_env_steps == 1_000_000


def test_empty_values_are_null_where_null_is_allowed(write):
    config = load_config(write("env:\n  goal_seed:\ninit_from: ~\n"), ["sac.max_grad_norm=", "torch_threads=null"])
    assert config.sac.max_grad_norm is None
    assert (config.env.goal_seed, config.init_from, config.torch_threads) == (None, None, None)


def test_texts_given_by_override_need_no_quotes(write):
    config = load_config(write(""), ["name=2024", "runs_dir=on", "init_from='a=b: c'"])
    assert (config.name, config.runs_dir, config.init_from) == ("2024", "on", "a=b: c")


def test_overrides_win_over_the_file_and_later_ones_over_earlier_ones(write):
    assert load_config(write("seed: 2"), ["seed=3", "seed=4"]).seed == 4


def test_an_override_can_mend_the_file(write):
    assert load_config(write("sac:\n  tau: 2.0"), ["sac.tau=0.5"]).sac.tau == 0.5


def test_settings_can_refer_to_each_other(write):
    config = load_config(write("replay:\n  capacity_per_task: ${sac.batch_size}\n"), ["sac.batch_size=64"])
    assert config.replay.capacity_per_task == 64


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("sac:\n  tua: 0.01\n", "row.yaml:2: sac.tua: no such setting; did you mean sac.tau?"),
        ("batch_size: 3\n", "row.yaml:1: batch_size: no such setting; did you mean sac.batch_size or meta.batch_size?"),
        ("copies: 3\n", "row.yaml:1: copies: no such setting; did you mean env.copies or eval.copies?"),
        ("sacc:\n  tau: 0.1\n", "row.yaml:1: sacc: no such setting; did you mean sac?"),
        ("sac.tau: 0.1\n", "row.yaml:1: sac.tau: write it as tau inside the group sac"),
        ("wxyz: 3\n", "row.yaml:1: wxyz: no such setting; see `mtrl show`"),
        ("seed: 1\nname: a\nseed: 2\n", "row.yaml:3: seed: is given twice, first in line 1; remove one"),
        ("seed: yes\n", "row.yaml:1: seed: expected a whole number, got 'yes'"),
        ("seed: true\n", "row.yaml:1: seed: expected a whole number, got true"),
        ("seed: 2.5\n", "row.yaml:1: seed: expected a whole number, got 2.5"),
        ("seed: '3'\n", "row.yaml:1: seed: expected a whole number, got '3'"),
        ("seed: 010\n", "row.yaml:1: seed: expected a whole number, got '010'"),
        ("seed:\n", "row.yaml:1: seed: expected a whole number, got null"),
        ("sac: {tau: .inf}\n", "row.yaml:1: sac.tau: expected a number, got inf"),
        ("torch_threads: two\n", "row.yaml:1: torch_threads: expected a whole number or null, got 'two'"),
        ("checkpoint: {replay: 1}\n", "row.yaml:1: checkpoint.replay: expected true or false, got 1"),
        ("name: 3\n", "row.yaml:1: name: expected text, got 3; put it in quotes"),
        (
            "network:\n  actor_widths: [400, wide]\n",
            "row.yaml:2: network.actor_widths: expected a list of whole numbers, as in [400, 400], got [400, 'wide']",
        ),
        (
            "env:\n  tasks: reach-v3\n",
            "row.yaml:2: env.tasks: expected a list of texts, as in [reach-v3, push-v3], got 'reach-v3'",
        ),
        ("seed: ???\n", "row.yaml:1: seed: is left open with ???; give it a value"),
        ("seed: ${sac.tau}\n", "row.yaml:1: seed: expected a whole number, got 0.005"),
        ("seed: ${sede}\n", "row.yaml:1: seed: Interpolation key 'sede' not found"),
        (
            "sac: 3\n",
            "row.yaml:1: sac: is a group of settings and takes no value of its own; set one in it, as in sac.gamma",
        ),
        ("algorithm: sac\n", f"row.yaml:1: algorithm: 'sac' is not one of {', '.join(ALGORITHMS)}"),
        ("\nsac:\n  tau: 2\n", "row.yaml:3: sac.tau: 2.0 is outside [0.0, 1.0]"),
        (
            "env:\n  num_goals: 5\n",
            "row.yaml: eval.goals: asks for 10 goals per task, env.num_goals stores 5",
        ),
        ("seed: [1\n", "row.yaml:2: is not YAML: expected ',' or ']', but got '<stream end>'"),
        ("- seed\n", "row.yaml:1: expected settings as key: value"),
        ("[a]: 3\n", "row.yaml:1: expected the name of a setting before the colon"),
        (
            "seed: !thing 3\n",
            "row.yaml:1: seed: is not YAML: could not determine a constructor for the tag '!thing'",
        ),
    ],
)
def test_a_mistake_in_a_file_is_told_with_line_key_and_remedy(write, text, message):
    assert error_of(write(text)) == message


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("sac.tua=0.01", "override 'sac.tua=0.01': sac.tua: no such setting; did you mean sac.tau?"),
        ("sac.tau=fast", "override 'sac.tau=fast': sac.tau: expected a number, got 'fast'"),
        ("sac.tau=2", "override 'sac.tau=2': sac.tau: 2.0 is outside [0.0, 1.0]"),
        ("seed", "override 'seed': expected key=value, as in sac.tau=0.01"),
        ("seed=[1", "override 'seed=[1': seed: is not YAML: expected ',' or ']', but got '<stream end>'"),
        ("name=", "override 'name=': name: expected text, got null"),
        (
            "env=3",
            (
                "override 'env=3': env: is a group of settings and takes no value of its own; "
                "set one in it, as in env.benchmark"
            ),
        ),
        (
            "surgery.reduction=men",
            "override 'surgery.reduction=men': surgery.reduction: 'men' is not one of mean, sum",
        ),
    ],
)
def test_a_mistake_in_an_override_is_told_with_the_override(write, override, message):
    assert error_of(write("seed: 3"), override) == message


def test_a_mistyped_file_is_answered_with_its_neighbour(write):
    write("")
    assert error_of(Path("rwo.yaml")) == "rwo.yaml: no such file; did you mean row.yaml?"


def test_a_folder_and_a_binary_file_are_refused(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert error_of(Path()) == ".: cannot be read: Is a directory"
    Path("x.yaml").write_bytes(b"\xff\xfe\x00")
    assert error_of(Path("x.yaml")) == "x.yaml: is not a text file in UTF-8"


def test_yaml_round_trip_keeps_every_value(write):
    config = RunConfig(
        name="3e-4",
        runs_dir="a ${b}: on",
        torch_threads=2,
        env=EnvConfig(benchmark="custom", tasks=("reach-v3", "push-v3")),
        network=NetworkConfig(actor_widths=(1,)),
        sac=SacConfig(adam_eps=1e-12, max_grad_norm=None),
    )
    assert load_config(write(to_yaml(config))) == config


def test_dict_round_trip_passes_through_json():
    config = RunConfig(seed=5, network=NetworkConfig(critic_widths=(3, 2)))
    assert from_dict(json.loads(json.dumps(to_dict(config)))) == config


def test_dict_with_a_wrong_key_or_type_is_refused():
    with pytest.raises(ConfigError, match=r"^sac\.tua: no such setting; did you mean sac\.tau\?$"):
        from_dict({"sac": {"tua": 1}})
    with pytest.raises(ConfigError, match=r"^sac: expected a mapping of settings, got 3$"):
        from_dict({"sac": 3})


def test_every_setting_has_a_sentence_and_a_plain_type():
    for key, setting in settings().items():
        assert setting.sentence.endswith("."), key
    assert settings()["sac.tau"].sentence == "Step of the target critics towards the critics at each update."


def test_settings_are_those_of_the_schema():
    plain = OmegaConf.to_container(OmegaConf.structured(RunConfig))
    dotted = [
        f"{key}.{inner}" if isinstance(value, dict) else key
        for key, value in plain.items()
        for inner in (value if isinstance(value, dict) else [""])
    ]
    assert list(settings()) == dotted


def test_describe_says_where_each_value_came_from(write):
    rows = {row.key: row for row in describe(*load_with_sources(write("\nsac:\n  tau: 0.01\n"), ["seed=3"]))}
    assert list(rows) == list(settings())
    assert (rows["sac.tau"].value, rows["sac.tau"].source) == (0.01, "row.yaml:3")
    assert (rows["seed"].value, rows["seed"].source) == (3, "override")
    assert (rows["device"].value, rows["device"].source) == ("auto", "default")
    assert rows["seed"].sentence == "Seed that every random stream of the run is derived from."


def test_difference_names_the_keys_that_differ():
    assert difference(RunConfig(), RunConfig()) == []
    assert difference(RunConfig(), RunConfig(seed=2, sac=SacConfig(tau=0.1))) == ["seed", "sac.tau"]


def test_nearest_prefers_the_whole_key_and_knows_when_nothing_is_near():
    assert nearest("sac.batchsize", tuple(settings())) == ["sac.batch_size"]
    assert nearest("learner.tau", tuple(settings())) == ["sac.tau"]
    assert nearest("zzz", tuple(settings())) == []

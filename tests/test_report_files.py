"""Reports from run directories; the runs are made up here and live in temporary folders only."""

import csv
import dataclasses
import io
import json

import numpy as np
import pytest
from rich.console import Console

from mtrl.config import EnvConfig, EvalConfig, ExpectedConfig, MetaConfig, PpoConfig, RunConfig, SacConfig
from mtrl.config_io import to_yaml
from mtrl.report.plots import curves, success_curves, task_bars, time_curves
from mtrl.report.published import PUBLISHED, published
from mtrl.report.results import results
from mtrl.report.runs import read_metrics, read_run
from mtrl.report.table import per_task, summary, tables, to_csv
from mtrl.report.text import Grid, count, duration
from mtrl.report.write import versions, write_report

CONFIG = RunConfig(
    name="pair",
    total_env_steps=2000,
    env=EnvConfig(benchmark="custom", tasks=("reach-v3", "push-v3")),
    expected=ExpectedConfig(0.7, 2000, 3, "Nobody 2099, Table 1"),
)
GOLDEN = """\
| Row  | Seeds | Env steps |              Success |                  IQM | metaworld's rule | Last step |   Published | Time per seed |
| ---- | ----: | --------: | -------------------: | -------------------: | ---------------: | --------: | ----------: | ------------: |
| pair |     2 |        2k | 0.625 [0.500, 0.750] | 0.750 [0.500, 0.750] |            0.525 |     0.562 | 0.700 at 2k |    1 min 35 s |

[ ]: 95 % interval; over seeds by the bootstrap stratified by task, per task over the episodes of all seeds (Wilson). IQM: \
interquartile mean over seeds and tasks.

Fewer than 5 seeds: the intervals over seeds are too narrow to be relied on.

Published number of pair: Nobody 2099, Table 1.
"""  # noqa: E501 - a table's lines are as long as they are
GOLDEN_TASKS = """\
| Task     |              pair |
| -------- | ----------------: |
| reach-v3 | 0.75 [0.41, 0.93] |
| push-v3  | 0.50 [0.22, 0.78] |
| mean     |             0.625 |
"""


def episode(task, goal, success):
    return {
        "task": task,
        "goal": goal,
        "return": 100.0 * (goal + 1),
        "length": 500,
        "success": success,
        "last_step_success": success and goal > 0,
        "first_success_step": 40 if success else -1,
    }


def make_run(parent, config, successes, every=(1000, 2000), wall_s=90.0):
    """Writes a run whose last evaluation has `successes` [task, goal] and whose earlier ones have none."""
    run = parent / f"{config.name}-seed{config.seed}"
    (run / "evaluations").mkdir(parents=True)
    (run / "config.yaml").write_text(to_yaml(config))
    machine = {"metaworld": "3.1.1", "torch": "2.13.0", "ray": None, "cpu": "Abacus", "num_cpus": 2, "gpu": None}
    (run / "versions.json").write_text(json.dumps(machine))
    for env_steps in every:
        last = env_steps == every[-1]
        episodes = [
            episode(task, goal, bool(success and last))
            for task, row in successes.items()
            for goal, success in enumerate(row)
        ]
        own = {
            quantity: {
                task: float(np.mean([found[quantity] for found in episodes if found["task"] == task]))
                for task in successes
            }
            for quantity in ("success", "return", "length", "last_step_success")
        }
        content = {
            "env_steps": env_steps,
            "gradient_steps": env_steps // 10,
            "final": last,
            "goals": len(next(iter(successes.values()))),
            "estimators": {
                "mtrl": own,
                "metaworld": {"success": {task: max(0.0, rate - 0.1) for task, rate in own["success"].items()}},
            },
            "episodes": episodes,
        }
        (run / "evaluations" / f"{env_steps:012d}.json").write_text(json.dumps(content))
    record = {"kind": "eval", "env_steps": 2000, "gradient_steps": 200, "wall_s": wall_s}
    record["values"] = {"eval/success/mean": 0.5}
    (run / "metrics.jsonl").write_text(
        json.dumps({**record, "env_steps": 0, "wall_s": 1.0}) + "\n" + json.dumps(record) + "\n"
    )
    return run


@pytest.fixture
def pair(tmp_path):
    """Two seeds: reach-v3 3/4 and 3/4, push-v3 1/4 and 3/4.

    By hand: mean 2.5/4; middle half of .25 .75 .75 .75 is .75; both draws of push-v3 at 1/4 (chance 1/4) give .5 for
    mean and IQM, both as 3/4 give .75; last steps .75 .25 .75 .50.
    """
    return [
        make_run(tmp_path, CONFIG, {"reach-v3": [0, 1, 1, 1], "push-v3": [0, 0, 0, 1]}, wall_s=100.0),
        make_run(
            tmp_path,
            dataclasses.replace(CONFIG, seed=2),
            {"reach-v3": [0, 1, 1, 1], "push-v3": [1, 1, 1, 0]},
            wall_s=90.0,
        ),
    ]


def results_of(runs):
    return results([read_run(run) for run in runs], np.random.default_rng(0))


def test_a_run_is_read_whole(pair):
    run = read_run(pair[0])
    assert run.config == CONFIG
    assert run.versions["metaworld"] == "3.1.1"
    assert run.wall_s == 100.0
    assert [evaluation.env_steps for evaluation in run.evaluations] == [1000, 2000]
    assert run.result.final
    assert run.result.tasks == ("reach-v3", "push-v3")
    assert run.result.episodes[3].episode_return == 400.0


def test_versions_of_resumptions_stand_beside_those_of_the_start(pair):
    file = pair[0] / "versions.json"
    machine = json.loads(file.read_text())
    resumed = [{**machine, "env_steps": 1500, "torch": "2.14.0"}]
    file.write_text(json.dumps({**machine, "resumed": resumed}))
    lines = dict(versions(results_of(pair)).lines)
    assert lines["torch"] == "2.13.0, 2.14.0"
    assert lines["cpu"] == "Abacus"
    assert lines["resumed"] == "at 1,500 env steps, –"
    assert "env_steps" not in lines


def test_the_line_a_killed_run_did_not_finish_is_left_out(pair):
    with (pair[0] / "metrics.jsonl").open("a") as file:
        file.write('{"kind": "tra')
    assert [record.wall_s for record in read_metrics(pair[0])] == [1.0, 100.0]


def test_a_broken_line_is_refused_with_its_number(pair):
    with (pair[0] / "metrics.jsonl").open("a") as file:
        file.write("{}\n")
    with pytest.raises(ValueError, match=r"metrics\.jsonl:3: is no record: KeyError at 'kind'"):
        list(read_metrics(pair[0]))


def test_a_folder_that_is_no_run_is_refused(tmp_path, pair):
    with pytest.raises(ValueError, match=r"nowhere: no such folder; expected a run directory"):
        read_run(tmp_path / "nowhere")
    with pytest.raises(
        ValueError, match=r"there is no config\.yaml in it, but the run pair-seed1 and 1 more; name the"
    ):
        read_run(tmp_path)


def test_a_run_without_evaluations_is_refused(pair):
    for file in (pair[0] / "evaluations").iterdir():
        file.unlink()
    with pytest.raises(ValueError, match=r"has no evaluations yet; `mtrl evaluate .*pair-seed1` makes one"):
        read_run(pair[0])


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{", "is not JSON"),
        ("[]", "expected a JSON object, got list"),
        ("{}", "is no evaluation: KeyError at 'estimators'"),
    ],
)
def test_a_broken_evaluation_is_refused_by_name(pair, text, message):
    (pair[0] / "evaluations" / "000000002000.json").write_text(text)
    with pytest.raises(ValueError, match=f"000000002000.json: {message}"):
        read_run(pair[0])


def test_an_evaluation_without_episodes_of_a_task_is_refused(pair):
    file = pair[0] / "evaluations" / "000000002000.json"
    content = json.loads(file.read_text())
    content["episodes"] = [found for found in content["episodes"] if found["task"] != "push-v3"]
    file.write_text(json.dumps(content))
    with pytest.raises(ValueError, match=r"has no episodes of push-v3"):
        read_run(pair[0])


def test_summary_equals_the_golden_table(pair):
    assert summary(results_of(pair)).to_markdown() == GOLDEN


def test_per_task_equals_the_golden_table(pair):
    assert per_task(results_of(pair)).to_markdown() == GOLDEN_TASKS


def test_the_order_of_runs_does_not_matter_within_a_row(pair):
    assert summary(results_of(pair[::-1])).to_markdown() == GOLDEN


def test_the_terminal_shows_the_same_cells_with_their_brackets(pair):
    text = io.StringIO()
    Console(width=200, file=text).print(tables(results_of(pair)).to_rich())
    for cell in (
        "pair",
        "0.625 [0.500, 0.750]",
        "0.700 at 2k",
        "1 min 35 s",
        "Fewer than 5 seeds",
        "0.50 [0.22, 0.78]",
    ):
        assert cell in text.getvalue()


def test_csv_holds_a_line_per_task_and_the_whole(pair):
    lines = list(csv.DictReader(to_csv(results_of(pair)).splitlines()))
    assert [line["task"] for line in lines] == ["reach-v3", "push-v3", "mean", "iqm"]
    assert [float(line["success"]) for line in lines] == [0.75, 0.5, 0.625, 0.75]
    assert lines[0]["interval_over"] == "episodes"
    assert lines[2]["interval_over"] == "seeds"
    assert lines[2]["seeds"] == "1 2"
    assert (lines[2]["published"], lines[2]["wall_s"]) == ("0.7", "95.0")


def test_one_seed_is_marked_as_such(pair):
    text = summary(results_of(pair[:1])).to_markdown()
    assert "| 0.500 [0.253, 0.747] ‡ | 0.500 |" in text
    assert "‡ One seed: the interval is over the episodes of this one policy." in text


def test_an_unfinished_run_is_marked_as_such(tmp_path):
    run = make_run(tmp_path, CONFIG, {"reach-v3": [1]}, every=(500, 1500))
    text = summary(results_of([run])).to_markdown()
    assert "1.5k †" in text
    assert "† Not all seeds have reached the row's number of steps" in text


def test_the_same_seed_twice_is_refused(pair, tmp_path):
    again = make_run(tmp_path / "again", CONFIG, {"reach-v3": [1], "push-v3": [1]})
    with pytest.raises(ValueError, match=r"are both pair with seed 1; leave one out"):
        results_of([*pair, again])


def test_runs_of_one_name_with_other_settings_are_rows_of_their_own(pair, tmp_path):
    config = dataclasses.replace(CONFIG, sac=SacConfig(tau=0.01))
    other = make_run(tmp_path / "other", config, {"reach-v3": [1], "push-v3": [1]})
    assert [result.name for result in results_of([*pair, other])] == ["pair", "pair (sac.tau=0.01)"]


def test_no_runs_are_refused():
    with pytest.raises(ValueError, match=r"no runs to report"):
        results([], np.random.default_rng(0))


def test_curves_of_seeds_evaluated_at_other_steps_are_interpolated_where_all_go(tmp_path):
    runs = [
        make_run(tmp_path, CONFIG, {"reach-v3": [1]}, every=(1000, 2000)),
        make_run(tmp_path, dataclasses.replace(CONFIG, seed=2), {"reach-v3": [1]}, every=(1500, 2000)),
    ]
    env_steps, success = curves([read_run(run) for run in runs], ["reach-v3"])
    np.testing.assert_array_equal(env_steps, [1500, 2000])
    np.testing.assert_array_equal(success, [[[0.5, 1.0]], [[0.0, 1.0]]])  # [seed, task, step]


def test_success_over_time_has_a_line_for_every_seed(pair):
    (panel,) = time_curves(results_of(pair)).axes
    assert [list(line.get_xdata()) for line in panel.lines] == [[1 / 60, 100 / 60], [1 / 60, 90 / 60]]
    assert [list(line.get_ydata()) for line in panel.lines] == [[0.5, 0.5], [0.5, 0.5]]


def test_figures_show_every_row_and_task(pair, tmp_path):
    alone = make_run(
        tmp_path, dataclasses.replace(CONFIG, name="alone", expected=ExpectedConfig()), {"door-v3": [1, 0]}
    )
    found = results_of([*pair, alone])
    figure = success_curves(found)
    assert [panel.get_title() for panel in figure.axes] == ["pair, 2 seeds", "alone, 1 seed"]
    assert [len(panel.lines) for panel in figure.axes] == [4, 2]  # tasks, mean, and the published number of `pair`
    bars = task_bars(found).axes[0]
    assert [label.get_text() for label in bars.get_yticklabels()] == ["reach-v3", "push-v3", "door-v3"]
    assert [bar.get_width() for bar in bars.patches] == [0.75, 0.5, 0.5]


def test_a_report_is_a_page_tables_and_pictures(pair, tmp_path):
    files = write_report(pair, tmp_path / "out")
    pages, pictures = ["report.md", "table.md", "table.csv"], ["curves.png", "time.png", "tasks.png"]
    assert [file.name for file in files] == [*pages, *pictures]
    assert files[1].read_text() == f"{GOLDEN}\n{GOLDEN_TASKS}"
    assert all(file.read_bytes().startswith(b"\x89PNG") for file in files[3:])
    page = files[0].read_text()
    assert "![Learning curves](curves.png)" in page
    assert (
        "- **pair**: custom (2 tasks) on metaworld 3.1.1, reward v2, horizon 500, the first 4 of 50 stored goals per "
        "task, each once; mean actions; an episode is a success if any of its steps is; every episode counts "
        "(`mtrl`), beside it metaworld's own rule; 2k env steps over all tasks, 2 seeds (1, 2); "
        "Abacus, 2 cores, no GPU.\n"
    ) in page
    assert "| torch     | 2.13.0 |" in page


def test_a_report_says_how_adapted_policies_were_tested(tmp_path):
    config = RunConfig(
        name="meta",
        algorithm="rl2_ppo",
        env=EnvConfig(benchmark="ML1", tasks=("reach-v3",)),
        eval=EvalConfig(deterministic=False),
        meta=MetaConfig(adaptation_episodes=1),
        ppo=PpoConfig(minibatches=4),
    )
    page = write_report([make_run(tmp_path, config, {"reach-v3": [1, 0]})], tmp_path / "out")[0].read_text()
    assert (
        "stored goals per task, 3 episodes of each after 1 episode of adaptation; sampled actions; an episode" in page
    )


def test_a_report_is_the_same_when_made_again(pair, tmp_path):
    first, second = (write_report(pair, tmp_path / name) for name in ("a", "b"))
    assert [file.read_bytes() for file in first] == [file.read_bytes() for file in second]


def test_a_report_on_a_benchmark_lists_the_published_numbers(tmp_path):
    config = RunConfig(name="mt10-x", total_env_steps=2000)
    page = write_report([make_run(tmp_path, config, {"reach-v3": [1]})], tmp_path / "out")[0].read_text()
    assert "## Published numbers on MT10" in page
    assert "| MTMHSAC 400x3                 |   0.748 | [0.729, 0.769] |     v2 |     500 |       20M |" in page


def test_a_folder_that_cannot_be_written_is_refused(pair, tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(ValueError, match=r"file/out: cannot be written: Not a directory"):
        write_report(pair, tmp_path / "file" / "out")


def test_published_numbers_are_rates_with_a_source_and_no_doubles():
    keys = [(number.benchmark, number.method, number.source, number.protocol) for number in PUBLISHED]
    assert len(set(keys)) == len(keys)
    for number in PUBLISHED:
        assert 0 < number.success < 1
        assert number.source
        assert number.protocol.statistic
        if number.interval is not None:
            assert number.interval[0] <= number.success <= number.interval[1]
    assert [len(published(benchmark)) for benchmark in ("MT10", "MT25", "MT50", "toy")] == [39, 6, 36, 0]


@pytest.mark.parametrize(
    ("number", "text"),
    [
        (0, "0"),
        (950, "950"),
        (1500, "1.5k"),
        (200_000, "200k"),
        (1_234_567, "1.23M"),
        (20_000_000, "20M"),
        (999_999, "1M"),
    ],
)
def test_counts_are_short(number, text):
    assert count(number) == text


@pytest.mark.parametrize(
    ("seconds", "text"), [(0.4, "0 s"), (59.7, "1 min 0 s"), (423, "7 min 3 s"), (18_720, "5 h 12 min")]
)
def test_durations_have_two_units(seconds, text):
    assert duration(seconds) == text


def test_markdown_cells_cannot_break_the_table():
    grid = Grid("", ("a", "b"), (("x|y", "1"),))
    assert grid.to_markdown() == "| a    |   b |\n| ---- | --: |\n| x\\|y |   1 |\n"

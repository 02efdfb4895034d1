"""The compiled backend against metaworld's classes, and what keeps a stale or unproved one from being used."""

import gc
import hashlib
import json
import logging
import os
import platform
import shutil
import subprocess
import sys
import threading
from pathlib import Path

import numpy as np
import pytest

import envs
from envs import making
from envs.benchmarks import ALL_TASKS
from envs.cache import compile_and_keep, source_hash
from envs.compiled import fatal, native
from envs.compiled import obstacle as obstacles
from envs.compiled.catalogue import CATALOGUE
from envs.parity import SOURCES, compare
from envs.rounding import dot_is_fused

ROOT = Path(__file__).parents[1]
TRACES = Path(__file__).parent / "data" / "traces.json"
ROUNDING = "fused" if dot_is_fused() else "plain"
# a grasp with SciPy's quaternion, live views, a target set at the first step, two objects, a joint, float32 rewards
TRICKY_TASKS = ("pick-place-v3", "basketball-v3", "bin-picking-v3", "hammer-v3", "dial-turn-v3", "door-lock-v3")

pytestmark = [
    pytest.mark.filterwarnings("ignore:Constant.s. may be too high"),  # of metaworld's scripted policies
    pytest.mark.skipif(
        (platform.system(), platform.machine()) != ("Linux", "x86_64"), reason="claimed for Linux on x86-64"
    ),
]


def test_nothing_keeps_compiled_code_from_simulating_here():
    assert obstacles.obstacle(ALL_TASKS, "v2") is None


def test_every_task_is_known():
    assert set(CATALOGUE) == set(ALL_TASKS)


@pytest.mark.parametrize("task", TRICKY_TASKS)
def test_tricky_tasks_run_as_metaworld(task):
    found = compare(task, num_goals=2, episode_steps=100, sources=("expert", "extreme"))
    assert found.passed(), found
    assert found.steps == 400


def test_hidden_goals_run_as_metaworld():
    found = compare("basketball-v3", num_goals=2, episode_steps=60, sources=("uniform",), goal_visible=False)
    assert found.passed(), found
    env = envs.make("ML1", tasks=["basketball-v3"], backend="compiled", num_goals=1)
    env.reset(seed=0)
    assert not env.step(np.ones((1, 4), np.float32))[0][:, 36:].any()
    env.close()


@pytest.mark.slow
@pytest.mark.parametrize("task", ALL_TASKS)
def test_every_task_runs_as_metaworld(task):
    found = compare(task, num_goals=2, episode_steps=150)
    assert found.passed(), found
    assert found.steps == 2 * 150 * len(SOURCES)
    hidden = compare(task, num_goals=2, episode_steps=60, sources=("uniform",), goal_visible=False)
    assert hidden.passed(), hidden


def trace(backend, num_steps=40):
    """Returns for each task a hash of its observations and the sum of its rewards, under fixed random actions."""
    env = envs.make("custom", tasks=ALL_TASKS, num_goals=1, backend=backend)
    obs, _ = env.reset(seed=0)
    hashes = [hashlib.sha256(row.tobytes()) for row in obs]
    total = np.zeros(len(ALL_TASKS))
    for action in np.random.default_rng(0).uniform(-1, 1, (num_steps, len(ALL_TASKS), 4)):
        action[:, 1:3] += (0.4, -0.4)  # forward and down, so that things are touched
        obs, reward, *_ = env.step(action.astype(np.float32))
        total += reward
        for row, made in zip(obs, hashes, strict=True):
            made.update((row + 0.0).tobytes())  # + 0.0: zero has one sign
    env.close()
    return {
        task: {"obs": made.hexdigest()[:16], "reward": float(reward)}
        for task, made, reward in zip(ALL_TASKS, hashes, total, strict=True)
    }


def check_trace():
    """Raises where compiled code does other than metaworld's classes did, on a machine whose NumPy rounds the same."""
    recorded, found = json.loads(TRACES.read_text())[ROUNDING], trace("compiled")
    assert {task: one["obs"] for task, one in found.items()} == {task: one["obs"] for task, one in recorded.items()}
    for task, one in found.items():
        assert one["reward"] == pytest.approx(recorded[task]["reward"], rel=1e-6)


def test_recorded_traces_of_metaworld_are_repeated():
    check_trace()


@pytest.mark.slow
@pytest.mark.parametrize(("core", "flag", "rounding"), [("Haswell", "avx2", "plain"), ("SkylakeX", "avx512f", "fused")])
def test_compiled_code_rounds_as_numpy_does_on_other_processors(core, flag, rounding):
    if flag not in Path("/proc/cpuinfo").read_text().split():
        pytest.skip(f"this processor has no {flag}")
    code = f"import test_compiled; assert test_compiled.ROUNDING == {rounding!r}; test_compiled.check_trace()"
    environment = {**os.environ, "OPENBLAS_CORETYPE": core}
    subprocess.run([sys.executable, "-c", code], cwd=Path(__file__).parent, env=environment, check=True, timeout=500)


def test_threads_change_no_number():
    def run(num_threads):
        env = envs.make(
            "custom", tasks=TRICKY_TASKS, copies=3, num_goals=3, backend="compiled", num_threads=num_threads
        )
        said = [env.reset(seed=0)[0]]
        for action in np.random.default_rng(0).uniform(-1, 1, (60, env.num_envs, 4)):
            obs, reward, _, _, infos = env.step(action.astype(np.float32))
            said += [obs, reward, infos["obj_to_target"]]
        env.close()
        return said

    for alone, together in zip(run(1), run(3), strict=True):
        np.testing.assert_array_equal(alone, together)


def test_threads_take_first_what_took_longest():
    env = envs.make("custom", tasks=TRICKY_TASKS, copies=2, num_goals=1, backend="compiled", num_threads=2)
    env.reset(seed=0)
    env.set_active(np.arange(env.num_envs) == 7)  # all others take no time
    for _ in range(2):
        env.step(np.zeros((env.num_envs, 4), np.float32))
    crew = env._simulator._crew._shared
    assert (crew.ticks > 0).tolist() == (np.arange(env.num_envs) == 7).tolist()
    assert crew.order[0] == 7
    assert sorted(crew.order) == list(range(env.num_envs))
    env.close()


def test_threads_end_with_their_environments():
    def helpers():
        return [thread for thread in threading.enumerate() if thread.name.startswith("simulation")]

    before = len(helpers())

    def stepped(num_threads):
        env = envs.make("custom", tasks=TRICKY_TASKS[:3], num_goals=1, backend="compiled", num_threads=num_threads)
        env.reset(seed=0)
        env.step(np.zeros((3, 4), np.float32))
        return env

    env = stepped(num_threads=8)
    assert len(helpers()) == before + 2  # no more threads than environments
    env.close()
    assert len(helpers()) == before
    forgotten = stepped(num_threads=2)
    assert len(helpers()) == before + 1
    del forgotten
    gc.collect()
    assert len(helpers()) == before


@pytest.mark.parametrize("num_threads", [1, 2])
def test_closed_environments_are_refused(num_threads):
    env = envs.make("custom", tasks=TRICKY_TASKS[:2], num_goals=1, backend="compiled", num_threads=num_threads)
    env.reset(seed=0)
    simulator = env._simulator
    env.close()
    for call in (lambda: env.step(np.zeros((2, 4), np.float32)), env.reset, env.get_state):
        with pytest.raises(RuntimeError, match="have been closed"):
            call()
    with pytest.raises(ValueError, match=r"expected \(0, 4\)"):
        simulator.step(np.zeros((2, 4), np.float32))


@pytest.mark.parametrize("task", ["door-lock-v3", "bin-picking-v3", "basketball-v3"])
def test_a_state_carries_what_rewards_look_up_in_live_data(task):
    old, new = (envs.make("custom", tasks=[task], num_goals=1, backend="compiled") for _ in range(2))
    old.reset(seed=0)
    new.set_state(old.get_state())  # nothing was looked up yet
    for action in np.random.default_rng(0).uniform(-1, 1, (20, 1, 4)).astype(np.float32):
        said, same = old.step(action), new.step(action)
        np.testing.assert_array_equal(said[0], same[0])
        assert (said[1], said[4]["grasp_reward"]) == (same[1], same[4]["grasp_reward"])


GIVE_UP = """
import ctypes
import numpy as np
import envs
env = envs.make("custom", tasks=["reach-v3", "push-v3"], num_goals=2, backend="compiled", num_threads=2)
env.reset(seed=0)
ctypes.c_size_t.from_address(env._simulator._data[1]._address).value = 0  # no memory for its contacts
print("stepping", flush=True)
env.step(np.zeros((2, 4), np.float32))
print("stepped")
"""


def test_an_error_of_mujoco_names_the_environment_and_ends_the_process():
    ended = subprocess.run([sys.executable, "-c", GIVE_UP], capture_output=True, text=True, timeout=300, check=False)
    assert (ended.returncode, ended.stdout) == (fatal.EXIT_CODE, "stepping\n")
    assert "MuJoCo gave up in push-v3, environment 1, goal " in ended.stderr


DIE_IN_TRAINING = """
import ctypes, sys
from envs.compiled.simulator import CompiledSimulator
from mtrl.cli import main
step, calls = CompiledSimulator.step, []
def step_until_memory_is_gone(self, *arguments):
    calls.append(1)
    if len(calls) == 150:
        ctypes.c_size_t.from_address(self._data[0]._address).value = 0
    return step(self, *arguments)
CompiledSimulator.step = step_until_memory_is_gone
sys.argv = ["mtrl", "train", *sys.argv[1:]]
main()
"""
TINY_TRAINING = """
total_env_steps: 300
env: {benchmark: MT1, tasks: [push-v3]}
network: {actor_widths: [8], critic_widths: [8]}
sac: {warmup_steps_per_task: 20, batch_size: 8}
eval: {final_goals: 1, stop_at_success: true}
checkpoint: {every_env_steps: 100, replay: true}
"""


@pytest.mark.slow
def test_a_run_that_an_error_of_mujoco_ended_goes_on_from_its_last_checkpoint(tmp_path):
    (tmp_path / "tiny.yaml").write_text(TINY_TRAINING)
    runs = tmp_path / "runs"
    command = [sys.executable, "-c", DIE_IN_TRAINING, str(tmp_path / "tiny.yaml"), f"runs_dir={runs}"]
    died = subprocess.run(command, capture_output=True, text=True, timeout=300, check=False)
    assert died.returncode == fatal.EXIT_CODE
    assert "MuJoCo gave up in push-v3, environment 0, goal " in died.stderr
    (run,) = runs.iterdir()
    resume = [sys.executable, "-m", "mtrl", "resume", str(run)]
    told = subprocess.run(resume, capture_output=True, text=True, timeout=300, check=True).stdout
    assert "100 transitions" in told
    metrics = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    assert metrics[-1]["env_steps"] == 300


THREADS = """
import multiprocessing, os, sys
import numpy as np
import envs

def run(env, num_steps=20):
    env.reset(seed=0)
    return float(sum(env.step(np.full((4, 4), 0.5, np.float32))[1].sum() for _ in range(num_steps)))

def make():
    tasks = ["reach-v3", "hammer-v3"]
    return envs.make("custom", tasks=tasks, copies=2, num_goals=1, backend="compiled", num_threads=2)

def child(expected):
    sys.exit(run(make()) != expected)

if __name__ == "__main__":
    env = make()
    expected = run(env)
    forked = os.fork()
    if not forked:  # its copy of the threads is dead
        os._exit(run(env) != expected)
    print(os.waitstatus_to_exitcode(os.waitpid(forked, 0)[1]))
    for method in ("fork", "spawn"):
        started = multiprocessing.get_context(method).Process(target=child, args=(expected,))
        started.start()
        started.join()
        print(started.exitcode)
    print(run(env) == expected, flush=True)
    # ends without closing anything
"""


def test_threads_survive_fork_and_spawn_and_end_with_the_process(tmp_path):
    (tmp_path / "threads.py").write_text(THREADS)
    command = [sys.executable, "-W", "ignore", str(tmp_path / "threads.py")]
    ended = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    assert (ended.stdout, ended.stderr, ended.returncode) == ("0\n0\n0\nTrue\n", "", 0)


def test_machine_code_is_kept_apart_for_every_state_of_the_sources(tmp_path):
    copy = tmp_path / "compiled"
    shutil.copytree(native.SOURCES, copy, ignore=shutil.ignore_patterns("__pycache__"))
    assert source_hash(copy) == source_hash(native.SOURCES)
    reward = copy / "tasks" / "grasping.py"
    reward.write_text(reward.read_text().replace("_RADIUS = 0.05", "_RADIUS = 0.06"))
    source_hash.cache_clear()
    assert source_hash(copy) != source_hash(native.SOURCES)


def test_without_a_cache_that_can_be_written_every_process_compiles_anew_after_one_warning(
    tmp_path, monkeypatch, caplog
):
    (tmp_path / "file").touch()
    monkeypatch.setenv("MTRL_CACHE", str(tmp_path / "file" / "cache"))
    for _ in range(2):
        made = compile_and_keep(without_lock, tmp_path)
        assert made(2) == 4
        assert type(made._cache).__name__ == "NullCache"  # not one beside the sources, as numba would choose
    (record,) = caplog.records
    assert record.message.startswith("cannot keep machine code ([Errno 20] Not a directory: ")
    assert record.message.endswith("); set MTRL_CACHE to a writable folder")


def without_lock(x):
    return 2 * x


WRONG_CONSTANTS = {
    "reach-v3": ("grasping", "Judgement(10.0 * in_place, success", "Judgement(9.9 * in_place, success"),
    "drawer-open-v3": ("furniture", "5.0 * (caging + opening)", "5.1 * (caging + opening)"),
    "button-press-v3": ("buttons", "0.005, extra(scene, 0)", "0.006, extra(scene, 0)"),
    "handle-press-v3": ("handles", "else 10.0 * hamacher(reach, in_place)", "else 9.9 * hamacher(reach, in_place)"),
    "door-unlock-v3": ("turning", "2.0 * ready + 8.0 * pushed", "2.0 * ready + 7.9 * pushed"),
}


@pytest.mark.slow
def test_a_wrong_constant_is_noticed_also_where_machine_code_is_warm(tmp_path):
    shutil.copytree(ROOT / "envs", tmp_path / "envs", ignore=shutil.ignore_patterns("__pycache__"))
    for name, right, wrong in WRONG_CONSTANTS.values():
        path = tmp_path / "envs" / "compiled" / "tasks" / f"{name}.py"
        assert path.read_text().count(right) == 1
        path.write_text(path.read_text().replace(right, wrong))
    code = f"""
from envs.parity import compare
for task in {[*WRONG_CONSTANTS, "plate-slide-v3"]}:
    found = compare(task, num_goals=1, episode_steps=60, sources=("expert",))
    print(task, found.passed(), found.unequal_obs + found.unequal_flags)
"""
    compare("reach-v3", num_goals=1, episode_steps=1)  # the right machine code is there
    told = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", code],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(tmp_path)},
        capture_output=True,
        text=True,
        check=True,
    ).stdout
    assert told.split("\n") == [*(f"{task} False 0" for task in WRONG_CONSTANTS), "plate-slide-v3 True 0", ""]


@pytest.mark.slow
def test_two_processes_may_warm_the_cache_at_once(tmp_path):
    code = """
import numpy as np
import envs
env = envs.make("custom", tasks=["push-v3", "hammer-v3"], num_goals=1, backend="compiled")
env.reset(seed=0)
print(env.step(np.ones((2, 4), np.float32))[0].sum())
"""
    environment = {**os.environ, "MTRL_CACHE": str(tmp_path)}
    started = [
        subprocess.Popen([sys.executable, "-c", code], env=environment, stdout=subprocess.PIPE, text=True)
        for _ in range(2)
    ]
    said = [process.communicate(timeout=500)[0] for process in started]
    assert [process.returncode for process in started] == [0, 0]
    assert said[0] == said[1] != ""
    assert list(tmp_path.rglob("*.nbc"))


def test_auto_falls_back_and_says_why_once(monkeypatch, caplog):
    monkeypatch.setitem(obstacles.PROVED_ON, "mujoco", "3.4.0")
    making._tell_once.cache_clear()
    with caplog.at_level(logging.WARNING):
        chosen = [making.choose_backend(["reach-v3"], "v2", "auto") for _ in range(2)]
    assert chosen == ["metaworld", "metaworld"]
    assert caplog.text.count("proved equal on mujoco 3.4.0") == 1


@pytest.mark.parametrize(
    ("keywords", "message"),
    [
        ({"reward_version": "v1"}, "knows reward v2 only"),
        ({"tasks": ["reach-v33"]}, "is not a task"),
    ],
)
def test_compiled_is_refused_where_it_cannot_be_used(keywords, message):
    with pytest.raises(ValueError, match=message):
        envs.make("MT1", **{"tasks": ["reach-v3"], "backend": "compiled", **keywords})


def test_a_processor_that_disagrees_is_noticed(monkeypatch):
    from envs.compiled import primitives

    monkeypatch.setattr(primitives, "length", lambda vector: float(np.sqrt(vector[0] ** 2 + vector[1] ** 2)))
    obstacles._disagreement.cache_clear()
    try:
        assert "differs from NumPy's" in obstacles.obstacle(["reach-v3"], "v2")
    finally:
        monkeypatch.undo()
        obstacles._disagreement.cache_clear()


if __name__ == "__main__":  # records the traces of metaworld's classes anew, for the way NumPy rounds here
    TRACES.parent.mkdir(exist_ok=True)
    known = json.loads(TRACES.read_text()) if TRACES.exists() else {}
    TRACES.write_text(json.dumps({**known, ROUNDING: trace("metaworld")}, indent=1) + "\n")

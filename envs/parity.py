"""Compares the compiled backend with metaworld's classes, step by step: `python -m envs.parity`, or `make parity`."""

from __future__ import annotations

import argparse
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from envs.benchmarks import ALL_TASKS
from envs.making import make
from envs.metaworld_simulator import INFO_KEYS

Actions = npt.NDArray[np.float32]
SOURCES = ("expert", "uniform", "extreme")
"""metaworld's scripted policy with noise; uniformly random, also out of bounds; -1 and 1, switching now and then."""
TOLERANCE = 1e-9
ROUNDED_TOLERANCE = 1e-6
ROUNDED_TASKS = (
    "assembly-v3",
    "basketball-v3",
    "bin-picking-v3",
    "box-close-v3",
    "coffee-pull-v3",
    "coffee-push-v3",
    "dial-turn-v3",
    "disassemble-v3",
    "door-open-v3",
    "drawer-close-v3",
    "hammer-v3",
    "hand-insert-v3",
    "handle-pull-side-v3",
    "handle-pull-v3",
    "peg-insert-side-v3",
    "peg-unplug-side-v3",
    "pick-out-of-hole-v3",
    "pick-place-v3",
    "pick-place-wall-v3",
    "push-v3",
    "push-wall-v3",
    "shelf-place-v3",
    "stick-pull-v3",
    "stick-push-v3",
)
"""Tasks whose rewards metaworld computes partly in float32, because the action enters them."""
_HOLD = 15  # steps between two switches of the extreme actions


@dataclass
class Comparison:
    """What was found for one task."""

    task: str
    steps: int = 0
    unequal_obs: int = 0
    """Steps whose observation differs anywhere."""
    unequal_flags: int = 0
    """Steps whose success, terminated or truncated differ."""
    successes: dict[str, list[int]] = field(default_factory=dict)
    """Source → episodes with a success under metaworld and under the compiled backend."""
    errors: dict[str, float] = field(default_factory=dict)
    """Reward or key of info → largest |a - b| / (1 + |a|)."""

    @property
    def largest_error(self) -> float:
        """The largest error of all."""
        return max(self.errors.values(), default=0.0)

    def passed(self) -> bool:
        """Returns whether the backends agree on this task."""
        tolerance = ROUNDED_TOLERANCE if self.task in ROUNDED_TASKS else TOLERANCE
        return not self.unequal_obs and not self.unequal_flags and self.largest_error <= tolerance


def compare(
    task: str,
    num_goals: int,
    episode_steps: int,
    sources: Sequence[str] = SOURCES,
    *,
    goal_visible: bool = True,
    seed: int = 1,
) -> Comparison:
    """Runs both backends with the same actions over every goal once per source, autoresets included.

    Args:
        task: Name of the task.
        num_goals: Goals, and episodes per source.
        episode_steps: Length of an episode, at most 500.
        sources: Of the actions.
        goal_visible: Whether observations hold the goal, as on multi-task benchmarks, or zeros, as for meta-learning.
        seed: Of goals and actions.
    """
    found = Comparison(task)
    for number, source in enumerate(sources):
        backends = [
            make(
                "custom" if goal_visible else "ML1",
                tasks=[task],
                seed=seed,
                num_goals=num_goals,
                max_episode_steps=episode_steps,
                stream_seed=number,
                backend=backend,
            )
            for backend in ("metaworld", "compiled")
        ]
        ours, theirs = backends[1], backends[0]
        obs, again = theirs.reset(seed=seed)[0], ours.reset(seed=seed)[0]
        found.unequal_obs += not np.array_equal(obs, again)
        act = actions_from(source, task, np.random.default_rng([seed, number]))
        won = np.zeros(2, bool)
        found.successes[source] = [0, 0]
        for _ in range(num_goals * episode_steps):
            action = act(obs[0])[np.newaxis]
            expected, answer = theirs.step(action), ours.step(action)
            ended = bool(expected[3][0])
            infos = [_info(step[4], ended) for step in (expected, answer)]
            found.steps += 1
            found.unequal_obs += not np.array_equal(expected[0], answer[0])
            if ended:
                finals = [np.asarray(step[4]["final_obs"][0]) for step in (expected, answer)]
                found.unequal_obs += not np.array_equal(finals[0], finals[1])
            flags = [
                (bool(step[2][0]), bool(step[3][0]), info["success"])
                for step, info in zip((expected, answer), infos, strict=True)
            ]
            found.unequal_flags += flags[0] != flags[1]
            _note(found, "reward", float(expected[1][0]), float(answer[1][0]))
            for key, value in infos[0].items():
                _note(found, key, value, infos[1][key])
            won |= [info["success"] > 0.0 for info in infos]
            if ended:
                for which in range(2):
                    found.successes[source][which] += int(won[which])
                won[:] = False
            obs = expected[0]
        for backend in backends:
            backend.close()
    return found


def report(found: Sequence[Comparison], title: str) -> str:
    """Returns a page with a line per task."""
    lines = [f"# {title}", "", "| Task | Steps | Unequal observations | Unequal flags | Largest error | Expert wins |"]
    lines.append("| --- | ---: | ---: | ---: | ---: | --- |")
    for one in found:
        wins = " / ".join(map(str, one.successes.get("expert", [])))
        cells = (one.task, f"{one.steps:,}", one.unequal_obs, one.unequal_flags, f"{one.largest_error:.1e}", wins)
        lines.append(f"| {' | '.join(map(str, cells))} |")
    failed = [one.task for one in found if not one.passed()]
    total = sum(one.steps for one in found)
    lines += [
        "",
        f"{total:,} steps of {len(found)} tasks; " + (f"FAILED: {', '.join(failed)}" if failed else "all agree."),
    ]
    lines.append(
        "Errors are of rewards and info, |a − b| / (1 + |a|); observations, success, terminated and truncated are "
        "compared with ==. Expert wins: episodes with a success, metaworld / compiled."
    )
    return "\n".join(lines) + "\n"


def _info(infos: dict[str, Any], ended: bool) -> dict[str, float]:
    source = infos["final_info"] if ended else infos
    return {key: float(np.asarray(source[key])[0]) for key in INFO_KEYS}


def _note(found: Comparison, key: str, expected: float, answer: float) -> None:
    error = abs(expected - answer) / (1.0 + abs(expected))
    found.errors[key] = max(found.errors.get(key, 0.0), math.inf if math.isnan(error) else error)


def actions_from(source: str, task: str, draws: np.random.Generator) -> Callable[[npt.NDArray[Any]], Actions]:
    """Returns a function from an observation [obs] of a task to the next action [4] of one of SOURCES."""
    if source == "expert":
        from metaworld.policies import ENV_POLICY_MAP  # takes a moment to load

        policy_class: Any = ENV_POLICY_MAP[task]
        policy = policy_class()
        return lambda obs: (policy.get_action(obs) + draws.normal(scale=0.1, size=4)).astype(np.float32)
    if source == "uniform":
        return lambda obs: draws.uniform(-1.0, 1.0, 4).astype(np.float32)
    switches = _switches(draws)
    return lambda obs: next(switches)


def _switches(draws: np.random.Generator) -> Iterator[Actions]:
    while True:
        action = draws.choice([-1.0, 1.0], 4).astype(np.float32)
        for _ in range(int(draws.integers(1, 2 * _HOLD))):
            yield action


def main() -> None:
    """Compares tasks and writes the report."""
    options = argparse.ArgumentParser(description=__doc__)
    options.add_argument("tasks", nargs="*", default=list(ALL_TASKS))
    options.add_argument("--goals", type=int, default=10)
    options.add_argument("--steps", type=int, default=500)
    options.add_argument("--out", type=Path)
    chosen = options.parse_args()
    found = []
    for task in chosen.tasks:
        found.append(compare(task, chosen.goals, chosen.steps))
        verdict = "equal" if found[-1].passed() else f"DIFFERS: {found[-1]}"
        print(
            f"{task:28} {found[-1].steps:7,} steps  largest error {found[-1].largest_error:.1e}  {verdict}", flush=True
        )
    text = report(found, f"Parity: {chosen.goals} goals, {chosen.steps} steps an episode")
    if chosen.out is not None:
        chosen.out.parent.mkdir(parents=True, exist_ok=True)
        chosen.out.write_text(text)
    if not all(one.passed() for one in found):
        raise SystemExit(1)


if __name__ == "__main__":
    main()

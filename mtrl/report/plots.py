"""Pictures of results: learning curves and bars per task, as figures without pyplot's global state."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import FuncFormatter, PercentFormatter
from numpy.typing import NDArray

from mtrl.report.results import Result
from mtrl.report.runs import Run
from mtrl.report.text import count

Array = NDArray[np.float64]

_COLOURS = (
    "#1f77b4",
    "#ff7f0e",
    "#2ca02c",
    "#d62728",
    "#9467bd",
    "#8c564b",
    "#e377c2",
    "#7f7f7f",
    "#bcbd22",
    "#17becf",
)
_NAMED_TASKS = len(_COLOURS)
_DPI = 150


def success_curves(found: Sequence[Result]) -> Figure:
    """Draws success over environment steps, one panel per row.

    The thick line is the mean over tasks and seeds, its band the lowest and highest seed, each thin line a task's mean
    over seeds. Evaluations during training count, so points differ in their number of goals.
    """
    columns = min(3, len(found))
    lines = math.ceil(len(found) / columns)
    tasks = tuple(dict.fromkeys(task for result in found for task in result.tasks))
    named = len(tasks) <= _NAMED_TASKS
    figure = Figure(figsize=(3.6 * columns + 3.0, 3.0 * lines + 0.5), dpi=_DPI, layout="constrained")
    panels = figure.subplots(lines, columns, sharey=True, squeeze=False)
    for panel, result in zip(panels.flat, found, strict=False):
        _draw_curves(panel, result, {task: _COLOURS[i] if named else "#9aa5b1" for i, task in enumerate(tasks)})
    for panel in panels.flat[len(found) :]:
        panel.set_visible(False)
    for panel in panels[:, 0]:
        panel.set_ylabel("success rate", fontsize=9)
    handles = [Line2D([], [], color="black", linewidth=2.2, label="mean over tasks")]
    if any(len(result.seeds) > 1 for result in found):
        handles.append(Line2D([], [], color="black", alpha=0.15, linewidth=8, label="lowest to highest seed"))
    if any(result.expected.success_rate is not None for result in found):
        handles.append(Line2D([], [], color="black", linestyle=(0, (4, 3)), linewidth=1, label="published"))
    if named:
        handles += [Line2D([], [], color=_COLOURS[i], linewidth=1.2, label=task) for i, task in enumerate(tasks)]
    else:
        handles.append(Line2D([], [], color="#9aa5b1", linewidth=0.8, label=f"each of {len(tasks)} tasks"))
    figure.legend(handles=handles, loc="outside right upper", frameon=False, fontsize=8)
    return figure


def time_curves(found: Sequence[Result]) -> Figure:
    """Draws mean success over wall time, a line per seed and a colour per row.

    Evaluations count in; what lies between the last record before a stop and the resume does not.
    """
    figure = Figure(figsize=(7.0, 3.5), dpi=_DPI, layout="constrained")
    panel = figure.subplots()
    for number, result in enumerate(found):
        colour = _COLOURS[number % len(_COLOURS)]
        for run in result.runs:
            minutes = [seconds / 60 for seconds, _ in run.success_over_time]
            success = [mean for _, mean in run.success_over_time]
            panel.plot(minutes, success, color=colour, marker="o", markersize=2.5, linewidth=1.2)
    panel.set_xlim(left=0)
    panel.set_ylim(-0.02, 1.02)
    panel.yaxis.set_major_formatter(PercentFormatter(1.0))
    panel.set_xlabel("minutes of the run, on its machine", fontsize=9)
    panel.set_ylabel("success rate, mean over tasks", fontsize=9)
    _plain(panel)
    lines = [
        Line2D([], [], color=_COLOURS[number % len(_COLOURS)], label=f"{result.name} ({_seeds(result)})")
        for number, result in enumerate(found)
    ]
    figure.legend(handles=lines, loc="outside upper left", ncols=min(3, len(found)), frameon=False, fontsize=8)
    return figure


def task_bars(found: Sequence[Result]) -> Figure:
    """Draws the success rate of each task as a bar per row, with its 95 % interval over episodes."""
    tasks = tuple(dict.fromkeys(task for result in found for task in result.tasks))
    height = 0.8 / len(found)
    inches = max(0.22, 0.11 * len(found)) * len(tasks) + 1.2
    figure = Figure(figsize=(7.0, inches), dpi=_DPI, layout="constrained")
    panel = figure.subplots()
    for number, result in enumerate(found):
        rates = result.scores.per_task
        places = np.array([tasks.index(task) for task in result.tasks]) + (number + 0.5) * height - 0.4
        below = rates - [interval.low for interval in result.scores.per_task_intervals]
        above = np.array([interval.high for interval in result.scores.per_task_intervals]) - rates
        whiskers = np.clip([below, above], 0, None)  # rounding can leave -1e-17
        panel.barh(places, rates, height * 0.9, color=_COLOURS[number % len(_COLOURS)], label=result.name)
        panel.errorbar(rates, places, xerr=whiskers, fmt="none", ecolor="#333333", elinewidth=0.8)
    panel.set_yticks(range(len(tasks)), tasks, fontsize=8)
    panel.set_ylim(len(tasks) - 0.5, -0.5)
    panel.set_xlim(0, 1)
    panel.set_xlabel("success rate, with 95 % interval over episodes", fontsize=9)
    panel.xaxis.set_major_formatter(PercentFormatter(1.0))
    _plain(panel)
    figure.legend(loc="outside upper left", ncols=min(3, len(found)), frameon=False, fontsize=8)
    return figure


def save(figure: Figure, path: Path) -> None:
    """Writes a figure as PNG, without the date, so that the same results give the same file."""
    figure.savefig(path, format="png", metadata={"Software": None})


def _draw_curves(panel: Axes, result: Result, colours: dict[str, str]) -> None:
    env_steps, success = curves(result.runs, result.tasks)
    per_task = success.mean(axis=0)  # [task, step]
    for task, values in zip(result.tasks, per_task, strict=True):
        panel.plot(
            env_steps, values, color=colours[task], linewidth=0.9, alpha=0.75 if len(colours) <= _NAMED_TASKS else 0.4
        )
    per_seed = success.mean(axis=1)  # [seed, step]
    if len(per_seed) > 1:
        panel.fill_between(
            env_steps, per_seed.min(axis=0), per_seed.max(axis=0), color="black", alpha=0.15, linewidth=0
        )
    marker = "o" if len(env_steps) == 1 else None
    panel.plot(env_steps, per_seed.mean(axis=0), color="black", linewidth=2.2, marker=marker)
    if result.expected.success_rate is not None:
        panel.axhline(result.expected.success_rate, color="black", linestyle=(0, (4, 3)), linewidth=1)
    panel.set_title(f"{result.name}, {_seeds(result)}", fontsize=9)
    panel.set_ylim(-0.02, 1.02)
    panel.set_xlim(left=0)
    panel.set_xlabel("environment steps, all tasks together", fontsize=9)
    panel.xaxis.set_major_formatter(FuncFormatter(lambda steps, _: count(steps)))
    panel.yaxis.set_major_formatter(PercentFormatter(1.0))
    _plain(panel)


def curves(runs: Sequence[Run], tasks: Sequence[str]) -> tuple[Array, Array]:
    """Returns environment steps [step] and success [seed, task, step] of the evaluations of several seeds.

    Where seeds were evaluated at different steps, each is interpolated linearly onto all of them, as far as all go.
    """
    steps = [np.array([evaluation.env_steps for evaluation in run.evaluations], float) for run in runs]
    every = np.unique(np.concatenate(steps))
    shared = every[(every >= max(own[0] for own in steps)) & (every <= min(own[-1] for own in steps))]
    if not len(shared):  # no stretch in common: an early seed and a late one
        shared = every
    success = [
        [
            np.interp(shared, own, [evaluation.estimators["mtrl"]["success"][task] for evaluation in run.evaluations])
            for task in tasks
        ]
        for run, own in zip(runs, steps, strict=True)
    ]
    return shared, np.array(success)


def _seeds(result: Result) -> str:
    return "1 seed" if len(result.seeds) == 1 else f"{len(result.seeds)} seeds"


def _plain(panel: Axes) -> None:
    panel.spines[["top", "right"]].set_visible(False)
    panel.grid(alpha=0.25, linewidth=0.5)
    panel.set_axisbelow(True)
    panel.tick_params(labelsize=8)

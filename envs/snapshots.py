"""States of a metaworld task object: read out of it, put into one, and made by a reset.

A reset of metaworld simulates 500 steps to arrive at a state that depends only on the task and its goal. Here it is
simulated once per (task, goal) and copied afterwards (`start_states.py`). Three things make a state: the integration
state of MuJoCo, the positions that a goal moves in the model, and the numbers that the Python object keeps. Some of
these numbers are no copies but views of MuJoCo's live data, and rewards rely on that; they are restored as views.

MuJoCo's derived quantities are left as they are: the next step computes them, and calling `mj_forward` here would
change the warm start of the solver and with it the run.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, TypeAlias

import mujoco
import numpy as np
from gymnasium.envs.mujoco.mujoco_env import MujocoEnv

from envs.simulator import FloatArray

TaskObject: TypeAlias = Any
"""An object of one of metaworld's task classes, made by `task_objects.make_task`."""

_STATE = int(mujoco.mjtState.mjSTATE_INTEGRATION)
_LIVE_FIELDS = ("xpos", "xquat", "xipos", "site_xpos", "geom_xpos", "mocap_pos", "mocap_quat", "qpos", "qvel")
_GENERIC = (bool, int, float, str, np.generic, type(None))


@dataclass(frozen=True)
class LiveView:
    """Where in MuJoCo's data an attribute looks."""

    field: str
    offset: int  # in numbers from the start of the field
    shape: tuple[int, ...]


@dataclass(frozen=True)
class Snapshot:
    """A state of one task object.

    Attributes:
        physics: MuJoCo's integration state [state].
        body_pos: The model's body positions [body, 3].
        site_pos: The model's site positions [site, 3].
        attributes: Plain attributes of the Python object; arrays among them are read-only.
        views: Attributes that are views of live data.
    """

    physics: FloatArray
    body_pos: FloatArray
    site_pos: FloatArray
    attributes: Mapping[str, Any]
    views: Mapping[str, LiveView]


def capture(task: TaskObject) -> Snapshot:
    """Returns the state of a task object.

    Raises:
        RuntimeError: If an attribute is a view of live data in a place unknown here.
    """
    physics = np.empty(mujoco.mj_stateSize(task.model, _STATE))
    mujoco.mj_getState(task.model, task.data, physics, _STATE)
    attributes: dict[str, Any] = {}
    views: dict[str, LiveView] = {}
    for name, value in task.__dict__.items():
        if isinstance(value, np.ndarray):
            view = _find_view(task, name, value)
            if view is not None:
                views[name] = view
            else:
                attributes[name] = _frozen(value)
        elif isinstance(value, _GENERIC):
            attributes[name] = value
        elif isinstance(value, list) and all(isinstance(item, _GENERIC) for item in value):
            attributes[name] = list(value)
    body_pos, site_pos = _frozen(task.model.body_pos), _frozen(task.model.site_pos)
    return Snapshot(physics, body_pos, site_pos, attributes, views)


def restore(task: TaskObject, snapshot: Snapshot) -> None:
    """Puts a task object into the state, but for the model's positions, which `write_scene` puts."""
    mujoco.mj_setState(task.model, task.data, snapshot.physics.copy(), _STATE)  # it wants a writable array
    task.__dict__.update(snapshot.attributes)
    for name, view in snapshot.views.items():
        task.__dict__[name] = _make_view(task.data, view)


def write_scene(model: mujoco.MjModel, snapshot: Snapshot) -> None:
    """Moves the bodies and sites of the model to where the goal of this state wants them."""
    model.body_pos[:] = snapshot.body_pos
    model.site_pos[:] = snapshot.site_pos


def warnings(data: mujoco.MjData) -> str:
    """Returns the names of the warnings that MuJoCo has counted since the last reset."""
    return ", ".join(mujoco.mjtWarning(kind).name for kind in np.flatnonzero(data.warning.number))


def reset_task(task: TaskObject, goal: FloatArray) -> FloatArray:
    """Resets a task object as metaworld does and returns the first observation [39].

    metaworld moves the hand to its start twice; the first time only serves to write the goal's positions into the
    model, so here the hand rests then. Start state and run stay bit-equal.

    Args:
        task: From `task_objects.make_task`.
        goal: Random vector [dim], from `goals.goals_for`.
    """
    task._last_rand_vec = goal.copy()
    task.curr_path_length = 0
    move_hand = type(task)._reset_hand
    task._reset_hand = lambda: move_hand(task, steps=0)
    try:
        task.reset_model()
    finally:
        del task._reset_hand
    obs, _ = MujocoEnv.reset(task)
    obs = np.asarray(obs, np.float64)
    obs[18:36] = obs[:18]  # the frame before the first one is the first one
    task._prev_obs = obs[:18].copy()
    return obs


def _frozen(array: Any) -> Any:
    copied = np.array(array)
    copied.flags.writeable = False
    return copied


def _find_view(task: TaskObject, name: str, value: Any) -> LiveView | None:
    """Returns where in the live data the array looks, or None if it has its own memory."""
    root = value
    while isinstance(root.base, np.ndarray):
        root = root.base
    if root.base is None:
        return None
    address = value.__array_interface__["data"][0]
    for field in _LIVE_FIELDS:
        live = getattr(task.data, field)
        offset = address - live.__array_interface__["data"][0]
        if 0 <= offset < live.nbytes and value.flags.c_contiguous:
            return LiveView(field, offset // live.itemsize, value.shape)
    raise RuntimeError(f"{task.task_name}.{name} is a view of memory that is not known here, shape {value.shape}")


def _make_view(data: mujoco.MjData, view: LiveView) -> Any:
    flat = getattr(data, view.field).reshape(-1)
    size = int(np.prod(view.shape))
    return flat[view.offset : view.offset + size].reshape(view.shape)

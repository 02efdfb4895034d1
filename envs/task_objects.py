"""Objects of metaworld's task classes, built around a model that is already loaded.

metaworld's own classes compute object positions and rewards; this file gives them a model, and the lean step.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import mujoco

from envs import lean_step, models
from envs.snapshots import TaskObject


def load_task_models(task_names: Sequence[str]) -> list[mujoco.MjModel]:
    """Returns a new model of each task's scene."""
    return models.load_models([Path(_task_class(name).model_name.fget(None)) for name in task_names])


def class_name(task_name: str) -> str:
    """Returns the name of metaworld's class of a task, which its `evaluation` module asks for."""
    return str(_task_class(task_name).__name__)


def make_task(task_name: str, model: mujoco.MjModel, reward_version: str, *, goal_visible: bool) -> TaskObject:
    """Returns a new task object with its own data and the given model.

    Args:
        task_name: For example `reach-v3`.
        model: From `load_task_models`; objects that share it must take turns (see `snapshots.write_scene`).
        reward_version: `v1` or `v2`.
        goal_visible: Whether the observation holds the goal, or zeros.
    """
    task_class = _task_class(task_name)

    def use_model(self: TaskObject) -> tuple[mujoco.MjModel, mujoco.MjData]:
        model.vis.global_.offwidth, model.vis.global_.offheight = self.width, self.height
        data = mujoco.MjData(model)
        self.live = lean_step.LiveData(data)
        return model, data

    members = {
        "_initialize_simulation": use_model,
        "_step_mujoco_simulation": lean_step.simulate,
        "tcp_center": property(lean_step.tcp_center),
        "get_body_com": lean_step.get_body_com,
        "touching_object": lean_step.touching_object,
    }
    task = type(task_class.__name__, (task_class,), members)(reward_function_version=reward_version)
    task._freeze_rand_vec = True
    task._set_task_called = True
    task._partially_observable = not goal_visible
    task.__dict__.pop("sawyer_observation_space", None)  # computed anew for this visibility
    task.observation_space = task.sawyer_observation_space
    return task


def plain_task(task_name: str) -> TaskObject:
    """Returns an object of metaworld's class as it is, with the goal visible, after a reset; to compare with."""
    task = _task_class(task_name)()
    task._freeze_rand_vec, task._set_task_called, task._partially_observable = False, True, False
    task.reset()
    return task


def _task_class(task_name: str) -> Any:
    from metaworld.env_dict import ALL_V3_ENVIRONMENTS  # takes half a second; toy tasks do without

    return ALL_V3_ENVIRONMENTS[task_name]

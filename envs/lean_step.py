"""The part of a metaworld step that surrounds physics and reward, without its waste and with the same bits.

metaworld looks up bodies by name several times a step, writes site positions that are overwritten at once, computes
contact forces that nothing reads, and builds the observation out of a dozen small arrays. `move` and `judge` do the
work of its `step`, without its time limit; the others replace methods in `task_objects.make_task`. Positions of
objects, rewards and success stay metaworld's own.
"""

import math
from dataclasses import dataclass, field
from typing import Any

import mujoco
import numpy as np
import numpy.typing as npt

from envs.simulator import FloatArray
from envs.snapshots import TaskObject

_FRAME = 18  # numbers of one frame; an observation is this frame, the one before it, and the goal


@dataclass
class LiveData:
    """Views of the live data of one task object, so that no name is looked up in a step."""

    data: mujoco.MjData
    bodies: dict[str, Any] = field(default_factory=dict)
    sites: dict[str, Any] = field(default_factory=dict)
    geom_ids: dict[str, int] = field(default_factory=dict)

    def body(self, name: str) -> Any:
        """Returns the position [3] of a body, as a view."""
        if name not in self.bodies:
            self.bodies[name] = self.data.body(name).xpos
        return self.bodies[name]

    def site(self, name: str) -> Any:
        """Returns the position [3] of a site, as a view."""
        if name not in self.sites:
            self.sites[name] = self.data.site(name).xpos
        return self.sites[name]

    def geom_id(self, name: str) -> int:
        """Returns the number of a geom."""
        if name not in self.geom_ids:
            self.geom_ids[name] = int(self.data.geom(name).id)
        return self.geom_ids[name]


def move(task: TaskObject, action: npt.NDArray[np.float32]) -> None:
    """Moves one task object by one control step.

    Args:
        task: From `task_objects.make_task`.
        action: float32 [4]; the arithmetic below relies on the type.
    """
    data = task.data
    target = data.mocap_pos[0] + action[:3].clip(-1, 1) * task.action_scale  # metres; the shift is float32
    data.mocap_pos[0] = target.clip(task.mocap_low, task.mocap_high)
    data.mocap_quat[0] = (1, 0, 1, 0)
    simulate(task, (action[3], -action[3]), task.frame_skip)
    mujoco.mj_forward(task.model, data)  # the next step's warm start depends on it
    task.curr_path_length += 1


def judge(task: TaskObject, action: npt.NDArray[np.float32]) -> tuple[FloatArray, float, dict[str, Any]]:
    """Returns the observation [39], the reward and metaworld's info of the step just made."""
    space = task.sawyer_observation_space
    obs = _observe(task).clip(space.low, space.high)
    reward, info = task.evaluate_state(obs, action)
    return obs, reward, info


def simulate(self: TaskObject, ctrl: Any, n_frames: int) -> None:
    """Moves the physics, without the contact forces that gymnasium computes after it."""
    self.data.ctrl[:] = ctrl
    mujoco.mj_step(self.model, self.data, nstep=n_frames)


def tcp_center(self: TaskObject) -> Any:
    """Returns the middle [3] between the two fingers."""
    return (self.live.site("rightEndEffector") + self.live.site("leftEndEffector")) / 2.0


def get_body_com(self: TaskObject, body_name: str) -> Any:
    """Returns the position [3] of a body, as a view of live data like gymnasium's."""
    return self.live.body(body_name)


def touching_object(self: TaskObject, object_geom_id: int) -> bool:
    """Returns whether both finger pads press on a geom."""
    contact = self.data.contact
    pairs, address = contact.geom, contact.efc_address  # [contact, 2], [contact]
    on_object = (pairs == object_geom_id).any(axis=1)
    if not on_object.any():
        return False
    for pad in ("leftpad_geom", "rightpad_geom"):
        touches = on_object & (pairs == self.live.geom_id(pad)).any(axis=1)
        if not sum(self.data.efc_force[address[touches]].tolist()) > 0:
            return False
    return True


def _observe(task: TaskObject) -> FloatArray:
    """Returns the observation [39] before clipping, and keeps its frame for the next one."""
    obs = np.zeros(2 * _FRAME + 3)
    gap = task.live.body("rightclaw") - task.live.body("leftclaw")
    obs[:3] = task.live.body("hand")
    obs[3] = min(math.sqrt(gap.dot(gap)) / 0.1, 1.0)  # fingers are at most about 0.1 m apart
    positions, quaternions = task._get_pos_objects(), task._get_quat_objects()
    for place in range(len(positions) // 3):
        start = 4 + 7 * place
        obs[start : start + 3] = positions[3 * place : 3 * place + 3]
        obs[start + 3 : start + 7] = quaternions[4 * place : 4 * place + 4]
    obs[_FRAME : 2 * _FRAME] = task._prev_obs
    task._prev_obs = obs[:_FRAME].copy()
    if not task._partially_observable:
        obs[2 * _FRAME :] = task._get_pos_goal()
    return obs

"""A point mass in a square arena: tasks that are learned in seconds, under the same contract as Meta-World.

The point starts at rest in the middle and must come near a goal. Observations are position, velocity and goal [6], the
goal being zeros where it is hidden. Some tasks turn actions around, so that their optimal policies conflict.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from envs.goals import Goals
from envs.simulator import BoolArray, FloatArray, IntArray, Step
from envs.toy_tasks import TOY_TASKS

MAX_EPISODE_STEPS = 50
SUCCESS_RADIUS = 0.1
"""Distance to the goal below which a step is a success, in units of the arena, which is [-1, 1] squared."""

_FRICTION = 0.8  # share of the velocity that is left after a step
_FORCE = 0.02  # velocity per step gained from an action of 1
_REWARD_WIDTH = 0.3  # distance at which half of the reward is left
_PICTURE = 64  # pixels


class ToySimulator:
    """Moves all point masses at once with NumPy."""

    action_dim = 2

    def __init__(self, task_names: Sequence[str], goals: Goals, *, goal_visible: bool) -> None:
        """Takes the goals of the tasks.

        Args:
            task_names: By task id.
            goals: Task name → positions [goal, 2].
            goal_visible: Whether observations hold the goal, or zeros.
        """
        self.class_names = tuple(task_names)
        self._goals = np.stack([goals[name] for name in task_names])  # [task, goal, 2]
        self._gains = np.array([TOY_TASKS[name].action_gain for name in task_names])  # [task]
        self._goal_visible = goal_visible
        self.description = f"toy, goal {'visible' if goal_visible else 'hidden'}"
        max_speed = _FORCE / (1 - _FRICTION)
        self.obs_high: FloatArray = np.array([1, 1, max_speed, max_speed, goal_visible, goal_visible], np.float64)
        self.obs_low: FloatArray = -self.obs_high
        self.assign(np.zeros(0, np.int32))

    def assign(self, task_id: IntArray) -> None:
        """Sets the tasks [env]."""
        self._task_id = task_id.copy()
        self._gain = self._gains[task_id][:, None]  # [env, 1]
        self._position = np.zeros((len(task_id), 2))
        self._velocity = np.zeros((len(task_id), 2))
        self._goal = np.zeros((len(task_id), 2))

    def restart(self, index: int, goal_id: int) -> FloatArray:
        """Puts a point mass to rest in the middle and returns its observation [6]."""
        self._position[index] = 0.0
        self._velocity[index] = 0.0
        self._goal[index] = self._goals[self._task_id[index], goal_id]
        obs = np.zeros(6)
        if self._goal_visible:
            obs[4:] = self._goal[index]
        return obs

    def step(self, action: npt.NDArray[np.float32], active: BoolArray | None = None) -> Step:
        """Moves all active point masses; one whose action is not a number stays where it is and counts as unstable."""
        moving = np.ones(len(action), np.bool_) if active is None else active
        force = self._gain * action.clip(-1, 1)  # [env, 2]
        velocity = _FRICTION * self._velocity + _FORCE * force
        unstable: BoolArray = ~np.isfinite(velocity).all(axis=1) & moving
        still = (unstable | ~moving)[:, None]  # [env, 1]
        self._velocity = np.where(still, self._velocity, velocity)
        moved = (self._position + self._velocity).clip(-1, 1)
        self._position = np.where(still, self._position, moved)
        offset = self._position - self._goal
        distance = np.sqrt((offset * offset).sum(axis=1))  # [env]
        success = ((distance < SUCCESS_RADIUS) & ~still[:, 0]).astype(np.float64)
        dense = 10.0 / (1.0 + (distance / _REWARD_WIDTH) ** 2)
        reward = np.where(still[:, 0], 0.0, np.where(success == 1.0, 10.0, dense))
        info = {"success": success, "obj_to_target": np.where(still[:, 0], 0.0, distance)}
        return Step(self._observe(), reward, info, unstable)

    def breakdown(self, index: int) -> str:
        """Returns the only reason that there is."""
        return "an action that is not a number"

    def get_state(self) -> dict[str, Any]:
        """Returns arrays [env, 2]."""
        return {
            "position": self._position.copy(),
            "velocity": self._velocity.copy(),
            "goal": self._goal.copy(),
        }

    def set_state(self, state: Mapping[str, Any]) -> None:
        """Restores what `get_state` returned."""
        self._position = np.array(state["position"])
        self._velocity = np.array(state["velocity"])
        self._goal = np.array(state["goal"])

    def render(self, index: int) -> npt.NDArray[np.uint8]:
        """Returns a picture [64, 64, 3]: the goal green, the point red."""
        picture = np.full((_PICTURE, _PICTURE, 3), 255, np.uint8)
        for place, color in ((self._goal[index], (0, 160, 0)), (self._position[index], (200, 0, 0))):
            column, row = ((place * (1, -1) + 1) / 2 * (_PICTURE - 3)).astype(int)
            picture[row : row + 3, column : column + 3] = color
        return picture

    def close(self) -> None:
        """Has nothing to free."""

    def _observe(self) -> FloatArray:
        """Returns [env, 6]."""
        goal = self._goal if self._goal_visible else np.zeros_like(self._goal)
        return np.concatenate([self._position, self._velocity, goal], axis=1)

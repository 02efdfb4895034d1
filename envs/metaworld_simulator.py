"""Steps many Meta-World environments in one process, by metaworld's own classes."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib import metadata
from typing import Any

import mujoco
import numpy as np
import numpy.typing as npt

from envs import lean_step, snapshots, task_objects
from envs.goals import Goals
from envs.rendering import Photographer, View
from envs.simulator import BoolArray, FloatArray, IntArray, Step
from envs.snapshots import Snapshot, TaskObject
from envs.start_states import start_states
from envs.state_codec import ENCODED, decode, encode

INFO_KEYS = (
    "success",
    "near_object",
    "grasp_success",
    "grasp_reward",
    "in_place_reward",
    "obj_to_target",
    "unscaled_reward",
)
"""What metaworld tells of each step."""


@dataclass
class _Scene:
    """The model of one task and the objects that take turns in it; `holder` is the one whose goal is written there."""

    model: mujoco.MjModel
    objects: list[TaskObject]
    holder: int = -1
    photographer: Photographer | None = None


class MetaWorldSimulator:
    """Runs each environment by an object of metaworld's class; environments of one task share a model.

    Not for use by several threads at once; a simulator of its own for each thread is fine.
    """

    action_dim = 4

    def __init__(
        self,
        task_names: Sequence[str],
        goals: Goals,
        *,
        goal_visible: bool,
        reward_version: str = "v2",
        view: View | None = None,
    ) -> None:
        """Loads the models of the tasks.

        Args:
            task_names: By task id.
            goals: Task name → random vectors [goal, dim].
            goal_visible: Whether observations hold the goal, or zeros.
            reward_version: `v1` or `v2`.
            view: From where pictures are taken; None is the usual view.

        Raises:
            ValueError: If the reward version is unknown.
        """
        if reward_version not in ("v1", "v2"):
            raise ValueError(f"reward_version is {reward_version!r}; expected 'v1' or 'v2'")
        self._task_names = tuple(task_names)
        self._goals = [goals[name] for name in task_names]
        self._goal_visible, self._reward_version, self._view = goal_visible, reward_version, view or View()
        self.description = (
            f"metaworld {metadata.version('metaworld')}, mujoco {mujoco.__version__}, reward {reward_version}, "
            f"goal {'visible' if goal_visible else 'hidden'}"
        )
        self._scenes = [_Scene(model, []) for model in task_objects.load_task_models(task_names)]
        spaces = [self._object(task_id, 0).observation_space for task_id in range(len(task_names))]
        self.obs_low: FloatArray = np.min([space.low for space in spaces], axis=0)
        self.obs_high: FloatArray = np.max([space.high for space in spaces], axis=0)
        self.class_names = tuple(task_objects.class_name(name) for name in task_names)
        self.assign(np.zeros(0, np.int32))

    def assign(self, task_id: IntArray) -> None:
        """Sets the tasks [env]; objects of earlier assignments are used again."""
        self._task_id = [int(task) for task in task_id]
        self._goal_id = [-1] * len(task_id)
        places = [self._task_id[:index].count(task) for index, task in enumerate(self._task_id)]
        self._objects = [self._object(task, place) for task, place in zip(self._task_id, places, strict=True)]
        self._warnings = [task.data.warning.number for task in self._objects]  # live views [warning]
        self._states: list[Snapshot | None] = [None] * len(task_id)  # whose positions belong into the model
        self._obs = np.zeros((len(task_id), len(self.obs_low)))  # the last good one [env, obs]
        for scene in self._scenes:
            scene.holder = -1

    def restart(self, index: int, goal_id: int) -> FloatArray:
        """Begins an episode by copying the state that a reset of metaworld leads to."""
        task_id, task = self._task_id[index], self._objects[index]
        self._scenes[task_id].holder = -1  # making a new start state writes into the model
        state, obs = start_states().get(task, self._goals[task_id][goal_id])
        snapshots.restore(task, state)
        self._warnings[index][:] = 0
        self._states[index], self._goal_id[index] = state, goal_id
        self._obs[index] = obs
        return obs.copy()

    def step(self, action: npt.NDArray[np.float32], active: BoolArray | None = None) -> Step:
        """Moves every active environment by one control step of 12.5 ms."""
        obs = self._obs.copy()  # [env, obs]
        reward = np.zeros(len(obs))
        rows = np.zeros((len(INFO_KEYS), len(obs)))  # [key, env]
        unstable = np.zeros(len(obs), np.bool_)
        for index, task in enumerate(self._objects):
            if active is not None and not active[index]:
                continue
            self._enter(index)
            lean_step.move(task, action[index])
            if self._warnings[index].any():
                unstable[index] = True
                continue
            obs[index], reward[index], info = lean_step.judge(task, action[index])
            rows[:, index] = [info[key] for key in INFO_KEYS]
        self._obs = obs
        return Step(obs.copy(), reward, dict(zip(INFO_KEYS, rows, strict=True)), unstable)

    def breakdown(self, index: int) -> str:
        """Returns the names of MuJoCo's warnings."""
        return snapshots.warnings(self._objects[index].data)

    def get_state(self) -> dict[str, Any]:
        """Returns for each environment three arrays and a JSON-able value."""
        state: dict[str, Any] = {"goal_id": list(self._goal_id), "obs": self._obs.copy()}
        for index, task in enumerate(self._objects):
            self._enter(index)
            for name, value in encode(snapshots.capture(task)).items():
                state[f"{index}/{name}"] = value
        return state

    def set_state(self, state: Mapping[str, Any]) -> None:
        """Restores what `get_state` returned; the tasks must be assigned as they were then."""
        self._goal_id = [int(goal) for goal in state["goal_id"]]
        self._obs = np.array(state["obs"])
        for index, task in enumerate(self._objects):
            snapshot = decode({name: state[f"{index}/{name}"] for name in ENCODED})
            snapshots.restore(task, snapshot)
            self._warnings[index][:] = 0
            self._states[index] = snapshot
            self._scenes[self._task_id[index]].holder = -1

    def render(self, index: int) -> npt.NDArray[np.uint8]:
        """Returns a picture [height, width, 3] of one environment.

        Raises:
            RuntimeError: If there is no way to render on this machine.
        """
        self._enter(index)
        scene = self._scenes[self._task_id[index]]
        if scene.photographer is None:
            scene.photographer = Photographer(scene.model, self._view)
        return scene.photographer.picture(self._objects[index].data)

    def close(self) -> None:
        """Drops models, data and rendering contexts."""
        for scene in self._scenes:
            if scene.photographer is not None:
                scene.photographer.close()
        self._scenes, self._objects = [], []

    def _object(self, task_id: int, place: int) -> TaskObject:
        """Returns the object number `place` of a task, made if it is not there yet."""
        scene = self._scenes[task_id]
        while len(scene.objects) <= place:
            scene.objects.append(
                task_objects.make_task(
                    self._task_names[task_id], scene.model, self._reward_version, goal_visible=self._goal_visible
                )
            )
        return scene.objects[place]

    def _enter(self, index: int) -> None:
        """Writes the positions of an environment's goal into the shared model, unless they are there already."""
        scene = self._scenes[self._task_id[index]]
        if scene.holder != index:
            state = self._states[index]
            assert state is not None, "restart comes before step"
            snapshots.write_scene(scene.model, state)
            scene.holder = index

"""Steps many Meta-World environments in one compiled call, with the numbers of metaworld's classes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from importlib import metadata
from typing import Any

import mujoco
import numpy as np
import numpy.typing as npt

from envs import snapshots, task_objects
from envs.compiled import engine, fatal
from envs.compiled.catalogue import CATALOGUE, NUMBERS, CompiledTask
from envs.compiled.crew import Crew
from envs.compiled.layout import NUM_PLACES, NUM_STARTS, OBJECT_FIELDS, OwnModel, Place, Start, places
from envs.goals import Goals
from envs.metaworld_simulator import INFO_KEYS
from envs.rendering import Photographer, View
from envs.simulator import Actor, BoolArray, FloatArray, IntArray, Step, Steps
from envs.snapshots import LiveView, Snapshot, TaskObject
from envs.start_states import start_states

_STATE = int(mujoco.mjtState.mjSTATE_INTEGRATION)
_LIVE = [Place.LIVE_TARGET, Place.LIVE_OBJ_INIT]
_NOT_LIVE = -(2**62)
_NUM_STARTS = NUM_STARTS + engine.FRAME  # the newest frame comes last


class CompiledSimulator:
    """Runs every environment by compiled code on data of its own; environments of one task share a model.

    Not for use by several threads at once; a simulator of its own for each thread is fine.
    """

    action_dim = 4
    most_steps_at_once = engine.MOST_TURNS

    def __init__(
        self,
        task_names: Sequence[str],
        goals: Goals,
        *,
        goal_visible: bool,
        num_threads: int = 1,
        view: View | None = None,
    ) -> None:
        """Loads the models of the tasks.

        Args:
            task_names: By task id; all of them in `CATALOGUE`.
            goals: Task name → random vectors [goal, dim].
            goal_visible: Whether observations hold the goal, or zeros.
            num_threads: Threads that share the work of a step; the numbers do not depend on it.
            view: From where pictures are taken; None is the usual view.
        """
        self._task_names = tuple(task_names)
        self._goals = [goals[name] for name in task_names]
        self._goal_visible, self._view = goal_visible, view or View()
        # the state of one backend is not restored under another
        self.description = (
            f"compiled, metaworld {metadata.version('metaworld')}, mujoco {mujoco.__version__}, reward v2, "
            f"goal {'visible' if goal_visible else 'hidden'}"
        )
        self._makers: list[TaskObject] = [  # of start states
            task_objects.make_task(name, model, "v2", goal_visible=goal_visible)
            for name, model in zip(task_names, task_objects.load_task_models(task_names), strict=True)
        ]
        self._models = [maker.model for maker in self._makers]  # metaworld sets up the hand's weld in them
        spaces = [maker.observation_space for maker in self._makers]
        self._bounds = [(space.low, space.high) for space in spaces]
        self.obs_low: FloatArray = np.min([space.low for space in spaces], axis=0)
        self.obs_high: FloatArray = np.max([space.high for space in spaces], axis=0)
        self.class_names = tuple(task_objects.class_name(name) for name in task_names)
        self._num_threads = num_threads
        self._crew = Crew(1, 0, None)
        self._photographers: dict[int, Photographer] = {}
        self.assign(np.zeros(0, np.int32))
        fatal.watch(self)

    def assign(self, task_id: IntArray) -> None:
        """Sets the tasks [env]."""
        self._task_id = [int(task) for task in task_id]
        num_envs = len(self._task_id)
        self._goal_id = [-1] * num_envs
        self._data = [mujoco.MjData(self._models[task]) for task in self._task_id]
        self._own_models = [OwnModel(self._models[task]) for task in self._task_id]
        self._places = np.array(
            [self._row(*one) for one in zip(self._task_id, self._own_models, self._data, strict=True)], np.int64
        ).reshape(num_envs, NUM_PLACES)
        self._starts = np.zeros((num_envs, _NUM_STARTS))
        self._low = np.array([self._bounds[task][0] for task in self._task_id]).reshape(num_envs, len(self.obs_low))
        self._high = np.array([self._bounds[task][1] for task in self._task_id]).reshape(num_envs, len(self.obs_low))
        self._obs = np.zeros((num_envs, len(self.obs_low)))
        self._active = np.zeros(num_envs, np.bool_)
        turns = engine.MOST_TURNS
        self._actions = np.zeros((turns, num_envs, self.action_dim), np.float32)
        self._seen, self._info = np.zeros((turns, *self._obs.shape)), np.zeros((turns, 1 + len(INFO_KEYS), num_envs))
        self._unstable = np.zeros((turns, num_envs), np.bool_)
        self._crew.close()
        self._crew = Crew(
            max(1, min(self._num_threads, num_envs)),
            num_envs,
            engine.Batch(
                places=self._places,
                starts=self._starts,
                low=self._low,
                high=self._high,
                hidden=not self._goal_visible,
                active=self._active,
                obs=self._obs,
                actions=self._actions,
                seen=self._seen,
                info=self._info,
                unstable=self._unstable,
            ),
        )

    def restart(self, index: int, goal_id: int) -> FloatArray:
        """Begins an episode by copying the state that a reset of metaworld leads to."""
        task_id = self._task_id[index]
        maker, data = self._makers[task_id], self._data[index]
        state, obs = start_states().get(maker, self._goals[task_id][goal_id])
        mujoco.mj_setState(self._models[task_id], data, state.physics.copy(), _STATE)  # it wants a writable array
        data.warning.number[:] = 0
        self._own_models[index].body_pos[:] = state.body_pos
        self._own_models[index].site_pos[:] = state.site_pos
        self._starts[index] = _start(maker, state, CATALOGUE[self._task_names[task_id]])
        for column, name in ((Place.LIVE_TARGET, "_target_pos"), (Place.LIVE_OBJ_INIT, "obj_init_pos")):
            view = state.views.get(name)
            self._places[index, column] = 0 if view is None else _address_of(data, view)
        self._goal_id[index] = goal_id
        self._obs[index] = obs
        return obs.copy()

    def step(self, action: npt.NDArray[np.float32], active: BoolArray | None = None) -> Step:
        """Moves every active environment by one control step of 12.5 ms."""
        if action.shape != self._actions[0].shape:
            raise ValueError(f"actions have shape {action.shape}; expected {self._actions[0].shape}")
        self._actions[0] = action
        self._active[:] = True if active is None else active
        self._crew.step()
        reward, *rows = self._info[0].copy()
        return Step(self._obs.copy(), reward, dict(zip(INFO_KEYS, rows, strict=True)), self._unstable[0].copy())

    def roll(self, actor: Actor, num_steps: int, active: BoolArray, *, until_success: bool) -> Steps:
        """Makes up to 50 steps with an actor's actions, in one compiled call."""
        if not 1 <= num_steps <= self.most_steps_at_once:
            raise ValueError(f"asked for {num_steps} steps at once; expected 1 to {self.most_steps_at_once}")
        self._active[:] = active
        made = self._crew.roll(actor, num_steps, until_success=until_success)
        reward, *columns = self._info[:made].swapaxes(0, 1).copy()  # [step, env] each
        return Steps(
            action=self._actions[:made].copy(),
            obs=self._seen[:made].copy(),
            reward=reward,
            info=dict(zip(INFO_KEYS, columns, strict=True)),
            unstable=self._unstable[:made].copy(),
        )

    def physics(self, action: npt.NDArray[np.float32]) -> None:
        """Makes only the physics of a step; for measurements."""
        engine.physics(self._places, self._starts, action)

    def breakdown(self, index: int) -> str:
        """Returns the names of MuJoCo's warnings."""
        return snapshots.warnings(self._data[index])

    def get_state(self) -> dict[str, Any]:
        """Returns for each environment its physics, and the rows of all."""
        live, base = self._places[:, _LIVE], self._places[:, [Place.QPOS]]
        state: dict[str, Any] = {
            "goal_id": list(self._goal_id),
            "obs": self._obs.copy(),
            "starts": self._starts.copy(),
            "live": np.where(live == 0, _NOT_LIVE, live - base),  # addresses differ in another process
        }
        for index, (task, data) in enumerate(zip(self._task_id, self._data, strict=True)):
            physics = np.empty(mujoco.mj_stateSize(self._models[task], _STATE))
            mujoco.mj_getState(self._models[task], data, physics, _STATE)
            state[f"{index}/physics"] = physics
            own = self._own_models[index]
            state[f"{index}/body_pos"], state[f"{index}/site_pos"] = own.body_pos.copy(), own.site_pos.copy()
        return state

    def set_state(self, state: Mapping[str, Any]) -> None:
        """Restores what `get_state` returned; the tasks must be assigned as they were then."""
        self._goal_id = [int(goal) for goal in state["goal_id"]]
        self._obs[:], self._starts[:] = state["obs"], state["starts"]
        live = np.asarray(state["live"])
        self._places[:, _LIVE] = np.where(live == _NOT_LIVE, 0, live + self._places[:, [Place.QPOS]])
        for index, (task, data) in enumerate(zip(self._task_id, self._data, strict=True)):
            mujoco.mj_setState(self._models[task], data, np.array(state[f"{index}/physics"]), _STATE)
            data.warning.number[:] = 0
            self._own_models[index].body_pos[:] = state[f"{index}/body_pos"]
            self._own_models[index].site_pos[:] = state[f"{index}/site_pos"]

    def render(self, index: int) -> npt.NDArray[np.uint8]:
        """Returns a picture [height, width, 3] of one environment.

        Raises:
            RuntimeError: If there is no way to render on this machine.
        """
        task = self._task_id[index]
        model = self._models[task]
        model.body_pos[:], model.site_pos[:] = self._own_models[index].body_pos, self._own_models[index].site_pos
        if task not in self._photographers:
            self._photographers[task] = Photographer(model, self._view)
        return self._photographers[task].picture(self._data[index])

    def close(self) -> None:
        """Drops models, data and rendering contexts."""
        for photographer in self._photographers.values():
            photographer.close()
        self.assign(np.zeros(0, np.int32))  # nothing may look at the memory that is freed now
        self._photographers, self._models, self._makers = {}, [], []

    def where(self, thread: int) -> str | None:
        """Returns which environment a thread is at, in words, None if it is at none."""
        index = self._crew.environment_of(thread)
        return None if index is None else self._describe(index)

    def _describe(self, index: int) -> str:
        """Returns which environment it is, in words."""
        task_id, goal_id = self._task_id[index], self._goal_id[index]
        goal = self._goals[task_id][goal_id].tolist()
        return f"{self._task_names[task_id]}, environment {index}, goal {goal_id} {goal}"

    def _row(self, task: int, own: OwnModel, data: mujoco.MjData) -> npt.NDArray[np.int64]:
        """Returns the row of integers of an environment of a task."""
        model, known = self._models[task], CATALOGUE[self._task_names[task]]
        row = places(own, data)
        row[Place.TASK], row[Place.NUM_OBJECTS] = NUMBERS[self._task_names[task]], len(known.objects)
        for number, name in enumerate(known.named):
            kind, _, element = name.partition(":")
            found = getattr(model, kind)(element)
            row[Place.NAMED + number] = found.qposadr[0] if kind == "joint" else found.id
        for number, thing in enumerate(known.objects):
            column = Place.OBJECTS + OBJECT_FIELDS * number
            quaternion = thing.quaternion_name or thing.name
            row[column] = 16 * thing.position + thing.quaternion
            row[column + 1] = _element(model, thing.position.name, thing.name)
            row[column + 2] = _element(model, thing.quaternion.name, quaternion)
        return row


def _element(model: mujoco.MjModel, source: str, name: str) -> int:
    kind = source.partition("_")[0].lower()
    return 0 if kind in ("zero", "identity") else int(getattr(model, kind)(name).id)


def _start(maker: TaskObject, state: Snapshot, task: CompiledTask) -> FloatArray:
    """Returns the row of floats of an environment at the start of an episode."""
    row = np.zeros(_NUM_STARTS)
    attributes = state.attributes
    for column, name in (
        (Start.TARGET, "_target_pos"),
        (Start.OBJ_INIT, "obj_init_pos"),
        (Start.INIT_TCP, "init_tcp"),
        (Start.HAND_INIT, "hand_init_pos"),
    ):
        if name in attributes:
            row[column : column + 3] = attributes[name]
    row[Start.MOCAP_LOW : Start.MOCAP_LOW + 3] = maker.mocap_low
    row[Start.MOCAP_HIGH : Start.MOCAP_HIGH + 3] = maker.mocap_high
    for number, thing in enumerate(task.objects):
        row[Start.OFFSETS + 3 * number : Start.OFFSETS + 3 * number + 3] = thing.offset
    extras = [number for name in task.extras for number in _numbers(attributes[name])]
    row[Start.EXTRAS : Start.EXTRAS + len(extras)] = extras
    row[-engine.FRAME :] = attributes["_prev_obs"]
    return row


def _numbers(attribute: Any) -> list[float]:
    """Returns a number or vector as a list; what metaworld has not set yet is NaN."""
    return [float("nan")] if attribute is None else np.ravel(attribute).astype(np.float64).tolist()


def _address_of(data: mujoco.MjData, view: LiveView) -> int:
    address: int = getattr(data, view.field).__array_interface__["data"][0]
    return address + 8 * view.offset

"""One environment of one task, for code that expects a `gymnasium.Env`."""

from collections.abc import Callable
from typing import Any

import gymnasium
import numpy as np
import numpy.typing as npt
from gymnasium.error import ResetNeeded
from gymnasium.spaces import Box

from envs.benchmarks import Split, get_benchmark
from envs.episodes import Assignment, GoalStreams
from envs.goals import NUM_GOALS, goals_for
from envs.making import make_simulator
from envs.simulator import FloatArray
from envs.unstable import ActionTrace, UnstableEpisode


class TaskEnv(gymnasium.Env[FloatArray, npt.NDArray[np.float32]]):
    """Runs one task with all of its goals, a random one in each episode.

    It sets no time limit; `gymnasium.make` adds the usual one.

    Attributes:
        goal_id: Goal of the running episode.
    """

    def __init__(
        self,
        task: str,
        *,
        seed: int = 1,
        split: Split = "train",
        goal_visible: bool = True,
        reward_version: str = "v2",
        num_goals: int = NUM_GOALS,
        render_mode: str | None = None,
        camera: str = "corner2",
        backend: str = "auto",
    ) -> None:
        """Makes the environment.

        Args:
            task: For example `reach-v3`.
            seed: Of the goals, those of MT1 or ML1 for this seed, and of their choice until `reset(seed=...)`.
            split: `test` takes the goals that ML1 tests with.
            goal_visible: Whether the observation holds the goal, or zeros.
            reward_version: `v1` or `v2`.
            num_goals: Goals to choose from.
            render_mode: `rgb_array` or None.
            camera: One of `rendering.CAMERAS`.
            backend: What simulates, see `making.make`.

        Raises:
            ValueError: If a name or number is wrong.
        """
        self._goals = goals_for(get_benchmark("ML1", [task]), split, seed, num_goals)
        self._simulator = make_simulator(
            [task],
            self._goals,
            goal_visible=goal_visible,
            reward_version=reward_version,
            camera=camera,
            backend=backend,
        )
        self._simulator.assign(np.zeros(1, np.int32))
        self._streams = GoalStreams([Assignment(0, tuple(range(num_goals)))], seed)
        self.observation_space = Box(self._simulator.obs_low, self._simulator.obs_high, dtype=np.float64)
        self.action_space = Box(-1.0, 1.0, (self._simulator.action_dim,), np.float32)
        self.metadata = {"render_modes": ["rgb_array"], "render_fps": 80}
        self.render_mode = render_mode
        self.task_name = task
        self.goal_id = -1
        self._running = False
        self._trace = ActionTrace(1, self._simulator.action_dim)

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[FloatArray, dict[str, Any]]:
        """Begins an episode with a random goal; a seed begins the stream that chooses it anew.

        Returns:
            The first observation, float64 [obs], and no info.
        """
        super().reset(seed=seed)
        if seed is not None:
            self._streams.seed(0, seed)
        self.goal_id = self._streams.next_goal(0)
        self._running, self._num_steps = True, 0
        return self._simulator.restart(0, self.goal_id), {}

    def step(self, action: npt.NDArray[Any]) -> tuple[FloatArray, float, bool, bool, dict[str, Any]]:
        """Moves by one step.

        Args:
            action: [action] in -1..1; cast to float32.

        Returns:
            obs float64 [obs], reward, terminated (never), truncated (if the physics broke), and metaworld's info.

        Raises:
            ResetNeeded: If no episode is running.
            ValueError: If the action has the wrong shape.
        """
        if not self._running:
            raise ResetNeeded("no episode is running; call reset() before step()")
        row = np.asarray(action, np.float32)
        if row.shape != self.action_space.shape:
            raise ValueError(f"the action has shape {row.shape}; expected {self.action_space.shape}")
        self._trace.record(np.array([self._num_steps]), row[None])
        self._num_steps += 1
        result = self._simulator.step(row[None])
        info: dict[str, Any] = {name: float(numbers[0]) for name, numbers in result.info.items()}
        info["unstable"] = bool(result.unstable[0])
        self._running = not info["unstable"]
        if info["unstable"]:
            self._report()
        return result.obs[0], float(result.reward[0]), False, info["unstable"], info

    def render(self) -> npt.NDArray[np.uint8] | None:  # type: ignore[override] # gymnasium allows lists of frames too
        """Returns a picture [height, width, 3], or None without a render mode."""
        return self._simulator.render(0) if self.render_mode == "rgb_array" else None

    def close(self) -> None:
        """Frees the model and its data."""
        self._running = False
        self._simulator.close()

    def _report(self) -> None:
        UnstableEpisode(
            task=self.task_name,
            goal_id=self.goal_id,
            goal=self._goals[self.task_name][self.goal_id],
            seed=self._streams.seeds[0],
            environment=0,
            reason=self._simulator.breakdown(0),
            simulator=self._simulator.description,
            actions=self._trace.of(0, self._num_steps),
        ).report()


def single_maker(task: str) -> Callable[..., TaskEnv]:
    """Returns the entry point of one task for gymnasium."""

    def make_single(**keywords: Any) -> TaskEnv:
        return TaskEnv(task, **keywords)

    return make_single

"""Episodes that ended because the physics broke: logged, and kept in files from which they can be run again.

The files lie in the folder `unstable` of the cache (`cache.py`), a few kilobytes each.
"""

from __future__ import annotations

import hashlib
import io
import itertools
import logging
import zipfile
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from envs.cache import cache_folder, write_whole
from envs.simulator import FloatArray

_LOGGER = logging.getLogger(__name__)
_MOST_FILES = 20
_FIRST_STEPS = 500
_reports = itertools.count()  # of this process


@dataclass(frozen=True)
class UnstableEpisode:
    """An episode up to the step in which the physics broke.

    Attributes:
        task: For example `reach-v3`.
        goal_id: Which of the task's goals it ran.
        goal: Random vector [dim] of that goal.
        seed: What the stream that chose its goal began with, a seed and a number.
        environment: Its place in the batch.
        reason: What broke, in the simulator's words.
        simulator: What simulated, with versions.
        actions: float32 [step, action], all of the episode; the last one broke it.
    """

    task: str
    goal_id: int
    goal: FloatArray
    seed: tuple[int, int]
    environment: int
    reason: str
    simulator: str
    actions: npt.NDArray[np.float32]

    def report(self) -> None:
        """Logs the episode, and keeps it in a file, which the log names; after many in one process only logs."""
        _LOGGER.warning(
            "unstable physics (%s) in %s, environment %d, goal %d %s, seed %d/%d, step %d, action %s; the episode ends "
            "as truncated; %s",
            self.reason,
            self.task,
            self.environment,
            self.goal_id,
            np.asarray(self.goal).tolist(),
            *self.seed,
            len(self.actions),
            self.actions[-1].tolist(),
            self._kept(),
        )

    def _kept(self) -> str:
        if next(_reports) >= _MOST_FILES:
            return f"its actions are not kept, as those of {_MOST_FILES} others are"
        try:
            return f"its actions are in {self.save()}"
        except OSError as error:
            return f"its actions could not be kept ({error.strerror}); set MTRL_CACHE to a writable folder"

    def save(self) -> Path:
        """Writes the episode to a file named after its content and returns it.

        Raises:
            OSError: If that is not possible.
        """
        content = io.BytesIO()
        np.savez_compressed(content, **asdict(self))
        digest = hashlib.sha256(self.actions.tobytes() + np.asarray(self.goal).tobytes()).hexdigest()[:12]
        file = cache_folder() / "unstable" / f"{self.task}-goal{self.goal_id}-{digest}.npz"
        write_whole(file, content.getvalue())
        return file


class ActionTrace:
    """The actions of the running episode of each environment."""

    def __init__(self, num_envs: int, action_dim: int) -> None:
        """Starts with none."""
        self._envs = np.arange(num_envs)
        self._actions = np.zeros((_FIRST_STEPS, num_envs, action_dim), np.float32)

    def record(self, step: npt.NDArray[np.int64], action: npt.NDArray[np.float32]) -> None:
        """Takes in the actions [env, action] that environments make at the given steps [env] of their episodes."""
        try:
            self._actions[step, self._envs] = action
        except IndexError:
            self._actions = np.concatenate([self._actions, np.zeros_like(self._actions)])
            self.record(step, action)

    def of(self, index: int, num_steps: int) -> npt.NDArray[np.float32]:
        """Returns the first actions [step, action] of an environment's episode."""
        return self._actions[:num_steps, index].copy()

    def get_state(self, num_steps: npt.NDArray[np.int64]) -> npt.NDArray[np.float32]:
        """Returns the actions [step, env, action] of episodes that are `num_steps` [env] long, zeros beyond."""
        kept = self._actions[: num_steps.max(initial=0)].copy()
        kept[np.arange(len(kept))[:, np.newaxis] >= num_steps] = 0.0
        return kept

    def set_state(self, state: npt.NDArray[np.float32]) -> None:
        """Restores what `get_state` returned."""
        room = max(_FIRST_STEPS, len(state))
        self._actions = np.zeros((room, *self._actions.shape[1:]), np.float32)
        self._actions[: len(state)] = state


def load(file: Path) -> UnstableEpisode:
    """Returns an episode that was kept.

    Raises:
        OSError: If the file cannot be read.
        ValueError: If it is not whole, or something else.
    """
    try:
        with file.open("rb") as opened, np.load(opened) as held:
            seed, number = held["seed"].tolist()
            return UnstableEpisode(
                task=str(held["task"]),
                goal_id=int(held["goal_id"]),
                goal=held["goal"],
                seed=(seed, number),
                environment=int(held["environment"]),
                reason=str(held["reason"]),
                simulator=str(held["simulator"]),
                actions=held["actions"],
            )
    except (KeyError, EOFError, ValueError, zipfile.BadZipFile) as error:
        raise ValueError(f"{file} holds no episode: {error}") from error


def replay(episode: UnstableEpisode, backend: str = "auto") -> Sequence[bool]:
    """Runs an episode again and returns for each step whether the physics broke in it; the last one should.

    What simulates now is logged if it is not what simulated then, as another version may do without the break.

    Raises:
        ValueError: If the backend cannot be used here.
    """
    from envs.making import make_simulator  # which reports episodes itself

    simulator = make_simulator([episode.task], {episode.task: episode.goal[None]}, goal_visible=True, backend=backend)
    if simulator.description != episode.simulator:
        _LOGGER.warning("the episode was simulated by %s; now: %s", episode.simulator, simulator.description)
    try:
        simulator.assign(np.zeros(1, np.int32))
        simulator.restart(0, 0)
        return [bool(simulator.step(action[None]).unstable[0]) for action in episode.actions]
    finally:
        simulator.close()

"""Plates that slide on the table, into a cabinet or out of it."""

from __future__ import annotations

from envs.compiled.maths import distance, hamacher, indicator, long_tail
from envs.compiled.native import inner
from envs.compiled.scene import Judgement, Scene

_RADIUS = 0.05  # of a target, metres


@inner
def plate_slide(scene: Scene) -> Judgement:
    """plate-slide-v3: slides a plate forward into a cabinet."""
    reaching, in_place = _reaching(scene, 0.0), _in_place(scene, 0.0)
    return _judge_plate(scene, 8.0 * hamacher(reaching, in_place), reaching, in_place)


@inner
def plate_slide_side(scene: Scene) -> Judgement:
    """plate-slide-side-v3, -back-v3 and -back-side-v3: slides a plate sideways or out of a cabinet."""
    reaching, in_place = _reaching(scene, _RADIUS), _in_place(scene, _RADIUS)
    reward = 1.5 * reaching
    if scene.tcp[2] <= 0.03 and distance(scene.tcp, scene.obj) < 0.07:
        reward = 2.0 + 7.0 * in_place
    return _judge_plate(scene, reward, reaching, in_place)


@inner
def _reaching(scene: Scene, less: float) -> float:
    """Returns how near the gripper is to the plate; `less` metres make the margin smaller."""
    margin = distance(scene.init_tcp, scene.obj_init) - less
    return long_tail(distance(scene.tcp, scene.obj), 0.0, _RADIUS, margin)


@inner
def _in_place(scene: Scene, less: float) -> float:
    """Returns how near the plate is to its target; `less` metres make the margin smaller."""
    margin = distance(scene.obj_init, scene.target) - less
    return long_tail(distance(scene.obj, scene.target), 0.0, _RADIUS, margin)


@inner
def _judge_plate(scene: Scene, reward: float, reaching: float, in_place: float) -> Judgement:
    """Judges a plate; `reward` counts until it is at its target."""
    obj_to_target = distance(scene.obj, scene.target)
    if obj_to_target < _RADIUS:
        reward = 10.0
    success, near = indicator(obj_to_target <= 0.07), indicator(distance(scene.tcp, scene.obj) <= 0.03)
    return Judgement(reward, success, near, 0.0, reaching, in_place, obj_to_target)

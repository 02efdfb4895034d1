"""Levers that are pressed down or pulled up by their handle."""

from __future__ import annotations

from envs.compiled.grasp import dense_grasp
from envs.compiled.maths import distance, hamacher, indicator, long_tail
from envs.compiled.native import inner
from envs.compiled.scene import Judgement, Scene, extra_vector

_PRESS_RADIUS = 0.02  # of a target, metres
_PULL_RADIUS = 0.05
_HANDLE_RADIUS = 0.02


@inner
def _press(scene: Scene) -> Judgement:
    """Judges the height of the handle and how near the gripper is to it."""
    handle_init = extra_vector(scene, 0)
    obj_to_target, tcp_to_obj = abs(scene.obj[2] - scene.target[2]), distance(scene.obj, scene.tcp)
    margin = abs(abs(handle_init[2] - scene.target[2]) - _PRESS_RADIUS)
    in_place = long_tail(obj_to_target, 0.0, _PRESS_RADIUS, margin)
    reach_margin = abs(distance(handle_init, scene.init_tcp) - _HANDLE_RADIUS)
    reach = long_tail(tcp_to_obj, 0.0, _HANDLE_RADIUS, reach_margin)
    success = obj_to_target <= _PRESS_RADIUS
    reward = 10.0 if success else 10.0 * hamacher(reach, in_place)
    return Judgement(reward, indicator(success), indicator(tcp_to_obj <= 0.05), 1.0, reach, in_place, obj_to_target)


@inner
def handle_press(scene: Scene) -> Judgement:
    """handle-press-v3: presses down a handle that faces the robot."""
    return _press(scene)


@inner
def handle_press_side(scene: Scene) -> Judgement:
    """handle-press-side-v3: presses down a handle that faces sideways."""
    return _press(scene)


@inner
def _pull(
    scene: Scene, obj_to_target: float, first_error: float, grasped: float, raised: bool, success_radius: float
) -> Judgement:
    """Judges the distance of the handle to its target and the grasp; both together count more once it is raised."""
    tcp_to_obj = distance(scene.obj, scene.tcp)
    in_place = long_tail(obj_to_target, 0.0, _PULL_RADIUS, first_error)
    reward = hamacher(grasped, in_place)
    if tcp_to_obj < 0.035 and scene.opened > 0.0 and raised:
        reward += 1.0 + 5.0 * in_place
    if obj_to_target < _PULL_RADIUS:
        reward = 10.0
    success, near = indicator(obj_to_target <= success_radius), indicator(tcp_to_obj <= 0.05)
    lifted = indicator(scene.opened > 0.0 and scene.obj[2] - 0.03 > scene.obj_init[2])
    return Judgement(reward, success, near, lifted, grasped, in_place, obj_to_target)


@inner
def handle_pull(scene: Scene) -> Judgement:
    """handle-pull-v3: pulls up a handle that faces the robot."""
    obj_to_target = abs(scene.target[2] - scene.obj[2])
    first_error = abs(scene.target[2] - scene.obj_init[2])
    grasped = dense_grasp(scene, scene.obj, 0.022, 0.05, 0.01, 1.0)
    raised = scene.obj[1] - 0.01 > scene.obj_init[2]  # metaworld compares y with z here, so this always holds
    return _pull(scene, obj_to_target, first_error, grasped, raised, _PULL_RADIUS)


@inner
def handle_pull_side(scene: Scene) -> Judgement:
    """handle-pull-side-v3: pulls up a handle that faces sideways."""
    obj_to_target, first_error = distance(scene.obj, scene.target), distance(scene.obj_init, scene.target)
    grasped = dense_grasp(scene, scene.obj, 0.032, 0.06, 0.01, 1.0)
    raised = scene.obj[2] - 0.01 > scene.obj_init[2]
    return _pull(scene, obj_to_target, first_error, grasped, raised, 0.08)

"""Tasks that push an object over the table between the pads, each with its own measure of a grasp."""

from __future__ import annotations

from envs.compiled.grasp import lifted, squeezing_grasp
from envs.compiled.maths import clip, distance, hamacher, indicator, long_tail, norm, scaled, subtract
from envs.compiled.native import inner
from envs.compiled.scene import Judgement, Scene, touching

_RADIUS = 0.05  # of a target, metres
_GOAL_RADIUS = 0.07  # of the target in soccer-v3, metres


@inner
def push_back(scene: Scene) -> Judgement:
    """push-back-v3: pulls a block back to a point on the table."""
    obj = scene.obj
    tcp_to_obj, obj_to_target = distance(obj, scene.tcp), distance(obj, scene.target)
    obj_to_target_init = distance(scene.obj_init, scene.target)
    in_place = long_tail(obj_to_target, 0.0, _RADIUS, obj_to_target_init)
    grasped = squeezing_grasp(scene, obj, 0.007, 0.003, 0.01)
    reward = hamacher(grasped, in_place)
    if tcp_to_obj < 0.01 and 0.0 < scene.opened < 0.55 and obj_to_target_init - obj_to_target > 0.01:
        reward += 1.0 + 5.0 * in_place
    if obj_to_target < _RADIUS:
        reward = 10.0
    success, near = indicator(obj_to_target <= 0.07), indicator(tcp_to_obj <= 0.03)
    return Judgement(reward, success, near, indicator(lifted(scene)), grasped, in_place, obj_to_target)


@inner
def soccer(scene: Scene) -> Judgement:
    """soccer-v3: shoots a ball into a goal."""
    obj, target = scene.obj, scene.target
    weights = (3.0, 1.0, 1.0)  # the ball should not miss sideways
    error = norm(scaled(subtract(obj, target), weights))
    rolled = norm(scaled(subtract(obj, scene.obj_init), weights))
    in_place = long_tail(error, 0.0, _GOAL_RADIUS, rolled)
    goal_line = target[1] - 0.1
    if obj[1] > goal_line and abs(obj[0] - target[0]) > 0.1:
        in_place = clip(in_place - 2.0 * ((obj[1] - goal_line) / (1.0 - goal_line)), 0.0, 1.0)
    grasped = squeezing_grasp(scene, obj, 0.013, 0.01, 0.005)
    reward = 10.0 if error < _GOAL_RADIUS else 3.0 * grasped + 6.5 * in_place
    obj_to_target = distance(obj, target)
    success, near = indicator(obj_to_target <= 0.07), indicator(distance(obj, scene.tcp) <= 0.03)
    return Judgement(reward, success, near, indicator(lifted(scene)), grasped, in_place, obj_to_target)


@inner
def sweep(scene: Scene) -> Judgement:
    """sweep-v3: sweeps a puck off the table."""
    obj = scene.obj
    obj_to_target = distance(obj, scene.target)
    in_place = long_tail(obj_to_target, 0.0, _RADIUS, distance(scene.obj_init, scene.target))
    grasped = squeezing_grasp(scene, obj, 0.02, 0.01, 0.005)
    reward = 10.0 if obj_to_target < _RADIUS else 2.0 * grasped + 6.0 * hamacher(grasped, in_place)
    success, near = indicator(obj_to_target <= _RADIUS), indicator(distance(obj, scene.tcp) <= 0.03)
    held = scene.opened > 0.0 and touching(scene, 0)
    return Judgement(reward, success, near, indicator(held), grasped, in_place, obj_to_target)

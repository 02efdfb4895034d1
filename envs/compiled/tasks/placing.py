"""Tasks that bring an object to a place: a peg, a ball to a hoop, a lid to a box, a puck on a shelf."""

from __future__ import annotations

import numpy as np

from envs.compiled.grasp import above_funnel, caging_and_gripping, dense_grasp
from envs.compiled.maths import (
    Vec,
    add,
    clip,
    distance,
    hamacher,
    indicator,
    long_tail,
    norm,
    quaternion_distance,
    scaled,
    subtract,
)
from envs.compiled.native import inner
from envs.compiled.scene import Judgement, Scene, touching

_RADIUS = 0.05  # of a target, metres


@inner
def peg_unplug_side(scene: Scene) -> Judgement:
    """peg-unplug-side-v3: pulls a peg sideways out of a hole."""
    obj = scene.obj
    tcp_to_obj, obj_to_target = distance(obj, scene.tcp), distance(obj, scene.target)
    grasped = dense_grasp(scene, obj, 0.025, 0.05, 0.005, 0.8)
    in_place = long_tail(obj_to_target, 0.0, _RADIUS, distance(scene.obj_init, scene.target))
    moved = scene.opened > 0.5 and obj[0] - scene.obj_init[0] > 0.015
    reward = 2.0 * grasped
    if moved and tcp_to_obj < 0.035:
        reward += 1.0 + 5.0 * in_place
    if obj_to_target <= _RADIUS:
        reward = 10.0
    success, near = indicator(obj_to_target <= 0.07), indicator(tcp_to_obj <= 0.03)
    return Judgement(reward, success, near, indicator(moved), grasped, in_place, obj_to_target)


_BASKET_RADIUS = 0.08
_HOOP_HEIGHT = 0.3  # to bring the ball to, a little above the hoop, metres


@inner
def basketball(scene: Scene) -> Judgement:
    """basketball-v3: drops a ball into a basket."""
    obj, weights = scene.obj, (1.0, 1.0, 2.0)
    hoop = (scene.target[0], scene.target[1], _HOOP_HEIGHT)
    obj_to_hoop = norm(scaled(subtract(obj, hoop), weights))
    margin = norm(scaled(subtract(scene.obj_init, hoop), weights))
    in_place = long_tail(obj_to_hoop, 0.0, _BASKET_RADIUS, margin)
    tcp_to_obj = distance(obj, scene.tcp)
    holds = tcp_to_obj < 0.035 and scene.opened > 0.0 and obj[2] - 0.01 > scene.obj_init[2]
    grasped = 1.0 if holds else dense_grasp(scene, obj, 0.025, 0.06, 0.005, 1.0)
    reward = hamacher(grasped, in_place)
    if holds:
        reward += 1.0 + 5.0 * in_place
    if obj_to_hoop < _BASKET_RADIUS:
        reward = 10.0
    lifted = scene.opened > 0.0 and obj[2] - 0.03 > scene.obj_init[2]
    success, near = indicator(obj_to_hoop <= _BASKET_RADIUS), indicator(tcp_to_obj <= 0.05)
    return Judgement(reward, success, near, indicator(lifted), grasped, in_place, obj_to_hoop)


_UPRIGHT_LID = (0.707, 0.0, 0.0, 0.707)  # quaternion w x y z
_LID_FUNNEL = 0.02  # radius around the handle of the lid in which the hand may be low, metres


@inner
def _closing_effort(scene: Scene) -> float:
    """Returns how much the gripper is told to close, 0 to 1, rounded to float32 as metaworld does."""
    return np.float64(np.float32(clip(scene.effort, -1.0, 1.0) + 1.0)) / 2.0


@inner
def box_close(scene: Scene) -> Judgement:
    """box-close-v3: puts a lid on a box."""
    hand, lid, grab = scene.hand, add(scene.obj, (0.0, 0.0, 0.02)), _closing_effort(scene)
    upright = max(1.0 - quaternion_distance(scene.quaternion, _UPRIGHT_LID) / 0.2, 0.0)
    at_handle = long_tail(distance(hand, lid), 0.0, 0.02, 0.5)
    ready = hamacher(above_funnel(hand, lid, _LID_FUNNEL), at_handle)
    error = norm(scaled(subtract(scene.target, lid), (1.0, 1.0, 3.0)))
    closed = 0.2 * indicator(lid[2] > 0.04) + 0.8 * long_tail(error, 0.0, 0.05, 0.25)
    success = distance(scene.obj, scene.target) < 0.08
    reward = 10.0 if success else 2.0 * hamacher(grab, ready) + 8.0 * closed
    return Judgement(reward * upright, indicator(success), ready, indicator(grab >= 0.5), grab, closed, 0.0)


_SHELF_HEIGHT, _SHELF_HALF_WIDTH, _SHELF_FRONT = 0.24, 0.15, 3.0 * _RADIUS  # metres


@inner
def _in_place_on_shelf(obj: Vec, target: Vec, in_place: float) -> float:
    """Returns `in_place`, less for a puck that is low in front of the shelf and 0 for one below it."""
    low = 0.0 < obj[2] < _SHELF_HEIGHT
    if not (low and target[0] - _SHELF_HALF_WIDTH < obj[0] < target[0] + _SHELF_HALF_WIDTH):
        return in_place
    if obj[1] > target[1]:
        return 0.0
    front = target[1] - _SHELF_FRONT
    if not front < obj[1] < target[1]:
        return in_place
    loss = hamacher((obj[1] - front) / _SHELF_FRONT, (_SHELF_HEIGHT - obj[2]) / _SHELF_HEIGHT)
    return clip(in_place - loss, 0.0, 1.0)


@inner
def shelf_place(scene: Scene) -> Judgement:
    """shelf-place-v3: puts a puck on a shelf."""
    obj = scene.obj
    obj_to_target, tcp_to_obj = distance(obj, scene.target), distance(obj, scene.tcp)
    closeness = long_tail(obj_to_target, 0.0, _RADIUS, distance(scene.obj_init, scene.target))
    _, grasped = caging_and_gripping(scene, obj, 0.02, 0.05, 0.01, 1.0)
    reward = hamacher(grasped, closeness)
    in_place = _in_place_on_shelf(obj, scene.target, closeness)
    if tcp_to_obj < 0.025 and scene.opened > 0.0 and obj[2] - 0.01 > scene.obj_init[2]:
        reward += 1.0 + 5.0 * in_place
    if obj_to_target < _RADIUS:
        reward = 10.0
    lifted = touching(scene, 0) and scene.opened > 0.0 and obj[2] - 0.02 > scene.obj_init[2]
    success, near = indicator(obj_to_target <= 0.07), indicator(tcp_to_obj <= 0.03)
    return Judgement(reward, success, near, indicator(lifted), grasped, in_place, obj_to_target)

"""Tasks about bins and holes."""

from __future__ import annotations

import math

from envs.compiled.grasp import dense_grasp, lifted, squeezing_grasp
from envs.compiled.maths import Vec, distance, distance_in_plane, hamacher, indicator, long_tail
from envs.compiled.native import inner
from envs.compiled.scene import Judgement, Scene, extra, set_extra, touching

_RADIUS = 0.05  # of a target, metres
_X, _Y, _Z = range(3)
_FUNNEL = 0.03  # radius around a point on the ground in which the hand may be low, metres


@inner
def _funnel_floor(point: Vec, centre: Vec, slope: float, height: float) -> float:
    """Returns how high a point must be not to hit an edge: a funnel that ends at the centre, metres."""
    radius = distance_in_plane(point, centre, _X, _Y)
    return slope * math.log(radius - _FUNNEL) + height if radius > _FUNNEL else 0.0


@inner
def _above(height: float, floor: float, margin: float) -> float:
    """Returns 1 above the floor, less below it."""
    return 1.0 if height >= floor else long_tail(floor - height, 0.0, 0.01, margin)


@inner
def bin_picking(scene: Scene) -> Judgement:
    """bin-picking-v3: moves a cube from one bin into another."""
    obj, hand = scene.obj, scene.hand
    obj_to_target = distance(obj, scene.target)
    if math.isnan(extra(scene, 0)):  # metaworld measures it at the first step
        set_extra(scene, 0, obj_to_target)
    in_place = long_tail(obj_to_target, 0.0, _RADIUS, extra(scene, 0))
    floor = min(_funnel_floor(hand, scene.obj_init, 0.02, 0.2), _funnel_floor(hand, scene.target, 0.02, 0.2))
    grasped = dense_grasp(scene, obj, 0.015, 0.05, 0.01, 0.7)
    near = distance(obj, hand) < 0.04
    held = near and obj[_Z] - 0.02 > scene.obj_init[_Z] and scene.opened >= 0.43
    reward = hamacher(grasped, in_place)
    if held:
        reward += 1.0 + 5.0 * hamacher(_above(hand[_Z], floor, 0.05), in_place)
    if obj_to_target < _RADIUS:
        reward = 10.0
    success = indicator(obj_to_target <= _RADIUS)
    return Judgement(reward, success, indicator(near), indicator(held), grasped, in_place, obj_to_target)


@inner
def pick_out_of_hole(scene: Scene) -> Judgement:
    """pick-out-of-hole-v3: lifts an object out of a hole to a point in the air."""
    obj, tcp = scene.obj, scene.tcp
    obj_to_target, tcp_to_obj = distance(obj, scene.target), distance(obj, tcp)
    in_place = long_tail(obj_to_target, 0.0, 0.02, distance(scene.obj_init, scene.target))
    floor = _funnel_floor(tcp, scene.obj_init, 0.015, 0.15)
    grasped = dense_grasp(scene, obj, 0.015, 0.02, 0.03, 0.1)
    held = tcp_to_obj < 0.04 and obj[_Z] - 0.02 > scene.obj_init[_Z] and scene.opened >= 0.33
    reward = hamacher(grasped, in_place)
    if held:
        reward += 1.0 + 5.0 * hamacher(in_place, _above(tcp[_Z], floor, 0.02))
    if obj_to_target < _RADIUS:
        reward = 10.0
    success, near = indicator(obj_to_target <= 0.07), indicator(tcp_to_obj <= 0.03)
    return Judgement(reward, success, near, indicator(held), grasped, in_place, obj_to_target)


@inner
def hand_insert(scene: Scene) -> Judgement:
    """hand-insert-v3: grips an object and puts it into a hole."""
    obj = scene.obj
    obj_to_target, tcp_to_obj = distance(obj, scene.target), distance(obj, scene.tcp)
    in_place = long_tail(obj_to_target, 0.0, _RADIUS, distance(scene.obj_init, scene.target))
    grasped = dense_grasp(scene, obj, 0.015, 0.05, 0.005, 1.0)
    reward = hamacher(grasped, in_place)
    if tcp_to_obj < 0.02 and scene.opened > 0.0:
        reward += 1.0 + 7.0 * in_place
    if obj_to_target < _RADIUS:
        reward = 10.0
    success, near = indicator(obj_to_target <= _RADIUS), indicator(tcp_to_obj <= 0.03)
    return Judgement(reward, success, near, indicator(lifted(scene)), grasped, in_place, obj_to_target)


@inner
def sweep_into(scene: Scene) -> Judgement:
    """sweep-into-v3: sweeps a puck into a hole; its height does not count."""
    target = (scene.target[_X], scene.target[_Y], scene.obj[_Z])
    obj_to_target, tcp_to_obj = distance(scene.obj, target), distance(scene.obj, scene.tcp)
    in_place = long_tail(obj_to_target, 0.0, _RADIUS, distance(scene.obj_init, target))
    grasped = squeezing_grasp(scene, scene.obj, 0.02, 0.005, 0.01)
    reward = 10.0 if obj_to_target < _RADIUS else 2.0 * grasped + 6.0 * hamacher(grasped, in_place)
    gripped = indicator(scene.opened > 0.0 and touching(scene, 0))
    success, near = indicator(obj_to_target <= _RADIUS), indicator(tcp_to_obj <= 0.03)
    return Judgement(reward, success, near, gripped, grasped, in_place, obj_to_target)

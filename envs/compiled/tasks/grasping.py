"""Tasks that move an object with the gripper, and reach-v3."""

from __future__ import annotations

from envs.compiled.grasp import CAGED, dense_grasp, lifted, pads_beside
from envs.compiled.maths import (
    distance,
    distance_in_plane,
    hamacher,
    in_box,
    indicator,
    long_tail,
    norm,
    scaled,
    subtract,
)
from envs.compiled.native import inner
from envs.compiled.scene import Judgement, Scene, extra_vector, named_site

_RADIUS = 0.05  # of a target, metres


@inner
def reach(scene: Scene) -> Judgement:
    """reach-v3: brings the gripper to a point in the air."""
    tcp_to_target = distance(scene.tcp, scene.target)
    in_place = long_tail(tcp_to_target, 0.0, _RADIUS, distance(scene.hand_init, scene.target))
    success = indicator(tcp_to_target <= _RADIUS)
    return Judgement(10.0 * in_place, success, tcp_to_target, 1.0, tcp_to_target, in_place, tcp_to_target)


@inner
def push(scene: Scene) -> Judgement:
    """push-v3: pushes a puck to a point on the table."""
    tcp_to_obj, target_to_obj = distance(scene.obj, scene.tcp), distance(scene.obj, scene.target)
    in_place = long_tail(target_to_obj, 0.0, _RADIUS, distance(scene.obj_init, scene.target))
    grasped = dense_grasp(scene, scene.obj, 0.015, 0.05, 0.005, 1.0)
    reward = 2.0 * grasped
    if tcp_to_obj < 0.02 and scene.opened > 0.0:
        reward += 1.0 + reward + 5.0 * in_place
    if target_to_obj < _RADIUS:
        reward = 10.0
    success, near = indicator(target_to_obj <= _RADIUS), indicator(tcp_to_obj <= 0.03)
    return Judgement(reward, success, near, indicator(lifted(scene)), grasped, in_place, target_to_obj)


@inner
def _pick_place_grasp(scene: Scene) -> float:
    """Returns pick-place-v3's own grasp reward; its margins shift with where the pads are now."""
    obj = scene.obj
    in_plane_margin = distance_in_plane(scene.obj_init, scene.init_tcp, 0, 2) - 0.005
    in_plane = long_tail(distance_in_plane(scene.tcp, obj, 0, 2), 0.0, 0.005, in_plane_margin)
    caging = hamacher(pads_beside(scene, obj, 0.015, 0.05), in_plane)
    closed = min(max(0.0, scene.effort), 1.0)
    return (hamacher(caging, closed if caging > CAGED else 0.0) + caging) / 2.0


@inner
def pick_place(scene: Scene) -> Judgement:
    """pick-place-v3: brings a puck to a point in the air."""
    obj = scene.obj
    obj_to_target, tcp_to_obj = distance(obj, scene.target), distance(obj, scene.tcp)
    in_place = long_tail(obj_to_target, 0.0, _RADIUS, distance(scene.obj_init, scene.target))
    grasped = _pick_place_grasp(scene)
    reward = hamacher(grasped, in_place)
    if tcp_to_obj < 0.02 and scene.opened > 0.0 and obj[2] - 0.01 > scene.obj_init[2]:
        reward += 1.0 + 5.0 * in_place
    if obj_to_target < _RADIUS:
        reward = 10.0
    success, near = indicator(obj_to_target <= 0.07), indicator(tcp_to_obj <= 0.03)
    return Judgement(reward, success, near, indicator(lifted(scene)), grasped, in_place, obj_to_target)


_PEG_RADIUS = 0.07
PEG_HEAD, BOX_1_ONE, BOX_1_ZERO, BOX_2_ONE, BOX_2_ZERO = range(5)


@inner
def peg_insert_side(scene: Scene) -> Judgement:
    """peg-insert-side-v3: puts a peg into a hole in a wall."""
    obj, head = scene.obj, named_site(scene, PEG_HEAD)
    weights = (1.0, 2.0, 2.0)
    tcp_to_obj = distance(obj, scene.tcp)
    head_to_target = norm(scaled(subtract(head, scene.target), weights))
    margin = norm(scaled(subtract(extra_vector(scene, 0), scene.target), weights))
    in_place = long_tail(head_to_target, 0.0, _PEG_RADIUS, margin)
    box_1 = in_box(head, named_site(scene, BOX_1_ZERO), named_site(scene, BOX_1_ONE))
    box_2 = in_box(head, named_site(scene, BOX_2_ZERO), named_site(scene, BOX_2_ONE))
    in_place = hamacher(in_place, hamacher(box_2, box_1))
    raised = scene.opened > 0.0 and obj[2] - 0.01 > scene.obj_init[2]
    grasped = dense_grasp(scene, obj, 0.0075, 0.03, 0.005, 1.0)
    if tcp_to_obj < 0.08 and raised:
        grasped = 1.0
    reward = hamacher(grasped, in_place)
    if tcp_to_obj < 0.08 and raised:
        reward += 1.0 + 5.0 * in_place
    success = head_to_target <= 0.07
    if success:
        reward = 10.0
    held, near = indicator(tcp_to_obj < 0.02 and raised), indicator(tcp_to_obj <= 0.03)
    return Judgement(reward, indicator(success), near, held, grasped, in_place, head_to_target)

"""Doors, drawers and windows."""

from __future__ import annotations

import math

from envs.compiled.grasp import above_funnel
from envs.compiled.maths import add, clip, distance, gaussian, hamacher, indicator, long_tail, norm, scaled, subtract
from envs.compiled.native import inner
from envs.compiled.scene import Judgement, Scene, extra, extra_vector, named_joint

_RADIUS = 0.05  # of a target, metres
_FUNNEL = 0.12  # radius around the handle of a door in which the hand may be low, metres


@inner
def door_open(scene: Scene) -> Judgement:
    """door-open-v3: pulls a door open by its handle."""
    angle = named_joint(scene, 0)
    hand, door = scene.hand, add(scene.obj, (-0.05, 0.0, 0.0))
    grab = (clip(scene.effort, -1.0, 1.0) + 1.0) / 2.0
    at_handle = norm(subtract(subtract(hand, door), (0.05, 0.03, -0.01)))
    ready = hamacher(above_funnel(hand, door, _FUNNEL), long_tail(at_handle, 0.0, _FUNNEL / 2.0, 0.5))
    to_open = math.pi / 2.0 + math.pi / 6.0 + angle
    opened = 0.2 * indicator(angle < -math.pi / 90.0) + 0.8 * long_tail(to_open, 0.0, 0.5, math.pi / 3.0)
    success = abs(scene.obj[0] - scene.target[0]) <= 0.08
    reward = 10.0 if success else 2.0 * hamacher(ready, grab) + 8.0 * opened
    return Judgement(reward, indicator(success), ready, indicator(grab >= 0.5), grab, opened, 0.0)


@inner
def door_close(scene: Scene) -> Judgement:
    """door-close-v3: closes a door."""
    obj_to_target = distance(scene.obj, scene.target)
    in_place = gaussian(obj_to_target, 0.0, _RADIUS, distance(scene.obj_init, scene.target))
    hand_margin = distance(scene.hand_init, scene.obj) + 0.1
    hand_in_place = gaussian(distance(scene.tcp, scene.target), 0.0, 0.25 * _RADIUS, hand_margin)
    reward = 10.0 if obj_to_target < _RADIUS else 3.0 * hand_in_place + 6.0 * in_place
    return Judgement(reward, indicator(obj_to_target <= 0.08), 0.0, 1.0, 1.0, hand_in_place, obj_to_target)


@inner
def drawer_open(scene: Scene) -> Judgement:
    """drawer-open-v3: pulls a drawer out."""
    handle, travel = scene.obj, extra(scene, 0)
    handle_error = distance(handle, scene.target)
    opening = long_tail(handle_error, 0.0, 0.02, travel)
    weights = (3.0, 3.0, 1.0)  # the hand should come from above
    error = norm(scaled(subtract(handle, scene.hand), weights))
    first_error = norm(scaled(subtract(add(scene.target, (0.0, travel, 0.0)), scene.init_tcp), weights))
    caging = long_tail(error, 0.0, 0.01, first_error)
    near = indicator(distance(handle, scene.hand) <= 0.03)
    success, gripped = indicator(handle_error <= 0.03), indicator(scene.opened > 0.0)
    return Judgement(5.0 * (caging + opening), success, near, gripped, caging, opening, handle_error)


@inner
def drawer_close(scene: Scene) -> Judgement:
    """drawer-close-v3: pushes a drawer in."""
    target_to_obj, tcp_to_obj = distance(scene.obj, scene.target), distance(scene.obj, scene.tcp)
    margin = abs(distance(scene.obj_init, scene.target) - _RADIUS)
    in_place = long_tail(target_to_obj, 0.0, _RADIUS, margin)
    reach = gaussian(tcp_to_obj, 0.0, 0.005, abs(distance(scene.obj_init, scene.init_tcp) - 0.005))
    reach = hamacher(reach, min(max(0.0, scene.effort), 1.0))
    success = target_to_obj <= _RADIUS + 0.015
    reward = 10.0 if success else 10.0 * hamacher(reach, in_place)
    return Judgement(reward, indicator(success), indicator(tcp_to_obj <= 0.01), 1.0, reach, in_place, target_to_obj)


@inner
def window_open(scene: Scene) -> Judgement:
    """window-open-v3: pushes a window open."""
    return _slide_window(scene, scene.obj_init[0], False)


@inner
def window_close(scene: Scene) -> Judgement:
    """window-close-v3: pushes a window shut."""
    return _slide_window(scene, extra(scene, 0), True)


@inner
def _slide_window(scene: Scene, handle_x_init: float, narrow: bool) -> Judgement:
    """Judges a sliding window whose handle began at `handle_x_init`; `narrow` takes the gaussian for reaching."""
    target_to_obj = abs(scene.obj[0] - scene.target[0])
    margin = abs(abs(handle_x_init - scene.target[0]) - _RADIUS)
    in_place = long_tail(target_to_obj, 0.0, _RADIUS, margin)
    tcp_to_obj = distance(scene.obj, scene.tcp)
    reach_margin = abs(distance(extra_vector(scene, 0), scene.init_tcp) - 0.02)
    narrowly = gaussian(tcp_to_obj, 0.0, 0.02, reach_margin)
    widely = long_tail(tcp_to_obj, 0.0, 0.02, reach_margin)
    reach = narrowly if narrow else widely
    reward = 10.0 * hamacher(reach, in_place)
    success, near_object = indicator(target_to_obj <= _RADIUS), indicator(tcp_to_obj <= 0.05)
    return Judgement(reward, success, near_object, 1.0, reach, in_place, target_to_obj)

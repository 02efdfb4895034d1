"""Buttons."""

from __future__ import annotations

from typing import NamedTuple

from envs.compiled.maths import distance, hamacher, indicator, long_tail
from envs.compiled.native import inner
from envs.compiled.scene import Judgement, Scene, extra

_Y, _Z = 1, 2  # along which buttons are pressed


class Button(NamedTuple):
    """How a button stands; distances in metres, the rest 0 to 1."""

    tcp_to_obj: float
    obj_to_target: float
    """Along the axis of the button."""
    near: float
    pressed: float


@inner
def _look(scene: Scene, axis: int, radius: float) -> Button:
    """Returns how the button stands; the gripper counts as near within `radius`."""
    tcp_to_obj, obj_to_target = distance(scene.obj, scene.tcp), abs(scene.target[axis] - scene.obj[axis])
    near = long_tail(tcp_to_obj, 0.0, radius, distance(scene.obj, scene.init_tcp))
    return Button(tcp_to_obj, obj_to_target, near, long_tail(obj_to_target, 0.0, 0.005, extra(scene, 0)))


@inner
def _reward(button: Button, ready: float, reach_weight: float, radius: float) -> float:
    """Returns the reward of coming near with a ready gripper, and within `radius` of pressing, 10 in all."""
    reward = reach_weight * hamacher(ready, button.near)
    if button.tcp_to_obj <= radius:
        reward += (10.0 - reach_weight) * button.pressed
    return reward


@inner
def _judge(scene: Scene, button: Button, reward: float, success_radius: float) -> Judgement:
    success, near = indicator(button.obj_to_target <= success_radius), indicator(button.tcp_to_obj <= 0.05)
    opened = indicator(scene.opened > 0.0)
    return Judgement(reward, success, near, opened, button.near, button.pressed, button.obj_to_target)


@inner
def button_press_topdown(scene: Scene) -> Judgement:
    """button-press-topdown-v3: presses a button from above."""
    button = _look(scene, _Z, 0.01)
    return _judge(scene, button, _reward(button, 1.0 - scene.opened, 5.0, 0.03), 0.024)


@inner
def button_press_topdown_wall(scene: Scene) -> Judgement:
    """button-press-topdown-wall-v3: presses a button from above, past a wall, with an open gripper."""
    button = _look(scene, _Z, 0.01)
    return _judge(scene, button, _reward(button, scene.opened, 5.0, 0.03), 0.024)


@inner
def button_press(scene: Scene) -> Judgement:
    """button-press-v3: presses a button from the front with an open gripper."""
    button = _look(scene, _Y, 0.05)
    return _judge(scene, button, _reward(button, scene.opened, 2.0, 0.05), 0.02)


@inner
def button_press_wall(scene: Scene) -> Judgement:
    """button-press-wall-v3: presses a button behind a wall; the gripper closes on the way and opens at the button."""
    button = _look(scene, _Y, 0.01)
    if button.tcp_to_obj > 0.07:
        reward = 2.0 * hamacher((1.0 - scene.opened) / 2.0, button.near)
    else:
        reward = 2.0 + 2.0 * (1.0 + scene.opened) + 4.0 * button.pressed * button.pressed
    return _judge(scene, button, reward, 0.03)

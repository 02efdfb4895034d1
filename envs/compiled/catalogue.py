"""The tasks that compiled code knows: where observations come from, what rewards name, what a reset leaves behind.

A task's number, which `engine.py` dispatches on, is its place in `CATALOGUE`.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from enum import IntEnum

from envs.compiled.scene import Judgement, Scene
from envs.compiled.tasks.buttons import (
    button_press,
    button_press_topdown,
    button_press_topdown_wall,
    button_press_wall,
)
from envs.compiled.tasks.coffee import coffee_button, coffee_pull, coffee_push
from envs.compiled.tasks.furniture import door_close, door_open, drawer_close, drawer_open, window_close, window_open
from envs.compiled.tasks.grasping import peg_insert_side, pick_place, push, reach
from envs.compiled.tasks.handles import handle_press, handle_press_side, handle_pull, handle_pull_side
from envs.compiled.tasks.holes import bin_picking, hand_insert, pick_out_of_hole, sweep_into
from envs.compiled.tasks.placing import basketball, box_close, peg_unplug_side, shelf_place
from envs.compiled.tasks.plates import plate_slide, plate_slide_side
from envs.compiled.tasks.pushing import push_back, soccer, sweep
from envs.compiled.tasks.tools import assembly, disassemble, hammer, stick_pull, stick_push
from envs.compiled.tasks.turning import dial_turn, door_lock, door_unlock, faucet_close, faucet_open, lever_pull
from envs.compiled.tasks.walls import pick_place_wall, push_wall, reach_wall

RewardFunction = Callable[[Scene], Judgement]


class Position(IntEnum):
    """Where the position of an object comes from."""

    BODY = 0
    SITE = 1
    GEOM = 2
    BODY_RIM = 3  # of a dial: a point beside the body that turns with the joint that the task names first


class Quaternion(IntEnum):
    """Where the quaternion of an object comes from. Tasks differ in its order, and that is part of the benchmark."""

    ZERO = 0
    BODY = 1  # MuJoCo's, w x y z
    GEOM_MATRIX = 2  # through SciPy, x y z w
    SITE_MATRIX = 3  # the same
    BODY_MATRIX = 4  # the same
    IDENTITY = 5  # w x y z


@dataclass(frozen=True)
class ObservedObject:
    """One object of an observation."""

    position: Position
    name: str
    quaternion: Quaternion
    quaternion_name: str = ""
    """Element that the quaternion is taken of; `name` if empty."""
    offset: tuple[float, float, float] = (0.0, 0.0, 0.0)
    """Added to the position, metres."""


@dataclass(frozen=True)
class CompiledTask:
    """What there is to know of a task."""

    judge: RewardFunction
    objects: tuple[ObservedObject, ...]
    named: tuple[str, ...] = ()
    """`body:`, `site:`, `geom:` or `joint:` and a name, in the order in which the reward function counts them."""
    extras: tuple[str, ...] = ()
    """Attributes of metaworld's object after a reset, numbers or vectors, one after the other."""


def _handle(site: str) -> ObservedObject:
    return ObservedObject(Position.SITE, site, Quaternion.ZERO)


_PUCK = ObservedObject(Position.BODY, "obj", Quaternion.GEOM_MATRIX, "objGeom")
_NUT = ObservedObject(Position.SITE, "RoundNut-8", Quaternion.BODY, "RoundNut")
_PUCK_GEOM = ObservedObject(Position.GEOM, "objGeom", Quaternion.GEOM_MATRIX)
_PLATE = ObservedObject(Position.GEOM, "puck", Quaternion.GEOM_MATRIX)


def _stick_and_container(offset: tuple[float, float, float]) -> tuple[ObservedObject, ...]:
    """Returns a stick and a container that is observed at its hole for the stick."""
    stick = ObservedObject(Position.BODY, "stick", Quaternion.BODY_MATRIX)
    return stick, ObservedObject(Position.SITE, "insertion", Quaternion.ZERO, offset=offset)


def _faucet(handle: str) -> ObservedObject:
    return ObservedObject(Position.SITE, handle, Quaternion.BODY, "faucetBase", offset=(0.0, 0.0, -0.01))


_LOOSE_OBJECT = ObservedObject(Position.BODY, "obj", Quaternion.BODY)
_DOOR_HANDLE = ObservedObject(Position.GEOM, "handle", Quaternion.GEOM_MATRIX)
_BUTTON_ON_TOP = ObservedObject(Position.BODY, "button", Quaternion.BODY, offset=(0.0, 0.0, 0.193))
_BUTTON_IN_FRONT = ObservedObject(Position.BODY, "button", Quaternion.BODY, offset=(0.0, -0.193, 0.0))
_COFFEE_BUTTON = ObservedObject(Position.SITE, "buttonStart", Quaternion.IDENTITY)
_MUG = ObservedObject(Position.BODY, "obj", Quaternion.GEOM_MATRIX, "mug")

CATALOGUE: dict[str, CompiledTask] = {
    "reach-v3": CompiledTask(reach, (_PUCK,)),
    "push-v3": CompiledTask(push, (_PUCK,), named=("geom:objGeom",)),
    "pick-place-v3": CompiledTask(pick_place, (_PUCK,), named=("geom:objGeom",)),
    "door-open-v3": CompiledTask(door_open, (_DOOR_HANDLE,), named=("joint:doorjoint",)),
    "door-close-v3": CompiledTask(door_close, (_DOOR_HANDLE,)),
    "drawer-open-v3": CompiledTask(
        drawer_open,
        (ObservedObject(Position.BODY, "drawer_link", Quaternion.BODY, offset=(0.0, -0.16, 0.0)),),
        extras=("maxDist",),
    ),
    "drawer-close-v3": CompiledTask(
        drawer_close, (ObservedObject(Position.BODY, "drawer_link", Quaternion.ZERO, offset=(0.0, -0.16, 0.05)),)
    ),
    "button-press-topdown-v3": CompiledTask(button_press_topdown, (_BUTTON_ON_TOP,), extras=("_obj_to_target_init",)),
    "peg-insert-side-v3": CompiledTask(
        peg_insert_side,
        (ObservedObject(Position.SITE, "pegGrasp", Quaternion.SITE_MATRIX),),
        named=(
            "site:pegHead",
            "site:top_left_corner_collision_box_1",
            "site:bottom_right_corner_collision_box_1",
            "site:top_left_corner_collision_box_2",
            "site:bottom_right_corner_collision_box_2",
        ),
        extras=("peg_head_pos_init",),
    ),
    "window-open-v3": CompiledTask(
        window_open,
        (ObservedObject(Position.SITE, "handleOpenStart", Quaternion.ZERO),),
        extras=("window_handle_pos_init",),
    ),
    "window-close-v3": CompiledTask(
        window_close,
        (ObservedObject(Position.SITE, "handleCloseStart", Quaternion.ZERO),),
        extras=("window_handle_pos_init",),
    ),
    "button-press-v3": CompiledTask(button_press, (_BUTTON_IN_FRONT,), extras=("_obj_to_target_init",)),
    "button-press-wall-v3": CompiledTask(button_press_wall, (_BUTTON_IN_FRONT,), extras=("_obj_to_target_init",)),
    "button-press-topdown-wall-v3": CompiledTask(
        button_press_topdown_wall, (_BUTTON_ON_TOP,), extras=("_obj_to_target_init",)
    ),
    "coffee-button-v3": CompiledTask(coffee_button, (_COFFEE_BUTTON,), extras=("max_dist",)),
    "coffee-pull-v3": CompiledTask(coffee_pull, (_MUG,), named=("geom:mug",)),
    "coffee-push-v3": CompiledTask(coffee_push, (_MUG,), named=("geom:mug",)),
    "handle-press-v3": CompiledTask(handle_press, (_handle("handleStart"),), extras=("_handle_init_pos",)),
    "handle-press-side-v3": CompiledTask(handle_press_side, (_handle("handleStart"),), extras=("_handle_init_pos",)),
    "handle-pull-v3": CompiledTask(handle_pull, (_handle("handleRight"),)),
    "handle-pull-side-v3": CompiledTask(handle_pull_side, (_handle("handleCenter"),)),
    "reach-wall-v3": CompiledTask(reach_wall, (_PUCK,)),
    "push-wall-v3": CompiledTask(push_wall, (_PUCK_GEOM,), named=("geom:objGeom",)),
    "pick-place-wall-v3": CompiledTask(pick_place_wall, (_PUCK_GEOM,), named=("geom:objGeom",)),
    "push-back-v3": CompiledTask(push_back, (_PUCK_GEOM,), named=("geom:objGeom",)),
    "plate-slide-v3": CompiledTask(plate_slide, (_PLATE,)),
    "plate-slide-side-v3": CompiledTask(plate_slide_side, (_PLATE,)),
    "plate-slide-back-v3": CompiledTask(plate_slide_side, (_PLATE,)),
    "plate-slide-back-side-v3": CompiledTask(plate_slide_side, (_PLATE,)),
    "soccer-v3": CompiledTask(
        soccer,
        (ObservedObject(Position.BODY, "soccer_ball", Quaternion.BODY_MATRIX),),
        named=("geom:objGeom",),
    ),
    "sweep-v3": CompiledTask(
        sweep,
        (ObservedObject(Position.BODY, "obj", Quaternion.BODY),),
        named=("geom:objGeom",),
    ),
    "assembly-v3": CompiledTask(assembly, (_NUT,), named=("site:RoundNut",)),
    "disassemble-v3": CompiledTask(disassemble, (_NUT,), named=("site:RoundNut",)),
    "hammer-v3": CompiledTask(
        hammer,
        (
            ObservedObject(Position.BODY, "hammer", Quaternion.BODY),
            ObservedObject(Position.BODY, "nail_link", Quaternion.BODY),
        ),
        named=("joint:NailSlideJoint",),
    ),
    "stick-push-v3": CompiledTask(
        stick_push, _stick_and_container((0.0, 0.09, 0.0)), named=("geom:objGeom",), extras=("stick_init_pos",)
    ),
    "stick-pull-v3": CompiledTask(
        stick_pull,
        _stick_and_container((0.0, 0.0, 0.0)),
        named=("geom:objGeom", "site:stick_end"),
        extras=("stick_init_pos",),
    ),
    "peg-unplug-side-v3": CompiledTask(
        peg_unplug_side, (ObservedObject(Position.SITE, "pegEnd", Quaternion.BODY, "plug1"),)
    ),
    "basketball-v3": CompiledTask(basketball, (ObservedObject(Position.BODY, "bsktball", Quaternion.BODY),)),
    "box-close-v3": CompiledTask(box_close, (ObservedObject(Position.BODY, "top_link", Quaternion.BODY),)),
    "shelf-place-v3": CompiledTask(shelf_place, (_PUCK,), named=("geom:objGeom",)),
    "bin-picking-v3": CompiledTask(bin_picking, (_LOOSE_OBJECT,), extras=("_target_to_obj_init",)),
    "pick-out-of-hole-v3": CompiledTask(pick_out_of_hole, (_LOOSE_OBJECT,)),
    "hand-insert-v3": CompiledTask(hand_insert, (_LOOSE_OBJECT,), named=("geom:objGeom",)),
    "sweep-into-v3": CompiledTask(sweep_into, (_PUCK,), named=("geom:objGeom",)),
    "door-lock-v3": CompiledTask(
        door_lock, (ObservedObject(Position.SITE, "lockStartLock", Quaternion.BODY, "door_link"),)
    ),
    "door-unlock-v3": CompiledTask(
        door_unlock, (ObservedObject(Position.SITE, "lockStartUnlock", Quaternion.BODY, "door_link"),)
    ),
    "dial-turn-v3": CompiledTask(
        dial_turn,
        (ObservedObject(Position.BODY_RIM, "dial", Quaternion.BODY),),
        named=("joint:knob_Joint_1",),
        extras=("dial_push_position",),
    ),
    "faucet-open-v3": CompiledTask(faucet_open, (_faucet("handleStartOpen"),)),
    "faucet-close-v3": CompiledTask(faucet_close, (_faucet("handleStartClose"),)),
    "lever-pull-v3": CompiledTask(
        lever_pull,
        (ObservedObject(Position.SITE, "leverStart", Quaternion.GEOM_MATRIX, "objGeom"),),
        named=("joint:LeverAxis",),
        extras=("_lever_pos_init",),
    ),
}

NUMBERS = {name: number for number, name in enumerate(CATALOGUE)}
"""Task name → its number."""

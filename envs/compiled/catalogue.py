"""The tasks that compiled code knows: where observations come from, what rewards name, what a reset leaves behind.

The numbers of the tasks are those that `engine.py` dispatches on.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import IntEnum


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
    """What there is to know of a task besides its reward function."""

    number: int
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
    "reach-v3": CompiledTask(0, (_PUCK,)),
    "push-v3": CompiledTask(1, (_PUCK,), named=("geom:objGeom",)),
    "pick-place-v3": CompiledTask(2, (_PUCK,), named=("geom:objGeom",)),
    "door-open-v3": CompiledTask(3, (_DOOR_HANDLE,), named=("joint:doorjoint",)),
    "door-close-v3": CompiledTask(4, (_DOOR_HANDLE,)),
    "drawer-open-v3": CompiledTask(
        5,
        (ObservedObject(Position.BODY, "drawer_link", Quaternion.BODY, offset=(0.0, -0.16, 0.0)),),
        extras=("maxDist",),
    ),
    "drawer-close-v3": CompiledTask(
        6, (ObservedObject(Position.BODY, "drawer_link", Quaternion.ZERO, offset=(0.0, -0.16, 0.05)),)
    ),
    "button-press-topdown-v3": CompiledTask(7, (_BUTTON_ON_TOP,), extras=("_obj_to_target_init",)),
    "peg-insert-side-v3": CompiledTask(
        8,
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
        9,
        (ObservedObject(Position.SITE, "handleOpenStart", Quaternion.ZERO),),
        extras=("window_handle_pos_init",),
    ),
    "window-close-v3": CompiledTask(
        10,
        (ObservedObject(Position.SITE, "handleCloseStart", Quaternion.ZERO),),
        extras=("window_handle_pos_init",),
    ),
    "button-press-v3": CompiledTask(11, (_BUTTON_IN_FRONT,), extras=("_obj_to_target_init",)),
    "button-press-wall-v3": CompiledTask(12, (_BUTTON_IN_FRONT,), extras=("_obj_to_target_init",)),
    "button-press-topdown-wall-v3": CompiledTask(13, (_BUTTON_ON_TOP,), extras=("_obj_to_target_init",)),
    "coffee-button-v3": CompiledTask(14, (_COFFEE_BUTTON,), extras=("max_dist",)),
    "coffee-pull-v3": CompiledTask(15, (_MUG,), named=("geom:mug",)),
    "coffee-push-v3": CompiledTask(16, (_MUG,), named=("geom:mug",)),
    "handle-press-v3": CompiledTask(17, (_handle("handleStart"),), extras=("_handle_init_pos",)),
    "handle-press-side-v3": CompiledTask(18, (_handle("handleStart"),), extras=("_handle_init_pos",)),
    "handle-pull-v3": CompiledTask(19, (_handle("handleRight"),)),
    "handle-pull-side-v3": CompiledTask(20, (_handle("handleCenter"),)),
    "reach-wall-v3": CompiledTask(21, (_PUCK,)),
    "push-wall-v3": CompiledTask(22, (_PUCK_GEOM,), named=("geom:objGeom",)),
    "pick-place-wall-v3": CompiledTask(23, (_PUCK_GEOM,), named=("geom:objGeom",)),
    "push-back-v3": CompiledTask(24, (_PUCK_GEOM,), named=("geom:objGeom",)),
    "plate-slide-v3": CompiledTask(25, (_PLATE,)),
    "plate-slide-side-v3": CompiledTask(26, (_PLATE,)),
    "plate-slide-back-v3": CompiledTask(27, (_PLATE,)),
    "plate-slide-back-side-v3": CompiledTask(28, (_PLATE,)),
    "soccer-v3": CompiledTask(
        29,
        (ObservedObject(Position.BODY, "soccer_ball", Quaternion.BODY_MATRIX),),
        named=("geom:objGeom",),
    ),
    "sweep-v3": CompiledTask(
        30,
        (ObservedObject(Position.BODY, "obj", Quaternion.BODY),),
        named=("geom:objGeom",),
    ),
    "assembly-v3": CompiledTask(31, (_NUT,), named=("site:RoundNut",)),
    "disassemble-v3": CompiledTask(32, (_NUT,), named=("site:RoundNut",)),
    "hammer-v3": CompiledTask(
        33,
        (
            ObservedObject(Position.BODY, "hammer", Quaternion.BODY),
            ObservedObject(Position.BODY, "nail_link", Quaternion.BODY),
        ),
        named=("joint:NailSlideJoint",),
    ),
    "stick-push-v3": CompiledTask(
        34, _stick_and_container((0.0, 0.09, 0.0)), named=("geom:objGeom",), extras=("stick_init_pos",)
    ),
    "stick-pull-v3": CompiledTask(
        35,
        _stick_and_container((0.0, 0.0, 0.0)),
        named=("geom:objGeom", "site:stick_end"),
        extras=("stick_init_pos",),
    ),
    "peg-unplug-side-v3": CompiledTask(36, (ObservedObject(Position.SITE, "pegEnd", Quaternion.BODY, "plug1"),)),
    "basketball-v3": CompiledTask(37, (ObservedObject(Position.BODY, "bsktball", Quaternion.BODY),)),
    "box-close-v3": CompiledTask(38, (ObservedObject(Position.BODY, "top_link", Quaternion.BODY),)),
    "shelf-place-v3": CompiledTask(39, (_PUCK,), named=("geom:objGeom",)),
    "bin-picking-v3": CompiledTask(40, (_LOOSE_OBJECT,), extras=("_target_to_obj_init",)),
    "pick-out-of-hole-v3": CompiledTask(41, (_LOOSE_OBJECT,)),
    "hand-insert-v3": CompiledTask(42, (_LOOSE_OBJECT,), named=("geom:objGeom",)),
    "sweep-into-v3": CompiledTask(43, (_PUCK,), named=("geom:objGeom",)),
    "door-lock-v3": CompiledTask(44, (ObservedObject(Position.SITE, "lockStartLock", Quaternion.BODY, "door_link"),)),
    "door-unlock-v3": CompiledTask(
        45, (ObservedObject(Position.SITE, "lockStartUnlock", Quaternion.BODY, "door_link"),)
    ),
    "dial-turn-v3": CompiledTask(
        46,
        (ObservedObject(Position.BODY_RIM, "dial", Quaternion.BODY),),
        named=("joint:knob_Joint_1",),
        extras=("dial_push_position",),
    ),
    "faucet-open-v3": CompiledTask(47, (_faucet("handleStartOpen"),)),
    "faucet-close-v3": CompiledTask(48, (_faucet("handleStartClose"),)),
    "lever-pull-v3": CompiledTask(
        49,
        (ObservedObject(Position.SITE, "leverStart", Quaternion.GEOM_MATRIX, "objGeom"),),
        named=("joint:LeverAxis",),
        extras=("_lever_pos_init",),
    ),
}

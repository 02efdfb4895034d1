"""Where the numbers of one environment lie: addresses within MuJoCo's data, and the rows kept per environment.

Compiled code gets one row of integers per environment (`PLACES`), made here, and one row of floats (`START`), made by
`simulator.py` from metaworld's object after a reset.
"""

from __future__ import annotations

import ctypes
from dataclasses import dataclass
from enum import IntEnum
from functools import cache

import mujoco
import numpy as np
import numpy.typing as npt

Integers = npt.NDArray[np.int64]
Floats = npt.NDArray[np.float64]
NUM_OBJECTS = 2
NUM_NAMED = 8
NUM_EXTRAS = 16
OBJECT_FIELDS = 3
_SCANNED_WORDS = 21_000  # of the struct mjData, which is a little longer
_MOST_MODEL_WORDS = 700  # of the struct mjModel; the search ends at its last but one


class Place(IntEnum):
    """Columns of the row of integers of an environment."""

    MODEL = 0
    DATA = 1
    XPOS = 2
    XQUAT = 3
    SITE_XPOS = 4
    SITE_XMAT = 5
    GEOM_XPOS = 6
    GEOM_XMAT = 7
    QPOS = 8
    CTRL = 9
    MOCAP_POS = 10
    MOCAP_QUAT = 11
    WARNINGS = 12
    NUM_CONTACTS = 13
    CONTACTS = 14  # address of the pointer, as the array moves
    CONSTRAINT_FORCE = 15  # the same
    XMAT = 16  # of bodies
    HAND = 17  # bodies
    RIGHT_CLAW = 18
    LEFT_CLAW = 19
    LEFT_PAD = 20
    RIGHT_PAD = 21
    RIGHT_TIP = 22  # sites
    LEFT_TIP = 23
    LEFT_PAD_GEOM = 24
    RIGHT_PAD_GEOM = 25
    TASK = 26
    NUM_OBJECTS = 27
    LIVE_TARGET = 28  # address of a target that moves with the scene, else 0
    LIVE_OBJ_INIT = 29  # the same for metaworld's `obj_init_pos`
    NAMED = 30  # bodies, sites, geoms or joints that the task names itself
    OBJECTS = 38  # position source, quaternion source and number of the element, for each object


NUM_PLACES = Place.OBJECTS + NUM_OBJECTS * OBJECT_FIELDS


class Start(IntEnum):
    """Columns of the row of floats of an environment: what a reset leaves behind for the rewards."""

    TARGET = 0
    OBJ_INIT = 3
    INIT_TCP = 6
    HAND_INIT = 9
    MOCAP_LOW = 12
    MOCAP_HIGH = 15
    OFFSETS = 18  # added to the position of each object
    EXTRAS = 24


NUM_STARTS = Start.EXTRAS + NUM_EXTRAS


@dataclass(frozen=True)
class ContactLayout:
    """Where MuJoCo keeps contacts and constraint forces, in bytes; found by looking, as no binding tells."""

    contact_pointer: int
    force_pointer: int
    stride: int
    geoms: int
    force_index: int


@cache
def contact_layout() -> ContactLayout:
    """Returns where contacts lie, measured on a ball that rests on a plane.

    Raises:
        RuntimeError: If they are not where they can be found.
    """
    _, data = _ball_on_a_plane()
    contact = data.contact
    first = _address(contact.dist)
    words = _words(data, _SCANNED_WORDS)
    found = {}
    for name, address in (("contact", first), ("force", _address(data.efc_force))):
        places = np.flatnonzero(words == address)
        if not len(places):
            raise RuntimeError(f"MuJoCo {mujoco.__version__} keeps its {name} array in an unknown place")
        found[name] = int(places[-1]) * 8
    return ContactLayout(
        contact_pointer=found["contact"],
        force_pointer=found["force"],
        stride=contact.geom.strides[0],
        geoms=_address(contact.geom) - first,
        force_index=_address(contact.efc_address) - first,
    )


@dataclass(frozen=True)
class ModelLayout:
    """Where the struct mjModel keeps the pointers that an `OwnModel` redirects, in words; found by looking."""

    num_words: int
    body_pos: int
    site_pos: int


@cache
def model_layout() -> ModelLayout:
    """Returns the layout of the struct mjModel.

    Raises:
        RuntimeError: If a pointer is not where it can be found.
    """
    model, _ = _ball_on_a_plane()
    wanted, last = _address(model.names_map), 0
    while ctypes.c_uint64.from_address(model._address + 8 * last).value != wanted:
        last += 1
        if last == _MOST_MODEL_WORDS:
            raise RuntimeError(f"MuJoCo {mujoco.__version__} ends its model in an unknown way")
    words = _words(model, last)
    found = []
    for array in (model.body_pos, model.site_pos):
        places = np.flatnonzero(words == _address(array))
        if len(places) != 1:
            raise RuntimeError(f"MuJoCo {mujoco.__version__} keeps its model's positions in an unknown place")
        found.append(int(places[0]))
    return ModelLayout(last + 2, *found)  # one more pointer follows, the last of the struct


class OwnModel:
    """A model that shares all numbers of another but the positions of bodies and sites, which goals move.

    It is a copy of the struct mjModel with two pointers redirected: a few kilobytes in place of 21 MB, so that many
    environments of a task, in many threads, can each have their own.
    """

    def __init__(self, model: mujoco.MjModel) -> None:
        """Copies the struct; the model must live as long as this."""
        self.shared = model
        self.body_pos, self.site_pos = np.array(model.body_pos), np.array(model.site_pos)
        layout = model_layout()
        self._struct = np.array(_words(model, layout.num_words))
        self._struct[layout.body_pos], self._struct[layout.site_pos] = _address(self.body_pos), _address(self.site_pos)

    @property
    def address(self) -> int:
        """Where MuJoCo finds it."""
        return _address(self._struct)


def places(model: OwnModel, data: mujoco.MjData) -> Integers:
    """Returns the row of integers of an environment, but for what its task adds."""
    layout = contact_layout()
    row = np.zeros(NUM_PLACES, np.int64)
    row[Place.MODEL], row[Place.DATA] = model.address, data._address
    fields = {
        Place.XPOS: data.xpos,
        Place.XQUAT: data.xquat,
        Place.XMAT: data.xmat,
        Place.SITE_XPOS: data.site_xpos,
        Place.SITE_XMAT: data.site_xmat,
        Place.GEOM_XPOS: data.geom_xpos,
        Place.GEOM_XMAT: data.geom_xmat,
        Place.QPOS: data.qpos,
        Place.CTRL: data.ctrl,
        Place.MOCAP_POS: data.mocap_pos,
        Place.MOCAP_QUAT: data.mocap_quat,
        Place.WARNINGS: data.warning.number,
    }
    for place, array in fields.items():
        row[place] = _address(array)
    row[Place.NUM_CONTACTS] = _address(data.timer.duration) + 16 * int(mujoco.mjtTimer.mjNTIMER)
    row[Place.CONTACTS] = data._address + layout.contact_pointer
    row[Place.CONSTRAINT_FORCE] = data._address + layout.force_pointer
    bodies = {
        Place.HAND: "hand",
        Place.RIGHT_CLAW: "rightclaw",
        Place.LEFT_CLAW: "leftclaw",
        Place.LEFT_PAD: "leftpad",
        Place.RIGHT_PAD: "rightpad",
    }
    names = model.shared
    for place, name in bodies.items():
        row[place] = names.body(name).id
    row[Place.RIGHT_TIP], row[Place.LEFT_TIP] = names.site("rightEndEffector").id, names.site("leftEndEffector").id
    row[Place.LEFT_PAD_GEOM] = names.geom("leftpad_geom").id
    row[Place.RIGHT_PAD_GEOM] = names.geom("rightpad_geom").id
    return row


def _words(thing: mujoco.MjModel | mujoco.MjData, count: int) -> npt.NDArray[np.uint64]:
    """Returns a view of the first words of the struct behind a model or data."""
    return np.ctypeslib.as_array((ctypes.c_uint64 * count).from_address(thing._address))


def _address(array: npt.NDArray[np.generic]) -> int:
    address: int = array.__array_interface__["data"][0]
    return address


def _ball_on_a_plane() -> tuple[mujoco.MjModel, mujoco.MjData]:
    model = mujoco.MjModel.from_xml_string(
        "<mujoco><worldbody><geom type='plane' size='1 1 1'/>"
        "<body pos='0 0 .099'><freejoint/><geom size='.1'/><site/></body></worldbody></mujoco>"
    )
    data = mujoco.MjData(model)
    mujoco.mj_step(model, data)
    return model, data

"""Snapshots as arrays and JSON-able values, for checkpoints without pickle."""

from collections.abc import Mapping
from typing import Any

import numpy as np

from envs.snapshots import LiveView, Snapshot

ENCODED = ("physics", "body_pos", "site_pos", "python")
"""The names that `encode` returns: three float64 arrays and one JSON-able value."""


def encode(snapshot: Snapshot) -> dict[str, Any]:
    """Returns the snapshot as three arrays and one JSON-able value; numbers keep all their bits and their types."""
    views = {name: [view.field, view.offset, list(view.shape)] for name, view in snapshot.views.items()}
    attributes = {name: _encode_value(value) for name, value in snapshot.attributes.items()}
    return {
        "physics": snapshot.physics.copy(),
        "body_pos": snapshot.body_pos.copy(),
        "site_pos": snapshot.site_pos.copy(),
        "python": {"attributes": attributes, "views": views},
    }


def decode(encoded: Mapping[str, Any]) -> Snapshot:
    """Returns the snapshot that `encode` was given."""
    python = encoded["python"]
    views = {name: LiveView(field, offset, tuple(shape)) for name, (field, offset, shape) in python["views"].items()}
    attributes = {name: _decode_value(value) for name, value in python["attributes"].items()}
    return Snapshot(
        physics=np.array(encoded["physics"], np.float64),
        body_pos=np.array(encoded["body_pos"], np.float64),
        site_pos=np.array(encoded["site_pos"], np.float64),
        attributes=attributes,
        views=views,
    )


def _encode_value(value: Any) -> Any:
    """Returns NumPy values as {dtype, shape, numbers}, because float32 and float64 scalars compute differently."""
    if isinstance(value, np.ndarray | np.generic):
        shape = list(value.shape) if isinstance(value, np.ndarray) else None
        return {"dtype": str(value.dtype), "shape": shape, "numbers": np.asarray(value).reshape(-1).tolist()}
    return value


def _decode_value(value: Any) -> Any:
    if not isinstance(value, dict):
        return value
    array = np.array(value["numbers"], value["dtype"])
    return array[0] if value["shape"] is None else array.reshape(value["shape"])

"""The dotted keys of `RunConfig`: their types, defaults and meanings, the nearest key to a wrong one, values by type.

Read off the dataclasses of `config.py`, so that a key is written down once. Files and overrides are `config_io.py`.
"""

from __future__ import annotations

import ast
import difflib
import inspect
import math
import types
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, fields, is_dataclass
from functools import cache
from typing import Any, Union, get_args, get_origin, get_type_hints

from mtrl import config as schema
from mtrl.config import ConfigError, RunConfig

_EXPECTED = {
    bool: "true or false",
    int: "a whole number",
    float: "a number",
    str: "text",
    tuple[int, ...]: "a list of whole numbers, as in [400, 400]",
    tuple[str, ...]: "a list of texts, as in [reach-v3, push-v3]",
}


@dataclass(frozen=True)
class Setting:
    """One key of the schema: its type, its default, and the sentence under it in `config.py`."""

    key: str
    hint: Any
    default: object
    sentence: str


@cache
def settings() -> Mapping[str, Setting]:
    """Returns every setting of `RunConfig` by dotted key, in the order of the schema."""
    return types.MappingProxyType({setting.key: setting for setting in _settings_of(RunConfig, "")})


@cache
def groups() -> tuple[str, ...]:
    """Returns the names of the groups of settings, as in `sac`."""
    return tuple(dict.fromkeys(key.rpartition(".")[0] for key in settings() if "." in key))


def nearest(key: str, known: Sequence[str]) -> list[str]:
    """Returns the known keys that `key` most likely means, all equally near ones up to three; empty if none is near.

    A key is compared as a whole and by its last part: `batch_size` and `train.batch_size` find `sac.batch_size`.
    """

    def likeness(candidate: str) -> float:
        whole = difflib.SequenceMatcher(None, key, candidate).ratio()
        last = difflib.SequenceMatcher(None, key.rpartition(".")[2], candidate.rpartition(".")[2]).ratio()
        return max(whole, 0.95 * last)

    scores = {candidate: likeness(candidate) for candidate in known}
    best = max(scores.values(), default=0.0)
    return [candidate for candidate in known if scores[candidate] == best][:3] if best >= 0.6 else []


def unknown(key: str) -> str:
    """Returns what to say of a name that is no setting where it stands."""
    if key in settings():  # dotted, at the top of a file
        group, _, name = key.rpartition(".")
        return f"write it as {name} inside the group {group}"
    near = nearest(key, (*settings(), *groups()))
    return f"no such setting; did you mean {' or '.join(near)}?" if near else "no such setting; see `mtrl show`"


def not_a_value(group: str) -> str:
    """Returns what to say where a group of settings is given a value of its own."""
    inner = next(key for key in settings() if key.startswith(f"{group}."))
    return f"is a group of settings and takes no value of its own; set one in it, as in {inner}"


def takes_text(key: str) -> bool:
    """Returns whether the setting is a text, or empty."""
    return str in _alternatives(settings()[key].hint)


def converted(key: str, value: object) -> object:
    """Returns `value` in the type of the setting.

    Takes a whole float for an int, an int for a float and a list for a tuple, and nothing else.

    Raises:
        ConfigError: For a value of another type; text, for one, is never read as a number.
    """
    return _converted(key, settings()[key].hint, value)


def _converted(key: str, hint: Any, value: object) -> object:
    kinds = _alternatives(hint)
    for kind in kinds:
        match value:
            case None if kind is type(None):
                return None
            case bool() if kind is bool:
                return value
            case bool():
                pass
            case int() if kind is int:
                return value
            case float() if kind is int and value.is_integer():
                return int(value)
            case int() | float() if kind is float and math.isfinite(value):
                return float(value)
            case str() if kind is str:
                return value
            case list() | tuple() if get_origin(kind) is tuple:
                return tuple(_element(key, kind, value, element) for element in value)
    raise ConfigError(key, _mismatch(kinds, value))


def _element(key: str, kind: Any, whole: Sequence[object], element: object) -> object:
    try:
        return _converted(key, get_args(kind)[0], element)
    except ConfigError:
        raise ConfigError(key, _mismatch((kind,), list(whole))) from None


def _alternatives(hint: Any) -> tuple[Any, ...]:
    return get_args(hint) if get_origin(hint) in (Union, types.UnionType) else (hint,)


def _mismatch(kinds: tuple[Any, ...], value: object) -> str:
    expected = " or ".join("null" if kind is type(None) else _EXPECTED[kind] for kind in kinds)
    advice = "; put it in quotes" if str in kinds and isinstance(value, bool | int | float) else ""
    return f"expected {expected}, got {shown(value)}{advice}"


def shown(value: object) -> str:
    """Returns a value as it is written in YAML, on one line."""
    if value is None:
        return "null"
    if isinstance(value, list | tuple):
        return f"[{', '.join(shown(element) for element in value)}]"
    return str(value).lower() if isinstance(value, bool) else repr(value)


def _settings_of(section: type, prefix: str) -> Iterator[Setting]:
    hints = get_type_hints(section)
    for field in fields(section):
        key, hint = prefix + field.name, hints[field.name]
        if isinstance(hint, type) and is_dataclass(hint):
            yield from _settings_of(hint, f"{key}.")
        else:
            yield Setting(key, hint, field.default, _sentences()[section.__name__, field.name])


@cache
def _sentences() -> dict[tuple[str, str], str]:
    """Returns the string that stands under each field in `config.py`, by class and field name."""
    found = {}
    for section in ast.parse(inspect.getsource(schema)).body:
        if not isinstance(section, ast.ClassDef):
            continue
        for statement, following in zip(section.body, section.body[1:], strict=False):
            match statement, following:
                case ast.AnnAssign(target=ast.Name(id=name)), ast.Expr(value=ast.Constant(value=str(text))):
                    found[section.name, name] = inspect.cleandoc(text)
    return found

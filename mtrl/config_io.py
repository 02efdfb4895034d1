"""Reads a run's settings from YAML and `key=value` overrides, strictly, and writes them back.

The settings and their checks are in `config.py`, what follows from their names and types in `config_keys.py`. Every
mistake of the user is a `ConfigError` of one line that names the place (file and line, or the override), the full
dotted key and, for an unknown key, the nearest right one.

YAML scalars follow the core schema of YAML 1.2, not PyYAML's 1.1: `3e-4` is a number, `on` and `yes` are text, `010`
and `1:30` are no numbers. Values may refer to other settings in OmegaConf's way, as in `${sac.batch_size}`.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, fields, is_dataclass
from pathlib import Path
from typing import Any, cast, get_type_hints

import yaml
from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException

from mtrl.config import ConfigError, RunConfig
from mtrl.config_keys import converted, groups, not_a_value, settings, shown, takes_text, unknown

DEFAULT = "default"
OVERRIDE = "override"

_NULL = "tag:yaml.org,2002:null"


class SourceError(ConfigError):
    """A `ConfigError` whose text starts with the place it was found at: a file, `file:line`, or an override.

    Args:
        place: Where the mistake stands.
        key: Full dotted key, empty if no key is concerned.
        problem: What is wrong and what would be right.
    """

    def __init__(self, place: str, key: str, problem: str) -> None:
        super().__init__(key, problem)
        self.place = place
        self.args = (": ".join(part for part in (place, key, problem) if part),)


@dataclass(frozen=True)
class SettingRow:
    """One setting of a run, for `mtrl show`."""

    key: str
    value: object
    source: str
    """`default`, `file:line` or `override`."""
    sentence: str


@dataclass(frozen=True)
class _Entry:
    """A value that the user gave for one key, and where."""

    key: str
    value: object
    place: str
    source: str


class _Loader(yaml.SafeLoader):
    """Safe YAML with the scalars of YAML 1.2's core schema in decimal; `_` may group digits."""


_DIGITS = "0123456789"
_Loader.yaml_implicit_resolvers = {}  # add_implicit_resolver would start from a copy of YAML 1.1's
for _tag, _pattern, _first_letters in (
    ("null", r"null|Null|NULL|~|", ["n", "N", "~", ""]),
    ("bool", r"true|True|TRUE|false|False|FALSE", list("tTfF")),
    ("int", r"[-+]?(0|[1-9][0-9_]*)", list("-+" + _DIGITS)),
    ("float", r"[-+]?([0-9][0-9_]*\.[0-9_]*|\.[0-9]+)([eE][-+]?[0-9]+)?", list("-+." + _DIGITS)),
    ("float", r"[-+]?[0-9][0-9_]*[eE][-+]?[0-9]+|[-+]?\.inf|\.nan", list("-+." + _DIGITS)),
):
    _Loader.add_implicit_resolver(f"tag:yaml.org,2002:{_tag}", re.compile(f"(?:{_pattern})$"), _first_letters)


def load_config(path: Path, overrides: Sequence[str] = ()) -> RunConfig:
    """Reads a YAML file of settings, applies `key=value` overrides in their order, and checks the whole.

    Raises:
        ConfigError: For an unreadable file, an unknown or doubled key, a value of the wrong type, or a value that
            `config.py` refuses. The text names the place.
    """
    return load_with_sources(path, overrides)[0]


def load_with_sources(path: Path, overrides: Sequence[str] = ()) -> tuple[RunConfig, dict[str, str]]:
    """Like `load_config`, and also returns where each setting came from: `default`, `file:line` or `override`."""
    given = {entry.key: entry for entry in _file_entries(path)}
    for override in overrides:
        given.update((entry.key, entry) for entry in _override_entries(override))
    sources = {key: given[key].source if key in given else DEFAULT for key in settings()}
    try:
        return from_dict(_merged(given.values())), sources
    except ConfigError as error:
        place = given[error.key].place if error.key in given else str(path)
        raise SourceError(place, error.key, error.problem) from None


def from_dict(values: Mapping[str, object]) -> RunConfig:
    """Builds a `RunConfig` from nested plain values such as `to_dict` gives; keys left out keep their defaults.

    Raises:
        ConfigError: For an unknown key, a value of the wrong type, or a value that `config.py` refuses.
    """
    return cast(RunConfig, _build(RunConfig, values, ""))


def to_dict(config: RunConfig) -> dict[str, Any]:
    """Returns all settings as nested plain values that JSON can hold; tuples become lists."""
    return cast(dict[str, Any], _plain(config))


def to_yaml(config: RunConfig) -> str:
    """Returns all settings as YAML that `load_config` reads back to an equal config."""
    return OmegaConf.to_yaml(OmegaConf.create(_escaped(to_dict(config))))


def flatten(config: RunConfig) -> dict[str, object]:
    """Returns the value of every setting by dotted key, in the order of the schema."""
    return {key: _lookup(config, key) for key in settings()}


def describe(config: RunConfig, sources: Mapping[str, str]) -> list[SettingRow]:
    """Returns one row per setting: its value, where it came from, and what it means."""
    values = flatten(config)
    return [SettingRow(key, values[key], sources[key], setting.sentence) for key, setting in settings().items()]


def difference(config_a: RunConfig, config_b: RunConfig) -> list[str]:
    """Returns the dotted keys whose values differ between two configs, in the order of the schema."""
    values_a, values_b = flatten(config_a), flatten(config_b)
    return [key for key in settings() if values_a[key] != values_b[key]]


def _file_entries(path: Path) -> Iterator[_Entry]:
    try:
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError:
        near = difflib.get_close_matches(path.name, [other.name for other in path.parent.glob("*.yaml")], n=1)
        advice = f"; did you mean {path.with_name(near[0])}?" if near else ""
        raise SourceError(str(path), "", f"no such file{advice}") from None
    except OSError as error:
        raise SourceError(str(path), "", f"cannot be read: {error.strerror}") from None
    except UnicodeDecodeError:
        raise SourceError(str(path), "", "is not a text file in UTF-8") from None
    try:
        loader = _Loader(text)
        node = loader.get_single_node()
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        raise SourceError(f"{path}:{mark.line + 1}" if mark else str(path), "", _not_yaml(error)) from None
    if node is None:
        return
    if not isinstance(node, yaml.MappingNode):
        raise SourceError(f"{path}:1", "", "expected settings as key: value")
    for key, line, value in _walk(f"{path}:", loader, node, ""):
        place = f"{path}:{line}"
        yield _Entry(key, _checked(place, key, value), place, place)


def _override_entries(override: str) -> Iterator[_Entry]:
    place = f"override {override!r}"
    key, equals, text = override.partition("=")
    key = key.strip()
    if not equals:
        raise SourceError(place, "", "expected key=value, as in sac.tau=0.01")
    if key in groups():
        raise SourceError(place, key, not_a_value(key))
    if key not in settings():
        raise SourceError(place, key, unknown(key))
    try:
        value = _as_typed(text.strip()) if takes_text(key) else _Loader(text).get_single_data()
    except yaml.YAMLError as error:
        raise SourceError(place, key, _not_yaml(error)) from None
    yield _Entry(key, _checked(place, key, value), place, OVERRIDE)


def _as_typed(text: str) -> str | None:
    """Reads the value of a text setting as it stands, so that `name=2024` and `name=on` need no quotes."""
    if text in ("", "null", "~"):
        return None
    return text[1:-1] if len(text) > 1 and text[0] == text[-1] and text[0] in "'\"" else text


def _walk(place: str, loader: _Loader, node: yaml.MappingNode, prefix: str) -> Iterator[tuple[str, int, object]]:
    """Yields (dotted key, line, value) of each setting in a YAML mapping of the file `place`."""
    first_lines: dict[str, int] = {}
    for name, value in node.value:
        line = name.start_mark.line + 1
        here = f"{place}{line}"
        if not isinstance(name, yaml.ScalarNode):
            raise SourceError(here, "", "expected the name of a setting before the colon")
        key = prefix + name.value
        if key in first_lines:
            raise SourceError(here, key, f"is given twice, first in line {first_lines[key]}; remove one")
        first_lines[key] = line
        if key in groups():
            if isinstance(value, yaml.MappingNode):
                yield from _walk(place, loader, value, f"{key}.")
            elif value.tag != _NULL:  # a group with all its lines commented out sets nothing
                raise SourceError(here, key, not_a_value(key))
        elif key not in settings() or "." in name.value:
            raise SourceError(here, key, unknown(key))
        else:
            try:
                yield key, line, loader.construct_object(value, deep=True)
            except yaml.YAMLError as error:
                raise SourceError(here, key, _not_yaml(error)) from None


def _checked(place: str, key: str, value: object) -> object:
    """Returns the value in the type of its setting; a reference to another setting is left to be resolved."""
    if value == "???":  # OmegaConf's mark for a missing value, which merging would pass over
        raise SourceError(place, key, "is left open with ???; give it a value")
    if isinstance(value, str) and "${" in value:
        return value
    try:
        return converted(key, value)
    except ConfigError as error:
        raise SourceError(place, key, error.problem) from None


def _merged(entries: Iterable[_Entry]) -> dict[str, object]:
    """Lays the given values over the defaults and resolves references between settings."""
    nested: dict[str, Any] = {}
    for entry in entries:
        group, _, name = entry.key.rpartition(".")
        (nested.setdefault(group, {}) if group else nested)[name] = entry.value
    try:
        merged = OmegaConf.merge(OmegaConf.create(to_dict(RunConfig())), OmegaConf.create(nested))
        return cast(dict[str, object], OmegaConf.to_container(merged, resolve=True, throw_on_missing=True))
    except OmegaConfBaseException as error:
        raise ConfigError(str(error.full_key or ""), str(error.msg or error).splitlines()[0]) from None


def _build(section: type, values: object, prefix: str) -> object:
    if not isinstance(values, Mapping):
        raise ConfigError(prefix.rstrip("."), f"expected a mapping of settings, got {shown(values)}")
    hints = get_type_hints(section)
    arguments = {}
    for name, value in values.items():
        key = f"{prefix}{name}"
        if name not in hints:
            raise ConfigError(key, unknown(key))
        arguments[name] = _build(hints[name], value, f"{key}.") if key in groups() else converted(key, value)
    return section(**arguments)


def _not_yaml(error: yaml.YAMLError) -> str:
    return f"is not YAML: {getattr(error, 'problem', None) or str(error).splitlines()[0]}"


def _lookup(config: object, key: str) -> object:
    for name in key.split("."):
        config = getattr(config, name)
    return config


def _plain(value: Any) -> Any:
    if is_dataclass(value):
        return {field.name: _plain(getattr(value, field.name)) for field in fields(value)}
    return [_plain(element) for element in value] if isinstance(value, tuple) else value


def _escaped(value: Any) -> Any:
    """Marks `${` in texts as meant literally; references are resolved by the time a config exists."""
    if isinstance(value, dict):
        return {key: _escaped(inner) for key, inner in value.items()}
    if isinstance(value, list):
        return [_escaped(inner) for inner in value]
    return value.replace("${", r"\${") if isinstance(value, str) else value

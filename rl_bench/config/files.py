"""Merges YAML files, flags and defaults into one configuration, and writes it down.

Precedence: defaults < YAML < flags. Every value is checked for its name, type and range here,
with the place it came from in the message.
"""

from __future__ import annotations

import dataclasses
import difflib
import types
import typing
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from rl_bench.config.schema import Config
from rl_bench.errors import ConfigError

# Second names for one setting, as older files and flags have them.
ALIASES = {
    "parallel.num_actors": "parallel.num_workers",
    "parallel.num_envs_per_actor": "parallel.num_envs_per_worker",
    "training.device": "hardware.device",
    "training.num_threads": "hardware.num_threads",
}
# What a user may write for "choose for me", where the type allows None.
AUTO_WORDS = ("auto", "none", "null", "")

SECTIONS: dict[str, type] = {
    f.name: typing.cast(type, f.default_factory) for f in dataclasses.fields(Config)
}


@dataclass(frozen=True)
class Layer:
    """Holds settings from one place: dotted names to raw values.

    `origins` says more exactly where some of them come from, as a flag or a file.
    """

    source: str
    values: Mapping[str, Any]
    origins: Mapping[str, str] = field(default_factory=dict)

    def origin(self, name: str) -> str:
        """Say where a setting of this layer comes from."""
        return self.origins.get(name, self.source)


def schema() -> dict[str, dataclasses.Field]:
    """Return every setting by its dotted name."""
    return {
        f"{section}.{f.name}": f
        for section, cls in SECTIONS.items()
        for f in dataclasses.fields(cls)
    }


def load_yaml(path: str | Path) -> Layer:
    """Read a configuration file. Raises: ConfigError (missing, not YAML, not sections)."""
    import yaml  # here, so that the command line can still say so where it is missing

    try:
        text = Path(path).read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"--config: cannot read '{path}': {error}") from error
    try:
        document = yaml.safe_load(text)
    except yaml.YAMLError as error:
        problem = " ".join(str(error).split())
        raise ConfigError(f"--config: '{path}' is not valid YAML: {problem}") from error
    return layer_from_sections(document or {}, source=str(path))


def layer_from_sections(document: Any, *, source: str) -> Layer:
    """Make a layer of nested sections: dotted names, aliases resolved. Raises: ConfigError."""
    if not isinstance(document, dict):
        raise ConfigError(f"{source}: expected sections such as 'env:' and 'training:'")
    values: dict[str, Any] = {}
    for section, settings in document.items():
        if section not in SECTIONS:
            raise ConfigError(f"{source}: unknown section '{section}'{_nearest(section, SECTIONS)}")
        if not isinstance(settings, dict):
            raise ConfigError(f"{source}: section '{section}' must hold settings, not {settings!r}")
        for key, value in settings.items():
            _insert(values, f"{section}.{key}", value, source)
    return Layer(source, values)


def layer_from_flags(settings: Iterable[tuple[str, str, Any]]) -> Layer:
    """Make a layer of the (flag, dotted name, raw value) of flags given. Raises: ConfigError."""
    values: dict[str, Any] = {}
    origins: dict[str, str] = {}
    for flag, name, value in settings:
        _insert(values, name, value, flag)
        origins[ALIASES.get(name, name)] = flag
    return Layer("flags", values, origins)


def _insert(values: dict[str, Any], name: str, raw: Any, source: str) -> None:
    known = schema()
    canonical = ALIASES.get(name, name)
    if canonical not in known:
        raise ConfigError(f"{source}: unknown setting '{name}'{_nearest(name, [*known, *ALIASES])}")
    value = coerce(canonical, raw, source)
    if canonical in values and values[canonical] != value:
        raise ConfigError(
            f"{source}: '{canonical}' is given twice with different values "
            f"({values[canonical]} and {value}); keep one"
        )
    values[canonical] = value


def _nearest(name: Any, candidates: Iterable[str]) -> str:
    """Suggest the closest known name, or list those of the section where none is close.

    Dotted names are compared by their keys, first within their section.
    """
    section, dot, key = str(name).rpartition(".")
    candidates = sorted(candidates)
    siblings = [c for c in candidates if c.startswith(f"{section}.")] if dot else candidates
    for group, cutoff in ((siblings, 0.6), (candidates, 0.8)):
        by_key = {c.rpartition(".")[2]: c for c in group}
        close = difflib.get_close_matches(key, by_key, n=1, cutoff=cutoff)
        if close:
            return f"; did you mean '{by_key[close[0]]}'?"
    return f"; known: {', '.join(siblings or candidates)}"


def build_config(*layers: Layer) -> Config:
    """Merge layers over the defaults, later ones winning. Raises: ConfigError."""
    merged: dict[str, dict[str, Any]] = {section: {} for section in SECTIONS}
    for layer in layers:
        for name, value in layer.values.items():
            section, key = name.split(".")
            merged[section][key] = value
    return Config(**{section: SECTIONS[section](**values) for section, values in merged.items()})


def coerce(name: str, raw: Any, source: str) -> Any:
    """Convert one raw value to its setting's type, and check that it is within its range.

    `1e-4` and `25_000_000` are numbers however YAML read them. Raises: ConfigError.
    """
    field = schema()[name]
    kind, optional = _type_of(name)
    where = f"{source}: {name}" if source != name else name
    if optional and (raw is None or str(raw).lower() in AUTO_WORDS):
        return None
    converted = {int: _to_int, float: _to_float, bool: _to_bool, str: _to_str}[kind](raw)
    if converted is None:
        expected = {int: "a whole number", float: "a number", bool: "true or false", str: "text"}
        raise ConfigError(f"{where}: expected {expected[kind]}, got {raw!r}")
    _check_range(where, converted, field.metadata)
    return converted


def _type_of(name: str) -> tuple[type, bool]:
    section, key = name.split(".")
    hint = typing.get_type_hints(SECTIONS[section])[key]
    if isinstance(hint, types.UnionType):
        kinds = [k for k in typing.get_args(hint) if k is not type(None)]
        return kinds[0], True
    return hint, False


def _to_int(raw: Any) -> int | None:
    value = _to_float(raw)
    return int(value) if value is not None and value == int(value) else None


def _to_float(raw: Any) -> float | None:
    if isinstance(raw, bool) or not isinstance(raw, (int, float, str)):
        return None
    try:
        value = float(raw)
    except (ValueError, OverflowError):
        return None
    return value if abs(value) < float("inf") else None


def _to_bool(raw: Any) -> bool | None:
    return {"true": True, "yes": True, "1": True, "false": False, "no": False, "0": False}.get(
        str(raw).lower()
    )


def _to_str(raw: Any) -> str | None:
    return raw if isinstance(raw, str) and raw else None


def _check_range(where: str, value: Any, limits: Mapping[str, Any]) -> None:
    choices = limits["choices"]
    if choices and value not in choices:
        raise ConfigError(f"{where}: '{value}' is not one of {', '.join(choices)}")
    if limits["minimum"] is not None and value < limits["minimum"]:
        raise ConfigError(f"{where}: {value} is too small; the least is {limits['minimum']}")
    if limits["above"] is not None and value <= limits["above"]:
        raise ConfigError(f"{where}: {value} is too small; it must be above {limits['above']}")
    if limits["maximum"] is not None and value > limits["maximum"]:
        raise ConfigError(f"{where}: {value} is too large; the most is {limits['maximum']}")


def to_yaml(config: Config, *, comment: str = "") -> str:
    """Return the configuration as YAML that `--config` accepts again."""
    import yaml

    lines = "".join(f"# {line}\n" for line in comment.splitlines())
    return lines + yaml.safe_dump(config.to_dict(), sort_keys=False, allow_unicode=True)

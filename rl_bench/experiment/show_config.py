"""Shows every setting as a run would have it, and where each comes from."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import yaml

from rl_bench.config.files import Layer, schema
from rl_bench.experiment.mode import Mode
from rl_bench.experiment.resolve import resolve
from rl_bench.experiment.session import default_layers, open_session

CHOSEN = "auto, chosen here"


def show_config(mode: Mode, asked: Layer, resume: str | None, *, as_json: bool) -> Iterator[str]:
    """Yield lines: YAML that `--config` takes back, each setting with its origin, or JSON.

    Raises: ConfigError, CheckpointError as the run would.
    """
    session = open_session(mode, asked, resume, None, overwrite=False)
    resolved = resolve(session.config, mode).written.to_dict()
    before = session.config.to_dict()
    layers = [asked] if session.found else [*default_layers(mode, asked), asked]
    base = f"checkpoint '{session.found.path}'" if session.found else "default"
    entries: dict[str, tuple[Any, str]] = {}
    for name in schema():
        section, key = name.split(".")
        value = resolved[section][key]
        origin = next((one.origin(name) for one in reversed(layers) if name in one.values), base)
        chosen = before[section][key] != value
        entries[name] = value, CHOSEN if chosen else origin
    if as_json:
        yield json.dumps({n: {"value": v, "origin": o} for n, (v, o) in entries.items()}, indent=2)
        return
    yield f"# {mode.title}: every setting, and where it comes from."
    section = ""
    for name, (value, origin) in entries.items():
        if not name.startswith(f"{section}.") or not section:
            section = name.split(".")[0]
            yield f"{section}:"
        written = yaml.safe_dump(value).splitlines()[0] if value is not None else "auto"
        yield f"  {name.split('.')[1] + ':':28s} {written:24s}  # {origin}"

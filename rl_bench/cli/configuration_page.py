"""Writes docs/configuration.md from the schema: `python -m rl_bench.cli.configuration_page`."""

from __future__ import annotations

import sys
import typing
from collections.abc import Iterator
from dataclasses import Field
from typing import Any

from rl_bench.agents import ALGORITHMS, scripted_modes
from rl_bench.cli.training import flags_of
from rl_bench.config.files import ALIASES, SECTIONS, schema
from rl_bench.envs import defaults_for
from rl_bench.experiment.mode import Mode

INTRODUCTION = """\
# Configuration

<!-- Made by `python -m rl_bench.cli.configuration_page`; a test holds it current. -->

Every setting of a training run has a dotted name, as `training.gamma`. Give it

- in a YAML file: `--config FILE`, with sections as below (`config/` has examples),
- as a flag of its own, where the table names one,
- or as `--set training.gamma=0.99`, which works for all of them and may be given often.

Defaults are weakest, then come the algorithm's and the environment's own defaults, then the YAML
file, then flags. `auto` lets the run choose; YAML and `--set` take `auto` and `none` where the
default is `auto` or `none`.

**See what a run would use, and where each value comes from:**

```bash
python train_ppo_parallel.py --env CartPole-v1 --set training.gamma=0.98 --print-config
```

The output is YAML that `--config` takes back; `--json` gives the same as JSON. A finished run has
its own in `config.yaml`. A wrong name, type or value ends with one line that names the nearest
setting or the range.
"""


def page() -> Iterator[str]:
    """Yield the lines of the page."""
    yield from INTRODUCTION.splitlines()
    yield from departures()
    settings = schema()
    flags = flags_by_setting()
    for section, cls in SECTIONS.items():
        yield from ("", f"## {section}", "")
        if not (cls.__doc__ or "").startswith(f"{cls.__name__}("):  # what dataclasses write
            yield from (*(cls.__doc__ or "").splitlines(), "")
        yield from ("| setting | type | default | flag | meaning |", "|---|---|---|---|---|")
        hints = typing.get_type_hints(cls)
        for name, field in settings.items():
            of, key = name.split(".")
            if of == section:
                yield row(key, field, hints[key], flags.get(name, []))
    yield from ("", "## Second names", "", "| also written | is |", "|---|---|")
    yield from (f"| `{alias}` | `{name}` |" for alias, name in ALIASES.items())


def departures() -> Iterator[str]:
    """Tell the defaults of algorithms and environments where they differ from the schema's."""
    yield from ("", "## Defaults that depend on the algorithm or the environment", "")
    yield from ("| for | setting | default |", "|---|---|---|")
    own = [(algorithm.title, algorithm.defaults) for algorithm in ALGORITHMS.values()]
    own.append(("Gymnasium environments", defaults_for("CartPole-v1")))
    for title, defaults in own:
        for name, value in defaults.items():
            yield f"| {title} | `{name}` | {value:g} |"


def flags_by_setting() -> dict[str, list[str]]:
    """Find the flags of each setting over all training scripts."""
    flags: dict[str, list[str]] = {}
    for algorithm, rollouts in scripted_modes():
        for stop in ("timesteps", "wall_clock"):
            for flag in flags_of(Mode(algorithm, rollouts, stop)):
                names = flags.setdefault(flag.setting, [])
                if flag.flag not in names:
                    names.append(flag.flag)
    return flags


def row(key: str, field: Field, hint: Any, flags: list[str]) -> str:
    """Describe one setting in a row of the table."""
    limits = field.metadata
    kinds = [kind for kind in typing.get_args(hint) or (hint,) if kind is not type(None)]
    kind = kinds[0].__name__
    if limits["choices"]:
        kind = ", ".join(limits["choices"])
    bounds = [
        f"≥ {limits['minimum']}" if limits["minimum"] is not None else "",
        f"> {limits['above']:g}" if limits["above"] is not None else "",
        f"≤ {limits['maximum']}" if limits["maximum"] is not None else "",
    ]
    bounds = [bound for bound in bounds if bound]
    kind += f" ({', '.join(bounds)})" if bounds else ""
    default = "auto or none" if field.default is None else field.default
    default = str(default).lower() if isinstance(default, bool) else default
    named = ", ".join(f"`{flag}`" for flag in flags)
    return f"| `{key}` | {kind} | {default} | {named} | {limits['help']} |"


if __name__ == "__main__":
    sys.stdout.write("\n".join(page()) + "\n")

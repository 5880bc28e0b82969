"""Holds what the user asked for, as the command line understood it."""

from __future__ import annotations

import time
from dataclasses import dataclass, field
from pathlib import Path

from rl_bench.config.files import Layer
from rl_bench.experiment.mode import Mode


@dataclass
class Request:
    """Asks for one run; `started` is when, on the clock of `time.perf_counter`."""

    mode: Mode
    settings: Layer
    resume: str | None = None
    init_from: Path | None = None
    overwrite: bool = False
    command: str = ""
    started: float = field(default_factory=time.perf_counter)

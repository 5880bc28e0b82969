"""Output streams whose reader may be gone: `… | head`, a closed terminal, Ctrl+C on a pipeline."""

from __future__ import annotations

import os
import sys
from typing import TextIO


def say(text: str) -> None:
    """A line on standard error, if anybody still reads it."""
    try:
        print(text, file=sys.stderr, flush=True)
    except (OSError, AttributeError):  # AttributeError: Python started without the stream
        discard(sys.stderr)


def discard(stream: TextIO | None) -> None:
    """Point a broken stream at nothing; Python would fail over what is buffered at exit."""
    try:
        null = os.open(os.devnull, os.O_WRONLY)
        if stream is not None:
            os.dup2(null, stream.fileno())
        os.close(null)
    except (OSError, ValueError):
        pass  # not a real file: nothing is buffered below it

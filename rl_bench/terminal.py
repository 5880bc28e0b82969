"""Writes lines and progress bars for a person to any stream: a terminal or a pipe.

The reader may be gone (`… | head`, a closed terminal, Ctrl+C on a pipeline), and the stream may
not know every character.
"""

from __future__ import annotations

import contextlib
import os
import sys
from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, Any, TextIO

if TYPE_CHECKING:
    from tqdm import tqdm


def say(text: str) -> None:
    """Print `text` as a line on standard error, if anybody still reads it."""
    try:
        print(text, file=sys.stderr, flush=True)
    except (OSError, AttributeError):  # AttributeError: Python started without the stream
        discard(sys.stderr)


def discard(stream: TextIO | None) -> None:
    """Point a broken stream at /dev/null: at exit Python would fail to flush its buffer."""
    try:
        null = os.open(os.devnull, os.O_WRONLY)
        if stream is not None:
            os.dup2(null, stream.fileno())
        os.close(null)
    except (OSError, ValueError):
        pass  # not a real file: nothing is buffered below it


class Output:
    """Writes to standard output, or `stream`; replaces characters that it cannot encode.

    `bar` is the progress bar that lines go above, while there is one.
    """

    def __init__(self, stream: TextIO | None = None) -> None:
        self.stream = stream or sys.stdout or open(os.devnull, "w")  # noqa: SIM115 - for the run
        self.bar: tqdm | None = None
        self._reader_is_gone = False

    def line(self, text: str = "") -> None:
        """Show a line; once the reader is gone, do nothing."""
        if self._reader_is_gone:
            return
        text = _encodable(text, getattr(self.stream, "encoding", None) or "utf-8")
        try:
            if self.bar is not None:
                self.bar.write(text, file=self.stream)
            else:
                print(text, file=self.stream, flush=True)
        except OSError:
            self._reader_is_gone = True
            self.bar = None
            discard(self.stream)

    def block(self, title: str, lines: Sequence[str], *, width: int) -> None:
        """Show a title and lines between rules of `width` characters."""
        rule = "=" * width
        for text in [rule, title, rule, *lines, rule]:
            self.line(text)

    def open_bar(self, **how: Any) -> None:
        """Open a tqdm bar, where there is a terminal to draw on."""
        if self.stream.isatty():
            from tqdm import tqdm  # here: a signal's answer imports this module first of all

            self.bar = tqdm(file=self.stream, dynamic_ncols=True, **how)

    def advance_to(self, count: int) -> None:
        if self.bar is not None:
            self.bar.update(count - self.bar.n)

    def close_bar(self) -> None:
        if self.bar is not None:
            self.bar.close()
            self.bar = None

    @contextlib.contextmanager
    def progress(self, total: int, what: str) -> Iterator[Callable[[], None]]:
        """Show a bar over `total` things or, through a pipe, a line for each quarter of them.

        Yields a function to call after each thing.
        """
        self.open_bar(total=total, desc=what)
        done = 0

        def tick() -> None:
            nonlocal done
            done += 1
            self.advance_to(done)
            if self.bar is None and 4 * done // total > 4 * (done - 1) // total:
                self.line(f"{what}: {done}/{total}")

        try:
            yield tick
        finally:
            self.close_bar()


def _encodable(text: str, encoding: str) -> str:
    try:
        text.encode(encoding)
    except UnicodeEncodeError:
        for character, plain in (("±", "+/-"), ("×", "x"), ("−", "-"), ("→", "->")):
            text = text.replace(character, plain)
    return text.encode(encoding, errors="replace").decode(encoding)

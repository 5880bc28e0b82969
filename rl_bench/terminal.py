"""Lines and progress bars for a person, whatever the stream: a terminal, a pipe, no reader at all.

Nobody may read any more (`… | head`, a closed terminal, Ctrl+C on a pipeline), and a stream may
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


class Output:
    """Standard output. Characters that the stream cannot encode are replaced.

    `bar` is the progress bar that lines go above, while there is one.
    """

    def __init__(self, stream: TextIO | None = None) -> None:
        self.stream = stream or sys.stdout or open(os.devnull, "w")  # noqa: SIM115 - for the run
        self.bar: tqdm | None = None
        self._reader_is_gone = False

    def line(self, text: str = "") -> None:
        """Show a line. Once nobody reads any more, say nothing."""
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
        """A title and lines between rules."""
        rule = "=" * width
        for text in [rule, title, rule, *lines, rule]:
            self.line(text)

    def open_bar(self, **how: Any) -> None:
        """A tqdm bar, where there is a terminal to draw on."""
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
        """A bar over `total` things, a line for each quarter through a pipe.

        Gives what to call after each thing.
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

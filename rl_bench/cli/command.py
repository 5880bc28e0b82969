"""Provides what all commands share: the parser, signals, the one line that answers a failure."""

from __future__ import annotations

import argparse
import difflib
import gc
import logging
import signal
import sys
import threading
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NoReturn

from rl_bench.errors import ConfigError, RlBenchError
from rl_bench.interrupts import Interrupted, SignalGuard
from rl_bench.terminal import say

logger = logging.getLogger("rl_bench")


class OneLineParser(argparse.ArgumentParser):
    """Answers a mistake with one line and the nearest flag."""

    def __init__(self, description: str) -> None:
        super().__init__(
            prog=f"python {Path(sys.argv[0]).name}", description=description, allow_abbrev=False
        )

    def error(self, message: str) -> NoReturn:
        raise ConfigError(f"{message}; {self.prog} --help lists the flags")

    def add_config(self) -> None:
        """Add `--config FILE`: a YAML file of flags, without their dashes; flags given win."""
        self.add_argument("--config", metavar="FILE", help="YAML file with any of these flags")

    def parse_strictly(self, argv: Sequence[str]) -> argparse.Namespace:
        """Parse all of `argv`. Raises: ConfigError, with the nearest flag for an unknown one."""
        arguments, unknown = self.parse_known_args(argv)
        if unknown:
            self.error(f"unknown argument '{unknown[0]}'{self._nearest(unknown[0])}")
        return arguments

    def parse_with_config(self, argv: Sequence[str]) -> argparse.Namespace:
        """Parse like `parse_strictly`, with the flags of a `--config` file before `argv`."""
        config = self.parse_strictly(argv).config
        return self.parse_strictly([*self._flags_in(Path(config)), *argv] if config else argv)

    def _flags_in(self, path: Path) -> list[str]:
        import yaml

        try:
            document = yaml.safe_load(path.read_text(encoding="utf-8"))
        except OSError as error:
            raise ConfigError(f"cannot read '{path}': {error.strerror}") from error
        except (yaml.YAMLError, UnicodeDecodeError) as error:
            raise ConfigError(f"'{path}' is not YAML: {error}") from error
        if not isinstance(document, dict):
            raise ConfigError(f"'{path}' must hold flags and their values")
        words: list[str] = []
        for name, value in document.items():
            words += self._flag(path, str(name), value)
        return words

    def _flag(self, path: Path, name: str, value: Any) -> list[str]:
        flag = f"--{name.replace('_', '-')}"
        found = [action for action in self._actions if flag in action.option_strings]
        if not found or flag in ("--help", "--config"):
            raise ConfigError(f"'{path}': unknown setting '{name}'{self._nearest(flag)}")
        if isinstance(value, bool) and found[0].nargs == 0:
            return [flag] if value else []
        values = [str(v) for v in (value if isinstance(value, list) else [value])]
        if found[0].nargs is None:  # one value for each flag, which may come often
            return [word for v in values for word in (flag, v)]
        return [flag, *values]

    def _nearest(self, flag: str) -> str:
        known = [option for action in self._actions for option in action.option_strings]
        close = difflib.get_close_matches(flag, known, n=1)
        return f"; did you mean {close[0]}?" if close else ""


def run_command(
    body: Callable[[SignalGuard, list[str]], int], argv: Sequence[str] | None = None
) -> int:
    """Run `body(guard, argv)`; return the exit code.

    0 success; 2 a user's mistake, with one line on stderr; 130 after Ctrl+C; 143 after SIGTERM;
    1 any other failure, with one line on stderr.
    """
    guard = SignalGuard()
    guard.install()
    _log_to_stderr()
    try:
        require_python()
        return body(guard, list(sys.argv[1:] if argv is None else argv))
    except Interrupted as interrupted:
        say(f"{interrupted}: stopped")
        return interrupted.exit_code
    except Exception as error:  # noqa: BLE001 - raised again unless it is understood
        return _answer(error, guard)
    finally:
        if argv is None:  # the process ends
            gc.freeze()  # looking for garbage in all of torch would take 0.7 s
            guard.uninstall()


def _answer(error: Exception, guard: SignalGuard) -> int:
    """Print one line for the user and return the exit code; raise again what is a bug."""
    if guard.raised:
        say(f"{Interrupted(guard.received or signal.SIGINT)}: stopped")
        return guard.exit_code
    if isinstance(error, RlBenchError):
        say(f"error: {' '.join(str(error).split())}")
        return error.exit_code
    if isinstance(error, ModuleNotFoundError):
        say(f"error: the package '{error.name}' is missing; `make install` sets up .venv with it")
        return 1
    if isinstance(error, OSError):
        say(f"error: {error}")
        return 1
    raise error


def require_python() -> None:
    """Refuse Pythons other than 3.10 to 3.12. Raises: ConfigError."""
    if not (3, 10) <= sys.version_info[:2] <= (3, 12):
        version = ".".join(map(str, sys.version_info[:3]))
        raise ConfigError(f"Python 3.10, 3.11 or 3.12 is needed, this is {version}")


def _log_to_stderr() -> None:
    # A full disk must not turn the run's log, or TensorBoard's writer thread, into noise: what
    # matters of it is raised in the main thread.
    logging.raiseExceptions = False
    threading.excepthook = lambda problem: logger.debug("in a thread: %s", problem.exc_value)
    logger.setLevel(logging.DEBUG)
    handler = logging.StreamHandler()
    handler.setLevel(logging.WARNING)
    handler.setFormatter(logging.Formatter("%(levelname)s: %(message)s"))
    logger.addHandler(handler)

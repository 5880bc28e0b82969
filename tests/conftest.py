"""What tests share: small networks, small runs, and the entry scripts as subprocesses."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

ROOT = Path(__file__).resolve().parents[1]
# A run of a second or two: four environments, small rollouts, a row for each update.
SMALL = (
    "--num-envs", "4", "--n-steps", "16", "--batch-size", "32", "--n-epochs", "2",
    "--log-interval", "1", "--num-threads", "1",
)  # fmt: skip


def run_python(program: str, *args: str, **variables: str) -> subprocess.CompletedProcess:
    """A program of a few lines in an interpreter of its own."""
    return subprocess.run(
        [sys.executable, "-c", program, *args], cwd=ROOT, env={**os.environ, **variables},
        capture_output=True, text=True, timeout=100,
    )  # fmt: skip


@pytest.fixture(autouse=True)
def _one_thread():
    torch.set_num_threads(1)


class Script:
    """Runs an entry script in a directory of its own, with a time limit."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.env = dict(os.environ, PYTHONPATH=str(ROOT))
        self.env.pop("PYTHONUNBUFFERED", None)  # as users have it
        self.started: list[subprocess.Popen] = []

    def command(self, script: str, *args: str) -> list[str]:
        return [sys.executable, str(ROOT / script), *map(str, args)]

    def __call__(self, script: str, *args: str, timeout: float = 90) -> subprocess.CompletedProcess:
        return subprocess.run(
            self.command(script, *args),
            cwd=self.directory,
            env=self.env,
            capture_output=True,
            text=True,
            timeout=timeout,
            stdin=subprocess.DEVNULL,
        )

    def start(self, script: str, *args: str) -> subprocess.Popen:
        process = subprocess.Popen(
            self.command(script, *args),
            cwd=self.directory,
            env=self.env,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            stdin=subprocess.DEVNULL,
            # pytest may ignore SIGINT when it runs in the background; the child must not.
            preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),
        )
        self.started.append(process)
        return process

    def end_all(self) -> None:
        """A failed test must not leave a run behind."""
        for process in self.started:
            if process.poll() is None:
                process.kill()
                process.wait(timeout=10)


@pytest.fixture
def script(tmp_path: Path) -> Iterator[Script]:
    script = Script(tmp_path)
    yield script
    script.end_all()


def read_json(path: Path) -> Any:
    def refuse(constant: str) -> None:
        raise AssertionError(f"{path} holds {constant}, which is not JSON")

    return json.loads(path.read_text(), parse_constant=refuse)


def read_lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]

"""What test workers do. In a module of its own, because workers import it by name."""

import os
import signal
import sys
import time


class Sums:
    """Adds numbers, or misbehaves as it was told when it was made."""

    def __init__(self, misbehave=None):
        self.misbehave = misbehave

    def __call__(self, show_life):
        if self.misbehave == "raise":
            raise ValueError("no service today")
        if self.misbehave == "exit":
            os._exit(3)
        if self.misbehave == "sleep":
            time.sleep(60)
        return {
            "add": lambda a, b: a + b,
            "pid": os.getpid,
            "threads": lambda: len(os.listdir("/proc/self/task")),
            "omp": lambda: os.environ.get("OMP_NUM_THREADS"),
            "preloaded": lambda: "torch" in sys.modules,
            "assets": lambda: len(sys.modules["rl_bench.envs.procgen_assets"]._kept),
            "blocked": lambda: sorted(signal.pthread_sigmask(signal.SIG_BLOCK, [])),
            "raise": self.fail,
            "exit": os._exit,
            "sleep": self.sleep,
            "big": lambda: bytes(8_000_000),
            "work": lambda steps: [(time.sleep(0.1), show_life()) for _ in range(steps)] and "done",
            "close": lambda: None,
        }

    def sleep(self, seconds):
        time.sleep(seconds)

    def fail(self):
        raise KeyError("what was asked for")

"""What the scripts of peers share: memory over all processes of a run, and an end to waiting."""

from __future__ import annotations

import os
import sys
import threading
import time
from collections.abc import Callable

import psutil


class Watch(threading.Thread):
    """Samples memory once a second; past the limit, ends the run, as a lost process is waited for.

    `peak_bytes` is the peak sum of proportional set sizes, `family` all descendants ever seen.
    `clean_up` is called before the process is ended.
    """

    def __init__(self, limit: float, clean_up: Callable[[], None]) -> None:
        super().__init__(daemon=True)
        self.deadline, self.clean_up = time.monotonic() + limit, clean_up
        self.finished = threading.Event()
        self.peak_bytes, self.family = 0, set[psutil.Process]()

    def run(self) -> None:
        main_process = psutil.Process()
        while not self.finished.wait(1.0):
            descendants = main_process.children(recursive=True)
            self.family.update(descendants)
            used = sum(map(proportional_set_size, [main_process, *descendants]))
            self.peak_bytes = max(self.peak_bytes, used)
            if time.monotonic() > self.deadline:
                print("it did not end in time", file=sys.stderr, flush=True)
                self.clean_up()
                os._exit(1)

    def stop(self) -> None:
        self.finished.set()
        self.join()


def proportional_set_size(process: psutil.Process) -> int:
    try:
        return process.memory_full_info().pss
    except psutil.Error:  # it has just ended
        return 0

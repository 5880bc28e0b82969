"""Imported last by the process that workers are forked from, to make it fit to be forked."""

import gc
import threading

LIMIT_SECONDS = 60.0

# Forking must meet no other thread; `envs/procgen_assets.py` has begun one.
for thread in threading.enumerate():
    if thread is not threading.current_thread():
        thread.join(LIMIT_SECONDS)

# What was imported is there for good: going through it, the collector of each worker would write to
# the memory that they share, which makes a copy of it.
gc.freeze()

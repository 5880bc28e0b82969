"""Makes the process that workers are forked from fit for forking: it imports this module last."""

import gc
import threading

# Forking must meet no other thread; `envs/procgen_assets.py` has begun one. Whoever starts a worker
# waits no longer than `parallel.start_limit_seconds` for it.
for thread in threading.enumerate():
    if thread is not threading.current_thread() and not thread.daemon:
        thread.join()

# What was imported is there for good: going through it, the collector of each worker would write to
# the memory that they share, which makes a copy of it.
gc.freeze()

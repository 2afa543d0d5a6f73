"""Eight CPU devices and a compilation cache shared by all tests (and by the processes that tests start)."""

import os
from pathlib import Path

CACHE = Path(__file__).parents[1] / ".cache"
os.environ.setdefault("QUINTET_CACHE", str(CACHE))
os.environ.setdefault("JAX_PLATFORMS", "cpu")
os.environ["QUINTET_QUICK_COMPILE"] = "1"

from training import runtime  # noqa: E402

runtime.setup(ynn=False, keep_memory=False)  # many programs in one process

import jax  # noqa: E402

jax.config.update("jax_num_cpu_devices", 8)
# One program at a time: with a thread a device, two that overlap can hold all threads and wait for each other's collectives.
jax.config.update("jax_cpu_enable_async_dispatch", False)

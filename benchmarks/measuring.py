"""How long a call takes, and how much memory it needs at its peak."""

import ctypes
import gc
import os
import re
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median
from typing import Any

# What is freed stays with the process: page faults would otherwise be most of what is measured, of formulas that
# make many intermediate results above all. The nox sessions set these.
KEPT_MEMORY = ("MALLOC_MMAP_THRESHOLD_", "MALLOC_TRIM_THRESHOLD_")
PROCESS = Path("/proc/self")
_LONG = 10.0  # seconds


def require_kept_memory() -> None:
    """Refuse figures from a process whose allocator gives memory back."""
    if missing := [name for name in KEPT_MEMORY if name not in os.environ]:
        raise SystemExit(f"{' and '.join(missing)} are not set: run this by nox, or with --quick.")


def use_cores(count: int) -> None:
    """Keep this process, and the threads that it will start, on so many cores, where the system can do that (Linux).

    Limits that libraries offer do not hold for all of their threads. Call it before importing them.
    """
    if hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[:count])


def seconds(function: Callable[[], Any], repetitions: int, finished: Callable[[Any], object] = lambda _: None) -> float:
    """Median time of one call until its result is ``finished``.

    The first five are left out: they compile, and they get memory from the system that later ones find. What takes
    seconds is repeated less often.
    """
    times: list[float] = []
    while len(times) < repetitions + 5 and (sum(times) < _LONG or len(times) < 2):
        start = time.perf_counter()
        finished(function())
        times.append(time.perf_counter() - start)
    return median(times[5:] or times[1:])


def peak_bytes(function: Callable[[], Any], finished: Callable[[Any], object] = lambda _: None) -> int | None:
    """How far the resident memory of this process rises during a call; None where the system does not say (not Linux).

    The result counts, what was there before does not.
    """
    finished(function())  # compiles, perhaps
    try:
        gc.collect()
        time.sleep(0.5)  # what it returned may be freed by another thread
        ctypes.CDLL("libc.so.6").malloc_trim(0)
        before = _status("VmRSS")
        (PROCESS / "clear_refs").write_text("5")  # sets the peak to what is resident now
    except (OSError, AttributeError):
        return None
    finished(function())
    return max(_status("VmHWM") - before, 0)


def resident_bytes() -> int:
    """The resident memory of this process; 0 where the system does not say (not Linux)."""
    try:
        return _status("VmRSS")
    except OSError:
        return 0


def _status(field: str) -> int:
    match = re.search(rf"^{field}:\s+(\d+) kB", (PROCESS / "status").read_text(), re.MULTILINE)
    if match is None:
        raise OSError(f"no {field} in {PROCESS / 'status'}")
    return int(match[1]) * 1024

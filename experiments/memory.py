"""Memory of a process, as experiments and benchmarks measure it, each in a process of its own."""

from pathlib import Path
from typing import Literal


def resident_megabytes(key: Literal["VmRSS", "VmHWM"]) -> float:
    """Returns the resident memory of this process as Linux gives it.

    Not `resource.getrusage`, whose peak a child takes over from its parent.

    Args:
        key: str. `"VmRSS"`, the present one, or `"VmHWM"`, the peak so far.
    """
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(key)) / 1024

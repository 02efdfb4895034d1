"""How much memory this process holds, and the most that it held since a moment of one's choice. Linux only.

The kernel keeps the highest resident size in `VmHWM` of `/proc/self/status`; writing 5 to `/proc/self/clear_refs` sets
it back to the present one (proc(5)).
"""

from __future__ import annotations

from pathlib import Path

_STATUS, _CLEAR_REFS = Path("/proc/self/status"), Path("/proc/self/clear_refs")


def forget_peak() -> bool:
    """Lets the peak begin at the present size; returns False where the system cannot do so."""
    try:
        _CLEAR_REFS.write_text("5")
    except OSError:
        return False
    return True


def resident_bytes() -> int:
    """Returns the memory that this process holds now."""
    return _status_bytes("VmRSS")


def peak_bytes() -> int:
    """Returns the most memory that this process held since `forget_peak`."""
    return _status_bytes("VmHWM")


def _status_bytes(name: str) -> int:
    lines = dict(line.split(":", 1) for line in _STATUS.read_text().splitlines())
    return 1024 * int(lines[name].removesuffix("kB"))

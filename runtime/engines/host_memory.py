"""How much memory this process can still have, and refusing what would take more."""

from __future__ import annotations

import os
import re
from pathlib import Path

from ...errors import ResourceError
from ..bundle.files import format_bytes

_CGROUP = Path("/sys/fs/cgroup")


def parse_meminfo(text: str) -> dict[str, int]:
    """Return the lines of /proc/meminfo in bytes."""
    found = re.findall(r"^(\w+):\s+(\d+) kB$", text, re.MULTILINE)
    return {name: int(size) << 10 for name, size in found}


def machine_memory() -> tuple[int | None, int | None]:
    """Return the bytes of memory of this machine, and those that can still be had; None is unknown."""
    try:
        memory = parse_meminfo(Path("/proc/meminfo").read_text(encoding="utf-8"))
    except OSError:
        memory = {}
    if not memory and "SC_PHYS_PAGES" in getattr(os, "sysconf_names", {}):
        memory = {"MemTotal": os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")}
    return memory.get("MemTotal"), memory.get("MemAvailable")


def available_memory() -> int | None:
    """Return the bytes that can still be allocated: the machine's, or the container's if less.

    None where the system does not say.
    """
    container = _container_memory(_CGROUP)
    _, free = machine_memory()
    known = [size for size in (free, container) if size is not None]
    return min(known, default=None)


def ensure_memory(size: int, what: str) -> None:
    """Refuse an allocation that this machine cannot hold, rather than be killed for it.

    Raises:
        ResourceError: names both sizes.
    """
    free = available_memory()
    if free is not None and size > free:
        raise ResourceError(
            f"{what} takes {format_bytes(size)}, and {format_bytes(free)} of memory are free",
            hint="close other programs, or export again with a smaller --capacity",
        )


def _container_memory(cgroup: Path) -> int | None:
    """Return what the limit of a container leaves (control groups 2 or 1), None without one."""
    v2 = ("memory.max", "memory.current", "memory.stat", "inactive_file")
    v1 = (
        "memory/memory.limit_in_bytes",
        "memory/memory.usage_in_bytes",
        "memory/memory.stat",
        "total_inactive_file",
    )
    for limit_file, used_file, stat_file, cached_key in (v2, v1):
        try:
            limit = (cgroup / limit_file).read_text().strip()
            used = int((cgroup / used_file).read_text())
            lines = (cgroup / stat_file).read_text().splitlines()
        except (OSError, ValueError):
            continue
        # Cached files count as used, but are given up as soon as memory is asked for.
        cached = next((int(x.split()[1]) for x in lines if x.split()[0] == cached_key), 0)
        if limit.isdigit():
            return max(int(limit) - used + cached, 0)
    return None

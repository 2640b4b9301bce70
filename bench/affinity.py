"""Which processors a rank runs on: neighbouring cores in equal parts, the same under every launcher."""

from __future__ import annotations

import os
from collections.abc import Iterable
from pathlib import Path

Place = tuple[int, int, int]
"""Package, core in it, processor: processors in this order are neighbours, hardware threads of a core side by side."""


def places() -> list[Place]:
    """The processors that this process may use. Empty where the system has no affinity."""
    if not hasattr(os, "sched_getaffinity"):
        return []
    return sorted((_read(cpu, "physical_package_id"), _read(cpu, "core_id"), cpu) for cpu in os.sched_getaffinity(0))


def cores(found: Iterable[Place]) -> int:
    """Physical cores among some processors: what torch takes for its number of threads."""
    return len({place[:2] for place in found})


def share(found: list[Place], part: int, parts: int) -> list[Place]:
    """The processors of one rank of several on this node: whole cores as long as there are enough of them."""
    order = list(dict.fromkeys(place[:2] for place in found))
    if parts > len(order):
        return [found[part % len(found)]]
    mine = set(order[part * len(order) // parts : (part + 1) * len(order) // parts])
    return [place for place in found if place[:2] in mine]


def pin(part: int, parts: int) -> None:
    """Keep this process, and the threads it will start, on its share of the node's processors."""
    found = places()
    if found:
        os.sched_setaffinity(0, [cpu for _, _, cpu in share(found, part, parts)])


def threads(parts: int) -> int:
    """Threads for each of `parts` ranks on this machine: the cores of the smallest share."""
    found = places()
    return max(1, cores(found) // parts) if found else max(1, (os.cpu_count() or 1) // parts)


def _read(cpu: int, name: str) -> int:
    try:
        return int(Path(f"/sys/devices/system/cpu/cpu{cpu}/topology/{name}").read_text())
    except (OSError, ValueError):
        return cpu if name == "core_id" else 0

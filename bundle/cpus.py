"""How many processors this process may use: a container's share, not the machine's."""

import os
from collections.abc import Iterator
from pathlib import Path

CGROUPS = Path("/sys/fs/cgroup")
MEMBERSHIP = Path("/proc/self/cgroup")


def available_cpus(cgroups: Path = CGROUPS, membership: Path = MEMBERSHIP) -> int:
    """Return whole processors: the least of the affinity mask and every control group's quota.

    A part of a processor is left out, for a thread that runs into its quota stops all others that
    wait for it; there is at least one.

    Args:
        cgroups: where control groups are mounted, version 1 or 2.
        membership: which of them this process is in.
    """
    quotas = [quota for folder in _folders(cgroups, membership) for quota in _quotas(folder)]
    return max(1, int(min([_affinity(), *quotas])))


def _affinity() -> int:
    # Not every system knows such a mask.
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def _folders(cgroups: Path, membership: Path) -> Iterator[Path]:
    """Yield the process's control groups and those around them, down from the innermost."""
    try:
        lines = membership.read_text().splitlines()
    except OSError:
        return
    for line in lines:
        _, _, place = line.partition(":")
        controllers, _, path = place.partition(":")
        if controllers and "cpu" not in controllers.split(","):
            continue
        root = cgroups / controllers if controllers else cgroups
        if not root.is_dir():
            # Version 1 names a group's controllers in another order than its folder, at times.
            root = cgroups / "cpu"
        inner = root / path.lstrip("/")
        yield from (f for f in (inner, *inner.parents) if f.is_relative_to(root))


def _quotas(folder: Path) -> Iterator[float]:
    """Yield the processors that one control group allows, nothing where it sets no limit."""
    try:
        quota, period = (folder / "cpu.max").read_text().split()
    except (OSError, ValueError):
        try:
            quota = (folder / "cpu.cfs_quota_us").read_text().strip()
            period = (folder / "cpu.cfs_period_us").read_text().strip()
        except OSError:
            return
    if quota.isdecimal() and int(period) > 0:
        yield int(quota) / int(period)

"""Where a process's resident memory lies."""

import re
from pathlib import Path


def memory_mib(pid: int) -> dict[str, float]:
    """Return a process's resident memory: its own, and of files (those are the page cache's)."""
    text = Path(f"/proc/{pid}/smaps_rollup").read_text()
    found = {name: int(kib) / 1024 for name, kib in re.findall(r"(\w+):\s+(\d+) kB", text)}
    return {
        "resident": found["Rss"],
        "own": found["Anonymous"],
        "of files": found["Rss"] - found["Anonymous"],
    }

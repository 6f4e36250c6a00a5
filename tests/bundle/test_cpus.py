"""A container's share of the processors, from made-up control groups."""

import os
from pathlib import Path

import pytest

from bundle import cpus
from bundle.cpus import available_cpus


@pytest.fixture(autouse=True)
def eight_processors(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: set(range(8)), raising=False)


def counted(root: Path, membership: str, **files: str) -> int:
    """Return the count under control groups whose files are named with __ between folders."""
    for name, text in files.items():
        path = root.joinpath("groups", *name.split("__"))
        path = path.with_name(path.name.replace("_cfs_", ".cfs_").replace("cpu_max", "cpu.max"))
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    (root / "cgroup").write_text(membership)
    return available_cpus(root / "groups", root / "cgroup")


@pytest.mark.parametrize(
    ("quota", "expected"),
    [
        ("max 100000\n", 8),
        ("200000 100000\n", 2),
        ("350000 100000\n", 3),
        ("50000 100000\n", 1),
        ("1600000 100000\n", 8),
        ("nonsense\n", 8),
        ("100000 0\n", 8),
    ],
)
def test_a_quota_of_version_2_bounds_the_processors(
    tmp_path: Path, quota: str, expected: int
) -> None:
    assert counted(tmp_path, "0::/\n", cpu_max=quota) == expected


def test_the_narrowest_of_nested_groups_counts(tmp_path: Path) -> None:
    files = {"outer__cpu_max": "300000 100000", "outer__inner__cpu_max": "max 100000"}
    assert counted(tmp_path, "0::/outer/inner\n", **files) == 3


def test_a_quota_of_version_1_bounds_the_processors(tmp_path: Path) -> None:
    membership = "4:memory:/job\n3:cpu,cpuacct:/job\n"
    files = {
        "cpu,cpuacct__job__cpu_cfs_quota_us": "400000\n",
        "cpu,cpuacct__job__cpu_cfs_period_us": "100000\n",
        "memory__job__cpu_cfs_quota_us": "100000\n",
        "memory__job__cpu_cfs_period_us": "100000\n",
    }
    assert counted(tmp_path, membership, **files) == 4
    files["cpu,cpuacct__job__cpu_cfs_quota_us"] = "-1\n"
    assert counted(tmp_path, membership, **files) == 8


def test_a_group_of_version_1_is_found_however_its_controllers_are_ordered(tmp_path: Path) -> None:
    files = {"cpu__job__cpu_cfs_quota_us": "200000", "cpu__job__cpu_cfs_period_us": "100000"}
    assert counted(tmp_path, "3:cpuacct,cpu:/job\n", **files) == 2


def test_without_control_groups_the_affinity_counts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert available_cpus(tmp_path / "groups", tmp_path / "cgroup") == 8
    monkeypatch.delattr(os, "sched_getaffinity")
    monkeypatch.setattr(os, "cpu_count", lambda: 5)
    assert available_cpus(tmp_path / "groups", tmp_path / "cgroup") == 5
    monkeypatch.setattr(os, "cpu_count", lambda: None)
    assert available_cpus(tmp_path / "groups", tmp_path / "cgroup") == 1


def test_this_machine_has_at_least_one() -> None:
    assert 1 <= available_cpus() <= 8
    assert cpus.CGROUPS.is_absolute()

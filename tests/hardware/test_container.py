from pathlib import Path

import pytest

from residency.hardware.container import container_limits, parse_processor_list

V2_MOUNT = "30 23 0:26 / /sys/fs/cgroup rw,nosuid - cgroup2 cgroup2 rw"
V1_MEMORY_MOUNT = "35 31 0:32 / /sys/fs/cgroup/memory rw - cgroup cgroup rw,memory"
V1_CPU_MOUNT = "32 31 0:29 / /sys/fs/cgroup/cpu,cpuacct rw - cgroup cgroup rw,cpu,cpuacct"
NO_LIMIT_V1 = "9223372036854771712"


def tree(root: Path, *, groups: str, mounts: str, **files: str) -> Path:
    """A folder with /proc/self/cgroup, /proc/self/mountinfo and files below /sys/fs/cgroup ("a__b.max": a/b.max)."""
    (root / "proc" / "self").mkdir(parents=True)
    (root / "proc" / "self" / "cgroup").write_text(groups + "\n")
    (root / "proc" / "self" / "mountinfo").write_text(mounts + "\n")
    for name, text in files.items():
        path = root / "sys" / "fs" / "cgroup" / name.replace("__", "/")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text + "\n")
    return root


def v2(root: Path, group: str = "/app/job", **files: str) -> Path:
    return tree(root, groups=f"0::{group}", mounts=V2_MOUNT, **files)


def test_a_version_2_memory_limit_is_found_in_the_process_s_own_group(tmp_path: Path) -> None:
    assert container_limits(v2(tmp_path, **{"app__job__memory.max": "629145600"})).memory_bytes == 629145600


def test_the_tightest_of_nested_limits_holds(tmp_path: Path) -> None:
    files = {"app__job__memory.max": "max", "app__memory.max": "500", "memory.max": "900"}
    assert container_limits(v2(tmp_path, **files)).memory_bytes == 500


def test_max_limits_nothing(tmp_path: Path) -> None:
    limits = container_limits(v2(tmp_path, **{"app__job__memory.max": "max", "app__job__cpu.max": "max 100000"}))
    assert (limits.memory_bytes, limits.available_bytes, limits.processors) == (None, None, None)


def test_what_is_in_use_is_not_available_but_file_cache_is(tmp_path: Path) -> None:
    files = {
        "app__job__memory.max": "1000",
        "app__job__memory.current": "600",
        "app__job__memory.stat": "anon 300\ninactive_file 250\nfile 300",
    }
    assert container_limits(v2(tmp_path, **files)).available_bytes == 1000 - (600 - 250)


def test_a_quota_may_be_a_fraction_of_a_processor(tmp_path: Path) -> None:
    assert container_limits(v2(tmp_path, **{"app__job__cpu.max": "150000 100000"})).processors == 1.5


def test_a_version_2_processor_set_is_read_where_it_is_effective(tmp_path: Path) -> None:
    limits = container_limits(v2(tmp_path, **{"app__job__cpuset.cpus.effective": "0-1,4"}))
    assert limits.processor_set == frozenset((0, 1, 4))


def test_a_container_that_sees_only_its_own_group_finds_its_limit(tmp_path: Path) -> None:
    mounts = "30 23 0:26 /docker/abc /sys/fs/cgroup ro - cgroup2 cgroup rw"
    root = tree(tmp_path, groups="0::/docker/abc", mounts=mounts, **{"memory.max": "700"})
    assert container_limits(root).memory_bytes == 700


@pytest.mark.parametrize("group", ["/", "/../../somewhere", "/not/mounted/here"])
def test_a_group_that_the_mount_does_not_show_is_the_mount_point(tmp_path: Path, group: str) -> None:
    assert container_limits(v2(tmp_path, group, **{"memory.max": "700"})).memory_bytes == 700


def test_a_version_1_memory_limit_is_found(tmp_path: Path) -> None:
    root = tree(
        tmp_path, groups="4:memory:/job\n0::/", mounts=V1_MEMORY_MOUNT, **{"memory__job__memory.limit_in_bytes": "800"}
    )
    assert container_limits(root).memory_bytes == 800


def test_version_1_writes_no_limit_as_a_huge_number(tmp_path: Path) -> None:
    root = tree(tmp_path, groups="4:memory:/", mounts=V1_MEMORY_MOUNT, **{"memory__memory.limit_in_bytes": NO_LIMIT_V1})
    assert container_limits(root).memory_bytes is None


@pytest.mark.parametrize(("quota", "processors"), [("250000", 2.5), ("-1", None)])
def test_a_version_1_quota_is_read_where_controllers_share_a_mount(
    tmp_path: Path, quota: str, processors: float | None
) -> None:
    files = {"cpu,cpuacct__job__cpu.cfs_quota_us": quota, "cpu,cpuacct__job__cpu.cfs_period_us": "100000"}
    root = tree(tmp_path, groups="2:cpu,cpuacct:/job", mounts=V1_CPU_MOUNT, **files)
    assert container_limits(root).processors == processors


def test_a_mount_point_with_a_space_is_found(tmp_path: Path) -> None:
    mounts = r"30 23 0:26 / /sys/fs/cgroup/my\040groups rw - cgroup2 cgroup2 rw"
    root = tree(tmp_path, groups="0::/", mounts=mounts, **{"my groups__memory.max": "7"})
    assert container_limits(root).memory_bytes == 7


def test_without_control_groups_nothing_is_limited(tmp_path: Path) -> None:
    limits = container_limits(tmp_path)
    assert (limits.memory_bytes, limits.processors, limits.processor_set) == (None, None, None)


@pytest.mark.parametrize("text", ["", "garbage", "-5", "9" * 40, "1 2 3"])
def test_files_that_make_no_sense_limit_nothing(tmp_path: Path, text: str) -> None:
    limits = container_limits(v2(tmp_path, **{"memory.max": text, "cpu.max": text, "cpuset.cpus.effective": text}))
    assert (limits.memory_bytes, limits.processors, limits.processor_set) == (None, None, None)


def test_a_period_of_zero_limits_nothing(tmp_path: Path) -> None:
    assert container_limits(v2(tmp_path, **{"cpu.max": "5 0"})).processors is None


@pytest.mark.parametrize(("text", "processors"), [("0-2,5", {0, 1, 2, 5}), ("3", {3}), ("", None), ("a-b", None)])
def test_processor_lists_are_ranges_and_numbers(text: str, processors: set[int] | None) -> None:
    assert parse_processor_list(text) == processors

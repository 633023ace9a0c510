from pathlib import Path

from residency.hardware.host import Host, read_host

FIRST = "processor\t: 0\nmodel name\t: Paper 9000\nflags\t\t: fpu avx2 avx512f avx512_vnni\n"
CPUINFO = FIRST + "\nprocessor\t: 1\nflags\t: none\n"


def write(root: Path, name: str, text: str) -> None:
    path = root / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)


def host(root: Path, *, allowed: int = 4) -> Host:
    return read_host(root, allowed=frozenset(range(allowed)))


def test_the_first_processor_gives_the_name_and_the_instruction_sets(tmp_path: Path) -> None:
    write(tmp_path, "proc/cpuinfo", CPUINFO)
    found = host(tmp_path)
    assert (found.processor, found.instruction_sets) == ("Paper 9000", ("avx2", "avx512_vnni", "avx512f"))


def test_memory_is_the_host_s_without_a_container(tmp_path: Path) -> None:
    write(tmp_path, "proc/meminfo", "MemTotal:  2048 kB\nMemFree: 1 kB\nMemAvailable:  1024 kB\n")
    found = host(tmp_path)
    assert (found.memory_bytes, found.available_bytes) == (2048 * 1024, 1024 * 1024)


def contained(root: Path, **files: str) -> None:
    write(root, "proc/self/cgroup", "0::/\n")
    write(root, "proc/self/mountinfo", "30 23 0:26 / /sys/fs/cgroup rw - cgroup2 cgroup2 rw\n")
    for name, text in files.items():
        write(root, f"sys/fs/cgroup/{name}", text)


def test_memory_is_the_container_s_where_that_is_less(tmp_path: Path) -> None:
    write(tmp_path, "proc/meminfo", "MemTotal:  2048 kB\nMemAvailable:  1024 kB\n")
    contained(tmp_path, **{"memory.max": "1000000", "memory.current": "400000"})
    found = host(tmp_path)
    assert (found.memory_bytes, found.available_bytes) == (1_000_000, 600_000)


def test_a_quota_of_one_and_a_half_processors_allows_one_thread(tmp_path: Path) -> None:
    contained(tmp_path, **{"cpu.max": "150000 100000"})
    assert host(tmp_path).threads == 1


def test_a_quota_of_half_a_processor_still_allows_one_thread(tmp_path: Path) -> None:
    contained(tmp_path, **{"cpu.max": "50000 100000"})
    assert host(tmp_path).threads == 1


def test_a_processor_set_limits_threads(tmp_path: Path) -> None:
    contained(tmp_path, **{"cpuset.cpus.effective": "1-2"})
    assert host(tmp_path).threads == 2


def test_hardware_threads_of_one_core_count_as_one_core(tmp_path: Path) -> None:
    for number in range(4):
        siblings = "0,2" if number % 2 == 0 else "1,3"
        write(tmp_path, f"sys/devices/system/cpu/cpu{number}/topology/thread_siblings_list", siblings)
    found = host(tmp_path)
    assert (found.threads, found.cores) == (4, 2)


def test_caches_are_read_with_who_shares_them(tmp_path: Path) -> None:
    folder = "sys/devices/system/cpu/cpu0/cache"
    for index, (level, kind, size, shared) in enumerate([("1", "Data", "48K", "0"), ("3", "Unified", "32M", "0-3")]):
        write(tmp_path, f"{folder}/index{index}/level", level)
        write(tmp_path, f"{folder}/index{index}/type", kind)
        write(tmp_path, f"{folder}/index{index}/size", size)
        write(tmp_path, f"{folder}/index{index}/shared_cpu_list", shared)
    caches = [(cache.level, cache.kind, cache.num_bytes, cache.sharing_threads) for cache in host(tmp_path).caches]
    assert caches == [(1, "data", 48 * 1024, 1), (3, "unified", 32 * 1024**2, 4)]


def test_a_machine_that_says_nothing_still_has_a_thread_and_memory(tmp_path: Path) -> None:
    found = host(tmp_path, allowed=1)
    assert (found.threads, found.cores, found.caches) == (1, 1, ())
    assert found.memory_bytes > 0


def test_this_machine_is_read() -> None:
    found = read_host()
    assert 1 <= found.cores <= found.threads
    assert 0 < found.available_bytes <= found.memory_bytes

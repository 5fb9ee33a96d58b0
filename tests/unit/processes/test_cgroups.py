"""What control groups leave of the memory: trees as the kernel shows them, of both versions."""

from __future__ import annotations

from pathlib import Path

from llmsession.processes.cgroups import count_memory_kills, read_free_memory

GB = 10**9


def write(root: Path, files: dict[str, str]) -> Path:
    """A file system with these files."""
    for name, text in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return root


def test_a_service_may_use_what_the_tightest_group_above_it_leaves(tmp_path: Path) -> None:
    """Version 2: a limit stands at any level; the caches of files are given back when memory is short."""
    group = "sys/fs/cgroup/system.slice/bot.service"
    root = write(
        tmp_path,
        {
            "proc/self/cgroup": "0::/system.slice/bot.service\n",
            f"{group}/memory.max": "max\n",
            f"{group}/memory.current": "500000000\n",
            f"{group}/memory.events": "low 0\nhigh 0\nmax 7\noom 2\noom_kill 2\n",
            "sys/fs/cgroup/system.slice/memory.max": "4000000000\n",
            "sys/fs/cgroup/system.slice/memory.current": "3500000000\n",
            "sys/fs/cgroup/system.slice/memory.stat": "anon 1\nactive_file 900000000\ninactive_file 100000000\n",
            "proc/vmstat": "nr_free_pages 5\noom_kill 9\n",
        },
    )
    assert 1_500_000_000 == read_free_memory(root)
    assert 2 == count_memory_kills(root)


def test_inside_of_a_container_the_mount_begins_at_its_own_group(tmp_path: Path) -> None:
    """Version 2 in a namespace: the path is `/`, or leads out of it."""
    for path in ("/", "/../../other"):
        root = write(
            tmp_path,
            {
                "proc/self/cgroup": f"0::{path}\n",
                "sys/fs/cgroup/memory.max": "2000000000\n",
                "sys/fs/cgroup/memory.current": "500000000\n",
            },
        )
        assert 1_500_000_000 == read_free_memory(root)


def test_version_1_is_read_too(tmp_path: Path) -> None:
    """Its path is that of the host, which a container does not see; no limit is a very large number."""
    memory = "sys/fs/cgroup/memory"
    files = {
        "proc/self/cgroup": "5:cpu,cpuacct:/docker/abc\n4:memory:/docker/abc\n1:name=systemd:/x\n0::/\n",
        f"{memory}/memory.limit_in_bytes": "1000000000\n",
        f"{memory}/memory.usage_in_bytes": "900000000\n",
        f"{memory}/memory.stat": "total_active_file 200000000\ntotal_inactive_file 100000000\n",
        f"{memory}/memory.oom_control": "oom_kill_disable 0\nunder_oom 0\noom_kill 3\n",
    }
    root = write(tmp_path, files)
    assert 400_000_000 == read_free_memory(root)
    assert 3 == count_memory_kills(root)
    write(tmp_path, {f"{memory}/memory.limit_in_bytes": "9223372036854771712\n"})
    assert read_free_memory(root) is None


def test_without_groups_the_machine_counts_its_kills(tmp_path: Path) -> None:
    """The root group has no memory.events; a system without /proc knows nothing."""
    assert (None, None) == (read_free_memory(tmp_path), count_memory_kills(tmp_path))
    write(tmp_path, {"proc/self/cgroup": "0::/\n", "proc/vmstat": "oom_kill 4\n"})
    assert (None, 4) == (read_free_memory(tmp_path), count_memory_kills(tmp_path))


def test_a_full_group_leaves_nothing(tmp_path: Path) -> None:
    """Never less than nothing, also while it is over its limit."""
    files = {"memory.max": "100\n", "memory.current": "200\n", "memory.stat": "what is this\n"}
    write(tmp_path, {"proc/self/cgroup": "0::/\n"} | {f"sys/fs/cgroup/{name}": text for name, text in files.items()})
    assert 0 == read_free_memory(tmp_path)

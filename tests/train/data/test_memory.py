"""Free memory under the limits of control groups, laid out as Linux shows them."""

from pathlib import Path

import pytest

from datamodels.train.data import free_host_memory

GIB = 2**30
NO_LIMIT = "9223372036854771712"
V2 = "30 1 0:26 / /sys/fs/cgroup rw - cgroup2 cgroup2 rw"
V1 = "35 1 0:32 {top} /sys/fs/cgroup/memory rw - cgroup cgroup rw,memory"
TASK = "job_7/step_0/task_0"


def test_free_memory_is_told_in_bytes() -> None:
    assert 2**20 < free_host_memory() < 2**45


def lay_out(root: Path, mounts: str, groups: str, files: dict[str, object]) -> None:
    """A machine with 8 GiB available, and files of control groups."""
    proc = {"meminfo": f"MemTotal: 99 kB\nMemAvailable: {8 * GIB // 1024} kB\n", "self/mountinfo": mounts}
    for name, text in {**{f"proc/{name}": text for name, text in proc.items()}, "proc/self/cgroup": groups}.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(text)
    for name, value in files.items():
        file = root / "sys" / "fs" / "cgroup" / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(f"{value}\n")


@pytest.mark.parametrize(
    ("mounts", "groups", "files", "free"),
    [
        ("", "", {}, 8),
        (V2, f"0::/{TASK}", {f"{TASK}/memory.max": 2 * GIB, f"{TASK}/memory.current": GIB}, 1),
        (  # of the job alone; what files take is free
            V2,
            f"0::/{TASK}",
            {
                f"{TASK}/memory.max": "max",
                f"{TASK}/memory.current": GIB,
                "job_7/memory.max": 4 * GIB,
                "job_7/memory.current": 3 * GIB,
                "job_7/memory.stat": f"anon {GIB}\ninactive_file {GIB}\nactive_file {GIB}",
            },
            3,
        ),
        (V2, "0::/job_7", {"job_7/memory.max": "max", "job_7/memory.high": 2 * GIB, "job_7/memory.current": 0}, 2),
        (V2, "0::/job_7", {"job_7/memory.max": GIB, "job_7/memory.current": 2 * GIB}, 0),
        (  # version 1, the limit set on the job
            V1.format(top="/"),
            f"9:memory:/slurm/{TASK}\n1:cpu:/",
            {
                f"memory/slurm/{TASK}/memory.limit_in_bytes": NO_LIMIT,
                f"memory/slurm/{TASK}/memory.usage_in_bytes": GIB,
                "memory/slurm/job_7/memory.limit_in_bytes": 4 * GIB,
                "memory/slurm/job_7/memory.usage_in_bytes": 2 * GIB,
                "memory/slurm/job_7/memory.stat": f"total_inactive_file {GIB}",
            },
            3,
        ),
        (  # version 1 in a container, the limit set on a group outside
            V1.format(top="/docker/abc"),
            "9:cpu,memory:/docker/abc",
            {
                "memory/memory.limit_in_bytes": NO_LIMIT,
                "memory/memory.usage_in_bytes": GIB,
                "memory/memory.stat": f"hierarchical_memory_limit {3 * GIB}",
            },
            2,
        ),
        (  # a container that sees its own group as the outermost one, under a path that is the host's
            V2,
            "0::/kubepods/pod1",
            {"memory.max": 2 * GIB, "memory.current": 0},
            2,
        ),
        (  # both versions mounted, memory with version 1
            V1.format(top="/") + "\n40 1 0:38 / /sys/fs/cgroup/unified rw - cgroup2 cgroup2 rw",
            "9:memory:/job_7\n0::/",
            {"memory/job_7/memory.limit_in_bytes": GIB, "memory/job_7/memory.usage_in_bytes": 0},
            1,
        ),
    ],
)
def test_the_tightest_limit_of_the_groups_above_counts(
    tmp_path: Path, mounts: str, groups: str, files: dict[str, object], free: int
) -> None:
    lay_out(tmp_path, mounts, groups, files)
    assert free_host_memory(tmp_path) == free * GIB

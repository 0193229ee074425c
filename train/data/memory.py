"""How much memory is free on this machine, under the limits of the control groups that this process is in."""

import os
from collections.abc import Iterator
from pathlib import Path


def free_host_memory(root: Path = Path("/")) -> int:
    """Return the bytes of memory that the machine and every control group of this process still have.

    root: of the file system, to read /proc and /sys below.
    """
    free = [os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")]
    try:
        fields = dict(line.split(":") for line in (root / "proc/meminfo").read_text("utf-8").splitlines())
        free = [int(fields["MemAvailable"].split()[0]) * 1024]
    except (OSError, KeyError, ValueError):
        pass  # what cannot be read limits nothing
    return max(0, min([*free, *_free_in_groups(root)]))


def _free_in_groups(root: Path) -> Iterator[int]:
    """Yield the bytes that are free under each limit of a control group that can be seen, from the innermost out."""
    for folder, outermost, version in _groups(root):
        while folder.is_relative_to(outermost):
            stat = _stat(folder / "memory.stat")
            if version == 1:
                used, prefix = _number(folder / "memory.usage_in_bytes"), "total_"
                limits = [_number(folder / "memory.limit_in_bytes"), stat.get("hierarchical_memory_limit")]
            else:
                used, prefix = _number(folder / "memory.current"), ""
                limits = [_number(folder / "memory.max"), _number(folder / "memory.high")]
            # As in MemAvailable, pages of files count as free: the kernel drops them before it kills.
            pages = stat.get(f"{prefix}inactive_file", 0) + stat.get(f"{prefix}active_file", 0)
            yield from (limit - used + pages for limit in limits if limit is not None and used is not None)
            folder = folder.parent


def _groups(root: Path) -> Iterator[tuple[Path, Path, int]]:
    """Yield this process's groups that may limit memory: the folder, the outermost one that is mounted, the version."""
    try:
        mounts = (root / "proc/self/mountinfo").read_text("utf-8").splitlines()
        groups = [line.split(":", 2) for line in (root / "proc/self/cgroup").read_text("utf-8").splitlines()]
    except OSError:
        return
    for mount in mounts:
        fields, _, source = mount.partition(" - ")
        top, point = fields.split()[3:5]
        kind, *_, options = source.split()
        for _, controllers, path in groups:
            is_first = kind == "cgroup" and "memory" in options.split(",") and "memory" in controllers.split(",")
            if is_first or (kind == "cgroup2" and not controllers):
                # Within a container the path may be the host's, of which only what lies below `top` is mounted.
                inner = os.path.relpath(path, top) if Path(path).is_relative_to(top) else "."
                outermost = root / point.lstrip("/")
                yield outermost / inner, outermost, 1 if is_first else 2


def _stat(file: Path) -> dict[str, int]:
    try:
        return {name: int(value) for name, value in map(str.split, file.read_text("utf-8").splitlines())}
    except (OSError, ValueError):
        return {}


def _number(file: Path) -> int | None:
    try:
        return int(file.read_text("utf-8"))
    except (OSError, ValueError):  # not there, or `max`
        return None

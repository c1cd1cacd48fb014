"""How much memory is left."""

from pathlib import Path


def free_memory(root: Path = Path("/")) -> int | None:
    """Bytes that this process may still take, of the machine's memory and of its containers'.

    Args:
        root: Where proc/ and sys/ lie.

    Returns:
        The least that is left anywhere; None where nothing is told, as on other systems than Linux.
    """
    try:
        table = _table(root / "proc/meminfo")
    except OSError:
        return None
    return min([table["MemAvailable:"] * 1024, *_left_in_groups(root)])


def _left_in_groups(root: Path) -> list[int]:
    """What is left in each control group that this process is in, of those with a limit."""
    base = root / "sys/fs/cgroup"
    try:
        lines = (root / "proc/self/cgroup").read_text().splitlines()
    except OSError:
        return []
    left = []
    for _, kinds, path in (line.split(":", 2) for line in lines):
        if kinds not in ("", "memory"):
            continue
        # A limit may be an outer group's; in a container, the group's path may lead nowhere.
        own = Path(path).relative_to("/")
        for folder in (base / kinds / part for part in (own, *own.parents)):
            try:
                left.append(_left(folder, kinds == "memory"))
            except (OSError, ValueError, KeyError):
                continue  # no such group, or its limit is "max"
    return left


def _left(folder: Path, is_old: bool) -> int:
    names = ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file")
    limit, usage, files = names if is_old else ("memory.max", "memory.current", "inactive_file")
    # Files that were read count as used, but give way.
    used = int((folder / usage).read_text()) - _table(folder / "memory.stat")[files]
    return max(0, int((folder / limit).read_text()) - used)


def _table(path: Path) -> dict[str, int]:
    rows = (line.split() for line in path.read_text().splitlines())
    return {row[0]: int(row[1]) for row in rows}

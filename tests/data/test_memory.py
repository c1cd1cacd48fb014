import pytest

from geoseg_gan.data.memory import free_memory


@pytest.fixture
def machine(tmp_path):
    """Writes files of a machine with 1000 KiB free: `machine({"path": "text"})`."""

    def make(files):
        files = {"proc/meminfo": "MemTotal: 2000 kB\nMemAvailable: 1000 kB\n", **files}
        for name, text in files.items():
            path = tmp_path / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text)
        return tmp_path

    return make


def group(folder, limit, used, files=0, old=False):
    names = (
        ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file")
        if old
        else ("memory.max", "memory.current", "inactive_file")
    )
    folder = f"sys/fs/cgroup/{folder}"
    return {
        f"{folder}/{names[0]}": f"{limit}\n",
        f"{folder}/{names[1]}": f"{used}\n",
        f"{folder}/memory.stat": f"cache 5\n{names[2]} {files}\n",
    }


NEW, OLD = {"proc/self/cgroup": "0::/a/b\n"}, {"proc/self/cgroup": "5:cpu:/\n4:memory:/a\n"}


@pytest.mark.parametrize(
    ("files", "expected"),
    [
        ({}, 1000 * 1024),
        (NEW, 1000 * 1024),  # the group's folder is not there
        (NEW | group("a/b", "max", 10), 1000 * 1024),
        (NEW | group("a/b", 500, 100), 400),
        (NEW | group("a/b", 500, 450, files=350), 400),  # what was read gives way
        (NEW | group("a/b", "max", 10) | group("a", 700, 100), 600),  # of the group around it
        (NEW | group(".", 300, 400), 0),  # a container sees its own group as the root
        (OLD | group("memory/a", 500, 450, files=350, old=True), 400),
        (OLD | group("memory/a", 2**63, 100, old=True), 1000 * 1024),
    ],
)
def test_the_least_of_machine_and_containers_counts(machine, files, expected):
    assert free_memory(machine(files)) == expected


def test_a_machine_that_tells_nothing_is_no_limit(tmp_path):
    assert free_memory(tmp_path) is None

import pytest

from geoseg_gan.data.dataset import free_memory


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


def group(folder, limit, used, files=0):
    folder = f"sys/fs/cgroup/{folder}"
    return {
        f"{folder}/memory.max": f"{limit}\n",
        f"{folder}/memory.current": f"{used}\n",
        f"{folder}/memory.stat": f"cache 5\ninactive_file {files}\n",
    }


GROUP = {"proc/self/cgroup": "0::/a/b\n"}


@pytest.mark.parametrize(
    ("files", "expected"),
    [
        (GROUP, 1000 * 1024),  # the group's folder is not there
        (GROUP | group("a/b", "max", 10), 1000 * 1024),
        (GROUP | group("a/b", 500, 100), 400),
        (GROUP | group("a/b", 500, 450, files=350), 400),  # what was read gives way
        (GROUP | group("a/b", "max", 10) | group("a", 700, 100), 600),  # of the group around it
        (GROUP | group(".", 300, 400), 0),  # a container sees its own group as the root
    ],
)
def test_the_least_of_machine_and_containers_counts(machine, files, expected):
    assert free_memory(machine(files)) == expected

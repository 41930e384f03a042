"""The memory limit of a cgroup, of either version, inside a container and outside."""

from pathlib import Path

import pytest

from lmkv.cgroup import memory_limit

GIB = 1 << 30
V1_NONE = "9223372036854771712"


def system(folder: Path, cgroup: str, mounts: dict[str, str], files: dict[str, str]) -> Path:
    """A proc directory. ``mounts``: by mount point, "root type options"."""
    for name, text in files.items():
        file = folder / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text + "\n")
    lines = []
    for point, text in mounts.items():
        root, kind, options = text.split()
        lines.append(f"30 25 0:27 {root} {folder}/{point} rw,relatime - {kind} {kind} {options}")
    (folder / "mountinfo").write_text("25 1 8:1 / / rw - ext4 /dev/vda rw\n" + "\n".join(lines))
    (folder / "cgroup").write_text(cgroup)
    return folder


@pytest.mark.parametrize(
    ("cgroup", "mounts", "files", "limit"),
    [
        pytest.param("0::/\n", {"c": "/ cgroup2 rw"}, {"c/memory.max": str(GIB)}, GIB,
                     id="v2, in a container"),
        pytest.param("0::/a/b\n", {"c": "/ cgroup2 rw"},
                     {"c/a/memory.max": str(GIB), "c/a/b/memory.max": "max"}, GIB,
                     id="v2, of a parent"),
        pytest.param("0::/a\n", {"c": "/ cgroup2 rw"}, {"c/a/memory.max": "max"}, None,
                     id="v2, none"),
        pytest.param("0::/../other\n", {"c": "/ cgroup2 rw"}, {"c/memory.max": str(GIB)}, GIB,
                     id="v2, from another namespace"),
        pytest.param("4:memory:/docker/x\n0::/\n",
                     {"m": "/docker/x cgroup rw,memory", "u": "/ cgroup2 rw"},
                     {"m/memory.limit_in_bytes": str(GIB)}, GIB, id="v1, in a container"),
        pytest.param("4:cpu,memory:/a/b\n1:cpuset:/z\n",
                     {"s": "/ cgroup rw,cpuset", "m": "/ cgroup rw,cpu,memory"},
                     {"m/a/b/memory.limit_in_bytes": V1_NONE,
                      "m/a/memory.limit_in_bytes": str(2 * GIB),
                      "m/memory.limit_in_bytes": V1_NONE}, 2 * GIB, id="v1, of a parent"),
        pytest.param("4:memory:/a\n", {}, {}, None, id="not mounted"),
    ],
)  # fmt: skip
def test_the_smallest_limit_that_holds(
    tmp_path: Path, cgroup: str, mounts: dict[str, str], files: dict[str, str], limit: int | None
) -> None:
    assert memory_limit(system(tmp_path, cgroup, mounts, files)) == limit


def test_without_proc_there_is_none(tmp_path: Path) -> None:
    assert memory_limit(tmp_path) is None


def test_that_of_this_process_can_be_read() -> None:
    limit = memory_limit()
    assert limit is None or limit > 0

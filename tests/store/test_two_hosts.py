"""Two hosts over one directory: processes in namespaces of their own (host name, network, process
ids, mounts), of which the second has the directory through another mount.
"""

import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from lmkv._C import Directory, Removal, TreeFile, probe_root, remove_chunk, scan_tree
from lmkv.namespace import Namespace

sys.path.insert(0, str(Path(__file__).parent))
from host import CHUNK_BYTES, key
from hosts import RemoteHost, hosts

HERE = Path(__file__).parent
NAMESPACES = ("unshare", "--mount", "--uts", "--net", "--pid", "--fork", "--kill-child")
SecondMount = Callable[[Path], Path]


@pytest.fixture
def second_mount(tmp_path: Path) -> Iterator[SecondMount]:
    """Mounts a directory a second time, by a server that passes everything on."""
    if not os.access("/dev/fuse", os.R_OK | os.W_OK) or not shutil.which("fusermount3"):
        pytest.skip("needs /dev/fuse and fusermount3, which this machine does not give")
    servers: list[tuple[subprocess.Popen[bytes], Path]] = []

    def mount(source: Path) -> Path:
        folder = tmp_path / f"mount{len(servers)}"
        folder.mkdir()
        asked = folder.with_suffix(".asked")
        command = [sys.executable, HERE / "second_mount.py", source, folder, "60", asked]
        servers.append((subprocess.Popen(command), folder))
        deadline = time.monotonic() + 20
        while not folder.is_mount():
            assert servers[-1][0].poll() is None, "no FUSE filesystem can be mounted here"
            assert time.monotonic() < deadline
            time.sleep(0.02)
        return folder

    yield mount
    for server, folder in servers:
        subprocess.run(["fusermount3", "-uz", str(folder)], check=False)
        server.wait(timeout=20)


def on_host(name: str, mount: Path | None = None, at: Path | None = None) -> list[str]:
    """What a command is put behind to be on a host of that name, which has ``mount`` at ``at``."""
    script = f"hostname {name} && "
    if mount is not None:
        script += f'mount --bind "{mount}" "{at}" && '
    return [*NAMESPACES, "sh", "-c", script + 'exec "$@"', "sh"]


@pytest.fixture
def two_hosts(tmp_path: Path, second_mount: SecondMount) -> tuple[Path, list[str], list[str]]:
    """The directory, and how to run on the first and on the second host."""
    root = tmp_path / "kv"
    root.mkdir(mode=0o700)
    first, second = on_host("twin"), on_host("twin", second_mount(root), root)
    for wrapper in (first, second):
        tried = subprocess.run([*wrapper, "true"], capture_output=True, text=True, check=False)
        if tried.returncode:
            pytest.skip(f"may not make namespaces: {tried.stderr.strip()}")
    return root, first, second


def test_what_one_host_stores_another_loads_though_they_have_one_name_and_one_pid(
    two_hosts: tuple[Path, list[str], list[str]],
) -> None:
    root, first, second = two_hosts
    mine, theirs = [f"a{n}" for n in range(8)], [f"b{n}" for n in range(8)]
    with hosts(RemoteHost(root, first), RemoteHost(root, second)) as (one, two):
        assert one.ask("who")[:2] == two.ask("who")[:2] == ["twin", 1]
        assert one.ask("info")["shared"] == "no"
        info = two.ask("info")
        assert (info["shared"], info["filesystem"].split(".")[0]) == ("yes", "fuse")
        assert one.ask("present", names=theirs) == two.ask("present", names=mine) == [False] * 8
        one.begin("store", names=mine)
        two.begin("store", names=theirs)
        assert one.answer() == two.answer() == [""] * 8
        assert one.ask("present", names=theirs) == two.ask("present", names=mine) == [True] * 8
        assert one.ask("load", names=theirs) == two.ask("load", names=mine) == ["right"] * 8
        # The same chunk at the same time, many times: names of files being written differ.
        both = [f"c{n}" for n in range(100)]
        one.begin("store", names=both)
        two.begin("store", names=both)
        assert one.answer() == two.answer() == [""] * 100
        assert one.ask("load", names=both) == two.ask("load", names=both) == ["right"] * 100
        for host in (one, two):
            stats = host.ask("stats")
            assert stats["stores_failed"] == stats["loads_failed"] == stats["touches_failed"] == 0
    assert {file.suffix for file in root.glob("v1/*/r0/*/*")} == {".kv"}


@pytest.mark.parametrize("evictor", ["first", "second"])
def test_what_one_host_evicts_is_a_clean_miss_on_another(
    two_hosts: tuple[Path, list[str], list[str]], evictor: str
) -> None:
    root, first, second = two_hosts
    names = [f"{n}" for n in range(24)]
    small = {"capacity": 12 * CHUNK_BYTES}
    with hosts(RemoteHost(root, first), RemoteHost(root, second)) as (one, two):
        assert one.ask("store", names=names[:12]) == [""] * 12
        assert two.ask("store", names=names[12:]) == [""] * 12
        wrapper, other = (first, two) if evictor == "first" else (second, one)
        assert other.ask("present", names=names) == [True] * 24
        with hosts(RemoteHost(root, wrapper, **small)) as (third,):
            third.ask("wait_for", counter="chunks_evicted", at_least=12)
        answers = [answer.split(":")[0] for answer in other.ask("load", names=names)]
        assert set(answers) == {"right", "no such chunk"}
        assert answers.count("no such chunk") >= 8  # of the others some are still in memory
        stats = other.ask("stats")
        assert stats["loads_failed"] == stats["chunks_missing"]
        assert stats["chunks_bad"] == stats["loads_out_of_service"] == 0
        gone = [name for name, a in zip(names, answers, strict=True) if a == "no such chunk"]
        assert other.ask("store", names=gone) == [""] * len(gone)
        assert (one if other is two else two).ask("load", names=gone) == ["right"] * len(gone)


def test_what_another_host_has_just_used_is_not_evicted_though_the_kernel_remembers_its_old_time(
    tmp_path: Path, second_mount: SecondMount
) -> None:
    root = tmp_path / "kv"
    root.mkdir()
    with hosts(RemoteHost(root)) as (host,):
        assert host.ask("store", names=["used", "unused"]) == ["", ""]
    for file in root.glob("v1/*/r0/*/*.kv"):
        os.utime(file, (10**9, 10**9))
    mount = second_mount(root)
    found: dict[bytes, TreeFile] = {}
    assert scan_tree(str(mount), lambda file: found.update({file.key: file}))
    (used,) = root.glob(f"v1/*/r0/*/{key('used').hex()}.kv")
    os.utime(used)
    seen = mount / used.relative_to(root)
    assert os.stat(seen).st_mtime == 10**9, "the kernel remembers nothing: nothing is tested"
    assert remove_chunk(str(mount), found[key("used")]) is Removal.KEPT
    assert used.exists()
    assert remove_chunk(str(mount), found[key("unused")]) is Removal.REMOVED


def test_before_a_chunk_is_absent_the_server_is_asked_for_its_directory(
    tmp_path: Path, second_mount: SecondMount
) -> None:
    """An NFS client drops what it remembers of absent names when their directory has changed."""
    root = tmp_path / "kv"
    root.mkdir()
    with hosts(RemoteHost(root)) as (host,):
        assert host.ask("store", names=["a"]) == [""]
    mount = second_mount(root)
    (file,) = root.glob("v1/*/r0/*/*.kv")
    beside = "/" + str(file.parent.relative_to(root))
    there = key("a")
    absent, alone = there[:2] + bytes(30), bytes(32)  # the latter without a directory
    namespace = Namespace({"model": "m"}).digest
    directory = Directory(root=str(mount), namespace=namespace, ranks=1)

    def asked(chunk: bytes) -> list[str]:
        log = mount.with_suffix(".asked")
        before = len(log.read_text().splitlines())
        assert directory.present([chunk]) == [chunk == there]
        return log.read_text().splitlines()[before:]

    for chunk in (there, absent, alone):
        asked(chunk)
    assert asked(there) == [], "the kernel remembers nothing: nothing is tested"
    assert beside in asked(absent)
    assert str(Path(beside).parent) in asked(alone)


def test_a_mount_says_whether_it_is_shared_and_why(
    tmp_path: Path, second_mount: SecondMount
) -> None:
    source = tmp_path / "kv"
    source.mkdir()
    here, there = probe_root(str(source)), probe_root(str(second_mount(source)))
    assert (here.shared, there.shared) == (False, True)
    assert here.filesystem in here.shared_reason
    assert there.filesystem in there.shared_reason
    assert probe_root(str(source), shared="yes").shared_reason == "asked for"

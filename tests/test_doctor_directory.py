"""What ``lmkv doctor`` finds wrong with a directory: chunks, owners, clocks, sets, settings."""

import contextlib
import json
import os
import shutil
import subprocess
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from typer.testing import CliRunner

from lmkv import _C, tree_access
from lmkv.chunk_probe import try_chunk
from lmkv.cli import app
from lmkv.namespace import Namespace

FACTS = {"model": "m", "dtype": "float32", "block_tokens": 32, "chunk_tokens": 256}
NOBODY = 65534

needs_root = pytest.mark.skipif(os.geteuid() != 0, reason="needs root, to be somebody else")


@pytest.fixture(autouse=True)
def _no_settings(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("LMKV_PATH", raising=False)


def doctor(*arguments: str | Path) -> tuple[int, dict]:
    result = CliRunner().invoke(app, ["doctor", *map(str, arguments), "--json"])
    return result.exit_code, json.loads(result.stdout)


def namespace_in(root: Path, directories: list[Path] | None = None) -> Namespace:
    namespace = Namespace(FACTS)
    about = {"model": "m", "directories": [str(one) for one in directories or [root]]}
    assert namespace.write_meta(str(root), about) is None
    return namespace


def chunk_in(root: Path, number: int, namespace: Namespace | None = None) -> Path:
    """A file by the name of a chunk; doctor does not look inside."""
    key = f"{number:064x}"[::-1]
    folder = (namespace or Namespace(FACTS)).directory(str(root)) / "r0" / key[:3]
    folder.mkdir(parents=True, exist_ok=True, mode=0o700)
    file = folder / f"{key}.kv"
    file.touch(mode=0o600)
    return file


def noted(found: dict, text: str) -> bool:
    return any(text in note for note in found["notes"])


def test_a_chunk_goes_there_and_back_and_nothing_is_left(tmp_path: Path) -> None:
    code, found = doctor(tmp_path)
    assert code == 0
    assert "every byte the same" in found["facts"]["chunk"]
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("fault", "said"),
    [
        ("write.eio", "could not be stored: write"),
        ("read.corrupt", "could not be loaded: block checksum mismatch"),
        ("open.estale", "could not be stored: "),
    ],
)
def test_a_disk_that_does_not_keep_a_chunk_is_found(tmp_path: Path, fault: str, said: str) -> None:
    faults = _C.Faults(fault)
    trial = try_chunk(str(tmp_path), lambda options: _C.fault_engine(options, faults))
    assert said in trial.error
    assert list(tmp_path.iterdir()) == []


@contextlib.contextmanager
def tmpfs(folder: Path, size: str) -> Iterator[Path]:
    folder.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", f"size={size}", "none", str(folder)]
    if subprocess.run(mount, check=False, capture_output=True).returncode:
        pytest.skip("may not mount here")
    try:
        yield folder
    finally:
        subprocess.run(["umount", "-l", str(folder)], check=True)


@needs_root
def test_a_full_disk_is_noted_and_no_problem(tmp_path: Path) -> None:
    with tmpfs(tmp_path / "small", "4m") as root:
        code, found = doctor(root)
        assert code == 0
        assert noted(found, f"{root} is full")
        assert found["facts"]["mount"] == f"none on {root}"
        assert list(root.iterdir()) == []


@needs_root
def test_less_than_the_floor_is_noted(tmp_path: Path) -> None:
    with tmpfs(tmp_path / "small", "32m") as root:
        (root / "of others").write_bytes(bytes(31 << 20))
        _, found = doctor(root)
        assert noted(found, "Less than 5 % of the filesystem")
        setting = {"kv_connector_extra_config": {"path": str(root), "free_space_floor": 1}}
        _, found = doctor("--config", json.dumps(CONFIG | setting))
        assert not noted(found, "of the filesystem")


@pytest.fixture
def open_folder() -> Iterator[Path]:
    """That any user may enter, which pytest's own are not."""
    folder = Path(tempfile.mkdtemp(prefix="lmkv-test-"))
    folder.chmod(0o777)
    doctor(folder)  # what is imported may be closed to others
    yield folder
    shutil.rmtree(folder)


@contextlib.contextmanager
def as_nobody() -> Iterator[None]:
    os.setegid(NOBODY)
    os.seteuid(NOBODY)
    try:
        yield
    finally:
        os.seteuid(0)
        os.setegid(0)


@needs_root
def test_a_directory_of_another_user_is_a_problem_for_this_one(open_folder: Path) -> None:
    namespace_in(open_folder)
    assert doctor(open_folder)[0] == 0
    with as_nobody():
        code, found = doctor(open_folder)
    assert code == 1
    assert "belongs to user 0 and is closed to this one (65534)" in found["problems"][0]


@needs_root
def test_a_namespace_of_another_user_is_noted(open_folder: Path) -> None:
    namespace = namespace_in(open_folder)
    (open_folder / "v1").chmod(0o777)
    with as_nobody():
        code, found = doctor(open_folder)
    assert code == 0
    assert noted(found, f"Namespace {namespace.short} in {open_folder} belongs to user 0")


@needs_root
def test_files_of_several_users_are_noted_unless_all_may_read_them(tmp_path: Path) -> None:
    namespace_in(tmp_path)
    files = [chunk_in(tmp_path, number) for number in range(3)]
    assert not noted(doctor(tmp_path)[1], "several users")
    os.chown(files[0], NOBODY, NOBODY)
    assert noted(doctor(tmp_path)[1], "several users (2 of user 0, 1 of user 65534)")
    for file in files:
        file.chmod(0o660)
    assert not noted(doctor(tmp_path)[1], "several users")


def test_clocks_that_differ_are_noted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    namespace_in(tmp_path)
    file = chunk_in(tmp_path, 1)
    assert not noted(doctor(tmp_path)[1], "Clocks")
    os.utime(file, (time.time() + 300, time.time() + 300))
    assert noted(doctor(tmp_path)[1], "a host whose clock is 300 s ahead of this one's")
    monkeypatch.setattr(tree_access, "filesystem_now", lambda _: time.time() - 60)
    assert noted(doctor(tmp_path)[1], "the filesystem's clock is 60 s behind of this host's")


def test_chunks_that_lie_in_another_directory_than_they_belong_to_are_noted(
    tmp_path: Path,
) -> None:
    one, other = tmp_path / "one", tmp_path / "other"
    for root in (one, other):
        namespace_in(root, [other, one])
    paths = [str(one), str(other)]
    for number in range(20):
        key = bytes.fromhex(f"{number:064x}"[::-1])
        chunk_in(Path(paths[_C.root_of(paths, key)]), number)
    assert not noted(doctor(one, other)[1], "belong elsewhere")
    assert doctor(one, other)[1]["namespaces"][0]["has_chunks"]
    for file in list(other.glob("v1/*/r0/*/*.kv"))[:3]:
        target = one / file.relative_to(other)
        target.parent.mkdir(exist_ok=True)
        file.rename(target)
    _, found = doctor(other, one)
    assert noted(found, f"in {one} belong elsewhere")
    assert noted(found, "3 of ")
    assert not noted(found, f"in {other} belong elsewhere")


def test_root_of_refuses_what_is_none(tmp_path: Path) -> None:
    assert _C.root_of(["/a"], bytes(32)) == 0
    for roots, key in (([], bytes(32)), (["/a"], b"short")):
        with pytest.raises(_C.ConfigError):
            _C.root_of(roots, key)


CONFIG = {
    "kv_connector": "LMKVConnector",
    "kv_connector_module_path": "lmkv.vllm",
    "kv_role": "kv_both",
    "kv_load_failure_policy": "recompute",
}


def config_of(path: Path, **changes: object) -> str:
    extra = {"path": str(path), **changes.pop("extra", {})}
    return json.dumps({**CONFIG, "kv_connector_extra_config": extra, **changes})


def test_a_good_configuration_is_tried_with_its_own_directory(tmp_path: Path) -> None:
    code, found = doctor("--config", config_of(tmp_path, extra={"io_engine": "threads"}))
    assert (code, found["problems"]) == (0, [])
    assert found["facts"]["directory"] == str(tmp_path)
    assert found["facts"]["I/O engine"] == "threads (asked for)"


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"extra": {"chunk_tokns": 1}}, "did you mean chunk_tokens?"),
        ({"extra": {"path": "relative"}}, "expected an absolute path"),
        ({"kv_connector": "LmkvConnector"}, '"kv_connector" is'),
        ({"kv_connector_module_path": "lmkv"}, '"kv_connector_module_path" is'),
        ({"kv_role": "both"}, '"kv_role" is'),
    ],
)
def test_settings_that_cannot_work_are_problems(
    tmp_path: Path, changes: dict[str, object], said: str
) -> None:
    code, found = doctor("--config", config_of(tmp_path, **changes))
    assert code == 1
    assert any(said in problem for problem in found["problems"])


@pytest.mark.parametrize("text", ["{", "[1]"])
def test_a_configuration_that_is_no_json_object_is_a_problem(text: str) -> None:
    code, found = doctor("--config", text)
    assert code == 1
    assert "is no JSON" in found["problems"][0]


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"kv_role": "kv_consumer"}, "loads and stores nothing"),
        ({"kv_role": "kv_producer"}, "stores and loads nothing"),
        ({"kv_load_failure_policy": "fail"}, 'Set it to "recompute"'),
    ],
)
def test_settings_that_do_less_are_noted(
    tmp_path: Path, changes: dict[str, object], said: str
) -> None:
    code, found = doctor("--config", config_of(tmp_path, **changes))
    assert code == 0
    assert noted(found, said)


@pytest.mark.parametrize("name", ["f" * 16, "/nonexistent/meta.json"])
def test_what_cannot_be_compared_is_one_line_and_status_2(tmp_path: Path, name: str) -> None:
    short = namespace_in(tmp_path).short
    result = CliRunner().invoke(app, ["doctor", str(tmp_path), "--compare", short, name])
    assert result.exit_code == 2
    assert result.stderr.startswith("error: ")
    assert len(result.stderr.splitlines()) == 1

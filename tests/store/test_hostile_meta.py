"""``meta.json`` is for people and tools, and anybody's: whatever it is, no tool fails over it."""

import json
import os
import re
import sys
from pathlib import Path

import pytest
from typer.testing import CliRunner

from lmkv.cli import app
from lmkv.namespace import Namespace
from lmkv.tree import read_meta

sys.path.insert(0, str(Path(__file__).parent))
from hostile import NO_FILES, STUCK, Place, Put, chunk_path, fill, make_outside, snapshot

NAMESPACE = Namespace({"dtype": "bfloat16", "model": "abc"})
pytestmark = pytest.mark.timeout(60)


def meta(model: object, **more: object) -> bytes:
    return json.dumps({"facts": {"dtype": "x"}, "about": {"model": model}, **more}).encode()


def nested(depth: int) -> bytes:
    return b'{"facts": ' + b'{"a":' * depth + b"1" + b"}" * depth + b', "about": {}}'


CONTENTS = {
    "empty": b"",
    "no_object": b"[1, 2]",
    "facts_that_are_a_list": b'{"facts": [], "about": {}}',
    "no_utf_8": b'{"facts": {}, "about": {"model": "\xff\xfe"}}',
    "nul": b"\0" * 5000,
    "huge": meta("m" * (3 << 20)),
    "a_long_name": meta("m" * 100_000),
    "a_long_number": b'{"facts": {"a": ' + b"9" * 100_000 + b'}, "about": {}}',
    "nested_deeply": nested(100_000),
    "nested_less_deeply": nested(700),
    "half_a_surrogate_pair": b'{"facts": {}, "about": {"model": "\\ud800"}}',
    "control_characters": meta("\x1b[31m\x07\x1b]0;title\x07\r\n\u202eabc\x9b"),
    "other_types": meta({"a": [1]}, namespace=[[1]], format=float("inf")),
}


@pytest.fixture
def root(tmp_path: Path) -> Path:
    root = tmp_path / "root"
    fill(root, 1, namespace=NAMESPACE.digest)
    return root


def meta_of(root: Path) -> Path:
    return NAMESPACE.directory(str(root)) / "meta.json"


def check_tools(root: Path) -> None:
    for command in ("stats", "doctor"):
        for arguments in ((), ("--json",)):
            result = CliRunner().invoke(app, [command, str(root), *arguments])
            assert result.exit_code == 0, (command, result.exception, result.output[-500:])
            assert not re.search(r"[\x00-\x09\x0b-\x1f\x7f-\x9f\u202e]", result.stdout), command
            assert len(result.stdout) < 300_000
            result.stdout.encode()
            if arguments:
                json.loads(result.stdout, parse_constant=pytest.fail)


@pytest.mark.parametrize("content", CONTENTS.values(), ids=CONTENTS)
def test_whatever_it_says_the_tools_go_on(root: Path, content: bytes) -> None:
    meta_of(root).write_bytes(content)
    check_tools(root)


def test_what_it_says_of_its_model_is_shown_as_far_as_it_is_text(root: Path) -> None:
    meta_of(root).write_bytes(meta("org/\x1b[31mmodel"))
    wide = {"COLUMNS": "200"}
    assert "org/?[31mmodel" in CliRunner().invoke(app, ["stats", str(root)], env=wide).stdout


def open_below(folder: Path) -> list[str]:
    """What this process has open there. Others of its descriptors come and go by themselves."""
    fds = Path("/proc/self/fd")
    links = [os.readlink(fd) for fd in fds.iterdir() if fd.is_symlink()]
    return sorted(link for link in links if link.startswith(f"{folder}/"))


@pytest.mark.parametrize("put", (NO_FILES | STUCK).values(), ids=NO_FILES | STUCK)
def test_whatever_lies_in_its_place_is_not_opened_and_a_new_one_replaces_it(
    root: Path, tmp_path: Path, put: Put
) -> None:
    outside = tmp_path / "outside"
    make_outside(outside)
    (outside / "secret").write_bytes(meta("secret"))
    before = snapshot(outside)
    path = meta_of(root)
    before_fds = open_below(tmp_path)
    put(Place(path, b"", outside))
    if put is STUCK["immutable_file"]:
        os.system(f"chattr -i {path}")  # for the clean-up: it is a file like any other
    try:
        check_tools(root)
        assert read_meta(str(root), NAMESPACE.short) == {}
        error = NAMESPACE.write_meta(str(root), {"model": "mine"})
        if path.is_dir():
            assert error is not None
        elif put is not STUCK["immutable_file"]:
            assert error is None
            assert read_meta(str(root), NAMESPACE.short)["about"] == {"model": "mine"}
    finally:
        assert snapshot(outside) == before
    assert open_below(tmp_path) == before_fds
    assert chunk_path(root, 1, namespace=NAMESPACE.digest).is_file()


def test_links_on_the_way_to_it_are_not_followed(root: Path, tmp_path: Path) -> None:
    other = Namespace({"model": "other"})
    other.write_meta(str(tmp_path / "elsewhere"), {"model": "secret"})
    there = other.directory(str(tmp_path / "elsewhere"))
    (root / "v1" / other.short).symlink_to(there)
    before = snapshot(there)
    assert read_meta(str(root), other.short) == {}
    for command in ("doctor", "stats"):
        result = CliRunner().invoke(app, [command, str(root)])
        assert "secret" not in result.stdout
        assert other.short not in result.stdout
    assert isinstance(other.write_meta(str(root)), OSError)
    (there / "meta.json").unlink()
    before = snapshot(there)
    assert isinstance(other.write_meta(str(root)), OSError)
    assert snapshot(there) == before


def test_a_link_in_the_place_of_tmp_is_not_written_through(root: Path, tmp_path: Path) -> None:
    (tmp_path / "elsewhere").mkdir()
    (meta_of(root).parent / "tmp").symlink_to(tmp_path / "elsewhere")
    assert isinstance(NAMESPACE.write_meta(str(root)), OSError)
    assert list((tmp_path / "elsewhere").iterdir()) == []
    assert not meta_of(root).exists()

import errno
import json
import multiprocessing
import os
import stat

import pytest

import lmkv
from lmkv.namespace import Namespace
from lmkv.weights import weights_id

FACTS = {"model": "m", "block_tokens": 32, "layers": ["a", "b"], "shared": True}


def test_equal_facts_in_any_order_are_one_namespace():
    same = Namespace(dict(reversed(FACTS.items())) | {"layers": ("a", "b")})
    assert Namespace(FACTS).digest == same.digest
    assert Namespace(FACTS).short == Namespace(FACTS).digest.hex()[:16]


@pytest.mark.parametrize(
    "change",
    [
        {"model": "n"},
        {"block_tokens": 64},
        {"layers": ["b", "a"]},
        {"layers": ["ab"]},
        {"shared": False},
        {"more": ""},
    ],
)
def test_any_other_fact_is_another_namespace(change):
    assert Namespace(FACTS | change).digest != Namespace(FACTS).digest


def test_the_digest_is_stable():
    # Directories in the field are named by it: a change needs a new format version.
    assert Namespace(FACTS).short == "1ae59dc2e031e89a"


def test_meta_json_is_for_people_and_private(tmp_path):
    namespace = Namespace(FACTS)
    old_umask = os.umask(0)
    try:
        assert namespace.write_meta(str(tmp_path / "root"), {"path": "/models/m"}) is None
    finally:
        os.umask(old_umask)
    file = tmp_path / "root" / "v1" / namespace.short / "meta.json"
    meta = json.loads(file.read_text())
    assert meta["facts"] == FACTS
    assert meta["about"] == {"path": "/models/m"}
    assert meta["namespace"] == namespace.digest.hex()
    assert meta["created_by"] == f"lmkv {lmkv.__version__}"
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    for directory in (file.parent, file.parent.parent, file.parent.parent.parent):
        assert stat.S_IMODE(directory.stat().st_mode) == 0o700
    assert list((file.parent / "tmp").iterdir()) == []


def test_meta_json_of_a_group_is_the_groups_whatever_the_umask_is(tmp_path):
    namespace = Namespace(FACTS)
    old_umask = os.umask(0o077)
    try:
        assert namespace.write_meta(str(tmp_path / "root"), file_mode="group") is None
    finally:
        os.umask(old_umask)
    file = namespace.directory(str(tmp_path / "root")) / "meta.json"
    assert stat.S_IMODE(file.stat().st_mode) == 0o660
    for directory in (file.parent, file.parent / "tmp", file.parent.parent):
        assert stat.S_IMODE(directory.stat().st_mode) == 0o2770


def test_meta_json_is_written_once(tmp_path):
    namespace = Namespace(FACTS)
    namespace.write_meta(str(tmp_path))
    file = namespace.directory(str(tmp_path)) / "meta.json"
    first = file.read_bytes()
    namespace.write_meta(str(tmp_path), {"later": True})
    assert file.read_bytes() == first


def test_meta_json_that_cannot_be_written_is_no_exception(tmp_path):
    (tmp_path / "v1").write_text("a file where a directory should be")
    error = Namespace(FACTS).write_meta(str(tmp_path))
    assert isinstance(error, OSError)


@pytest.mark.parametrize(
    "damage",
    [
        lambda whole: b"",
        lambda whole: whole[: len(whole) // 2],
        lambda whole: whole[:100] + bytes(len(whole) - 100),
        lambda whole: bytes(len(whole)),
        lambda whole: b"\xff" * len(whole),
        lambda whole: b"{}",
    ],
    ids=["empty", "half", "torn", "zeros", "garbage", "another"],
)
def test_meta_json_that_a_power_loss_has_damaged_is_written_again(tmp_path, damage):
    namespace = Namespace(FACTS)
    namespace.write_meta(str(tmp_path))
    file = namespace.directory(str(tmp_path)) / "meta.json"
    file.write_bytes(damage(file.read_bytes()))
    assert namespace.write_meta(str(tmp_path)) is None
    assert json.loads(file.read_text())["facts"] == FACTS
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    assert list((file.parent / "tmp").iterdir()) == []


def test_what_is_no_file_in_the_place_of_meta_json_gives_way(tmp_path):
    namespace = Namespace(FACTS)
    place = namespace.directory(str(tmp_path)) / "meta.json"
    place.parent.mkdir(parents=True)
    (tmp_path / "theirs").write_text("theirs")
    for make in (lambda: place.symlink_to(tmp_path / "theirs"), lambda: os.mkfifo(place)):
        make()
        assert namespace.write_meta(str(tmp_path)) is None
        assert stat.S_ISREG(place.lstat().st_mode)
        place.unlink()
    assert (tmp_path / "theirs").read_text() == "theirs"
    place.mkdir()
    assert isinstance(namespace.write_meta(str(tmp_path)), OSError)
    assert place.is_dir()
    assert list((place.parent / "tmp").iterdir()) == []


def test_meta_json_has_its_name_when_it_is_on_the_disk_and_not_before(tmp_path, monkeypatch):
    def fail(descriptor):
        raise OSError(errno.EIO, "the disk")

    monkeypatch.setattr(os, "fsync", fail)
    namespace = Namespace(FACTS)
    error = namespace.write_meta(str(tmp_path))
    assert error is not None
    assert error.errno == errno.EIO
    assert [path.name for path in namespace.directory(str(tmp_path)).rglob("*")] == ["tmp"]


def test_many_processes_leave_one_whole_meta_json(tmp_path):
    namespace = Namespace(FACTS)
    with multiprocessing.get_context("spawn").Pool(4) as pool:
        results = pool.map(namespace.write_meta, [str(tmp_path)] * 16)
    assert results == [None] * 16
    assert json.loads((namespace.directory(str(tmp_path)) / "meta.json").read_text())


def _safetensors(tensors):
    """A file of the format, from names to bytes."""
    offsets, end = {}, 0
    for name, data in tensors.items():
        offsets[name] = {
            "dtype": "U8",
            "shape": [len(data)],
            "data_offsets": [end, end + len(data)],
        }
        end += len(data)
    header = json.dumps({"__metadata__": {"format": "pt"}, **offsets}).encode()
    return len(header).to_bytes(8, "little") + header + b"".join(tensors.values())


TENSORS = {
    "embed": bytes(3_000_000),
    "norm": bytes(1152),
    "up": bytes(2_000_000),
    "norm2": bytes(64 << 10),
    "down": bytes(70_000),
}


def _changed(name, at, size=16):
    data = bytearray(TENSORS[name])
    data[at : at + size] = b"x" * size
    return TENSORS | {name: bytes(data)}


@pytest.mark.parametrize(
    "tensors",
    [
        _changed("norm", 1100),
        _changed("norm2", 50_000),
        _changed("embed", 1_500_000),
        _changed("down", 35_000),
        dict(reversed(TENSORS.items())),
        {f"{name}.weight": data for name, data in TENSORS.items()},
    ],
    ids=["norm", "another-norm", "big-tensor", "last-tensor", "order", "names"],
)
def test_one_other_tensor_is_another_model(tmp_path, tensors):
    (tmp_path / "a.safetensors").write_bytes(_safetensors(TENSORS))
    (tmp_path / "b.safetensors").write_bytes(_safetensors(tensors))
    assert weights_id(tmp_path / "a.safetensors") != weights_id(tmp_path / "b.safetensors")


def test_a_copy_of_safetensors_is_the_same_model(tmp_path):
    for name in ("a", "b"):
        _model(tmp_path / name, _safetensors(TENSORS))
    assert weights_id(tmp_path / "a") == weights_id(tmp_path / "b")


def test_a_model_of_very_many_tensors_is_sampled(tmp_path, monkeypatch):
    monkeypatch.setattr("lmkv.weights._MOST_READS", 10)
    reads = []
    pread = os.pread
    monkeypatch.setattr(os, "pread", lambda *args: reads.append(args) or pread(*args))
    tensors = {f"t{index}": bytes([index]) * 100 for index in range(35)}
    for name in ("a", "b"):
        _model(tmp_path / name, _safetensors(tensors))
    (tmp_path / "a" / "model-00002-of-00002.safetensors").unlink()
    first = weights_id(tmp_path / "a")
    assert 5 <= len(reads) <= 10
    (tmp_path / "b" / "model-00002-of-00002.safetensors").unlink()
    assert weights_id(tmp_path / "b") == first


@pytest.mark.parametrize(
    "header", [b"", b"[]", b"{", b'{"a": 1}', b'{"a": {"data_offsets": "no"}}', b"\xff"]
)
def test_a_file_that_only_has_the_suffix_is_sampled_evenly(tmp_path, header):
    for name, tail in (("a", b"1"), ("b", b"1"), ("c", b"2")):
        content = len(header).to_bytes(8, "little") + header + tail * 100_000
        (tmp_path / f"{name}.safetensors").write_bytes(content)
    a, b, c = (weights_id(tmp_path / f"{name}.safetensors") for name in "abc")
    assert a == b != c


def _model(directory, weights=b"w" * 3_000_000, config=b"{}"):
    directory.mkdir()
    (directory / "model-00001-of-00002.safetensors").write_bytes(weights)
    (directory / "model-00002-of-00002.safetensors").write_bytes(b"tail")
    (directory / "config.json").write_bytes(config)
    (directory / "README.md").write_text(str(directory))
    return directory


def test_a_copy_of_a_model_is_the_same_model(tmp_path):
    assert weights_id(_model(tmp_path / "a")) == weights_id(_model(tmp_path / "b"))


@pytest.mark.parametrize("where", [0, 1_500_000, 2_999_999])
def test_other_weights_of_the_same_size_are_another_model(tmp_path, where):
    tuned = bytearray(b"w" * 3_000_000)
    # A fine-tune changes whole tensors: far more than the distance between samples.
    tuned[max(0, where - 40_000) : where + 40_000] = b"x" * len(
        tuned[max(0, where - 40_000) : where + 40_000]
    )
    assert weights_id(_model(tmp_path / "a")) != weights_id(_model(tmp_path / "b", bytes(tuned)))


def test_other_settings_or_sizes_are_another_model(tmp_path):
    ids = {
        weights_id(_model(tmp_path / "a")),
        weights_id(_model(tmp_path / "b", config=b'{"rope_theta": 1}')),
        weights_id(_model(tmp_path / "c", weights=b"w" * 3_000_001)),
    }
    assert len(ids) == 3


def test_a_single_weights_file_is_known_by_its_content(tmp_path):
    for name, content in (("a.gguf", b"1"), ("b.gguf", b"1"), ("c.gguf", b"2")):
        (tmp_path / name).write_bytes(content * 100_000)
    a, b, c = (weights_id(tmp_path / f"{name}.gguf") for name in "abc")
    assert a == b != c


def test_a_directory_without_weights_has_no_id(tmp_path):
    assert weights_id(tmp_path) == ""

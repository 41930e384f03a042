"""Real vLLM engines with a real model share KV through a directory.

Engines run one after the other, each in a process of its own (``engine_driver.py``); those that
do not need a fresh one share it. The whole file takes some minutes on two cores.
"""

import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import pytest
from engine_process import BLOCK, HERE, PACKAGE, Engine

HEADER = 4096
PROMPT_TOKENS = 2300
KNOWN_SECONDS = 11.0  # longer than a lookup is remembered (csrc/store/lookup_service.hpp)

pytestmark = [pytest.mark.engine, pytest.mark.slow, pytest.mark.timeout(600)]


@pytest.fixture(scope="session")
def model():
    from lmkv.demo.model import prepare_smollm2

    return prepare_smollm2()


@pytest.fixture(scope="session")
def tokens(model):
    """The token ids of a real text, long enough for every prompt here."""
    from tokenizers import Tokenizer

    documents = sorted((PACKAGE / "lmkv" / "demo" / "documents").glob("*.md"))
    text = "\n".join(document.read_text() for document in documents)
    ids = Tokenizer.from_file(str(model / "tokenizer.json")).encode(text).ids
    return (ids * (1 + 3000 // len(ids)))[:3000]


@pytest.fixture(scope="session")
def prompt(tokens):
    return tokens[:PROMPT_TOKENS]


@pytest.fixture(scope="session")
def short_prompts(tokens):
    """Prompts of one chunk and a tail, no two with a common prefix."""
    return [tokens[start : start + 300] for start in range(7, 7 + 5 * 101, 101)]


@pytest.fixture(scope="module")
def logs(tmp_path_factory):
    return tmp_path_factory.mktemp("logs")


class Written:
    """What the first engine answered and left in the directory."""

    def __init__(self, root, long, short, digests):
        self.root = root
        self.long = long
        self.short = short
        self.digests = digests


@pytest.fixture(scope="module")
def written(model, prompt, short_prompts, logs, tmp_path_factory):
    """A cold engine's answers; the engine is gone, its directory stays."""
    root = tmp_path_factory.mktemp("shared") / "cache"
    with Engine(model, root, logs / "first.log") as engine:
        engine.generate(prompt[-40:])  # the first request of an engine is slow for other reasons
        long = engine.generate(prompt)
        digests = engine.ask("kv", prompt=prompt)
        short = [engine.generate(one) for one in short_prompts]
    return Written(root, long, short, digests)


@pytest.fixture(scope="module")
def second(model, written, logs):
    """A fresh engine over the first one's directory."""
    with Engine(model, written.root, logs / "second.log", start="spawn") as engine:
        yield engine


@pytest.fixture(scope="module")
def hit(second, prompt):
    """The second engine's answer to the first one's question, after a warm-up like the first's."""
    second.generate(prompt[-40:])
    return second.generate(prompt)


def chunk_files(root):
    return sorted(root.glob("v1/*/r0/*/*.kv"))


def files_of(root, keys):
    return [next(root.glob(f"v1/*/r0/*/{key}.kv")) for key in keys]


def test_a_cold_engine_stores_its_prompt(written):
    assert written.long["counters"]["chunks_stored"] == 9
    assert "tokens_loaded" not in written.long["counters"]
    assert len(chunk_files(written.root)) == 9 + 2 * len(written.short) + 1


def test_a_fresh_engine_gives_the_same_answer_from_the_first_ones_kv(written, hit):
    assert hit["tokens"] == written.long["tokens"]
    loaded = (PROMPT_TOKENS - 1) // BLOCK * BLOCK
    assert hit["counters"]["tokens_loaded"] == loaded
    assert hit["counters"]["external_prefix_cache_hits"] == loaded
    assert hit["cached"] == loaded
    assert "chunks_stored" not in hit["counters"]


def test_a_fresh_engine_answers_several_times_faster(written, second, prompt, hit):
    # The machine's speed drifts: the same engine also computes such a prompt right after it.
    cold = second.generate(prompt[::-1])
    assert "tokens_loaded" not in cold["counters"]
    assert hit["ttft"] * 5 <= max(written.long["ttft"], cold["ttft"])


def test_the_loaded_kv_is_the_first_ones_block_by_block(written, second, prompt, hit):
    loaded = hit["counters"]["tokens_loaded"] // BLOCK
    assert loaded == 71
    assert second.ask("kv", prompt=prompt)[:loaded] == written.digests[:loaded]


def _flip_a_byte(file, _):
    data = bytearray(file.read_bytes())
    data[HEADER + len(data) // 3] ^= 1
    file.write_bytes(data)


def _truncate(file, _):
    os.truncate(file, file.stat().st_size // 2)


def _empty(file, _):
    os.truncate(file, 0)


def _another_keys_content(file, other):
    shutil.copyfile(other, file)


def _a_directory(file, _):
    file.unlink()
    file.mkdir()


DAMAGES = [_flip_a_byte, _truncate, _empty, _another_keys_content, _a_directory]


@pytest.fixture(scope="module")
def short_files(written, model, short_prompts):
    """The whole-chunk files of the short prompts, in their order."""
    from vllm.utils.hashing import sha256
    from vllm.v1.core.kv_cache_utils import hash_block_tokens, init_none_hash

    init_none_hash(sha256)
    files = []
    for one in short_prompts:
        parent = None
        for begin in range(0, 256, BLOCK):
            parent = hash_block_tokens(sha256, parent, one[begin : begin + BLOCK], None)
        files.append(next(written.root.glob(f"v1/*/r0/*/{parent.hex()}.kv")))
    return files


@pytest.mark.parametrize("index", range(5), ids=[damage.__name__[1:] for damage in DAMAGES])
def test_a_bad_file_changes_no_answer_and_is_replaced(
    written, second, short_prompts, short_files, index
):
    file, size = short_files[index], short_files[index].stat().st_size
    before = file.read_bytes()
    DAMAGES[index](file, short_files[(index + 1) % 5])
    result = second.generate(short_prompts[index])
    assert result["tokens"] == written.short[index]["tokens"]
    assert result["counters"]["chunks_bad"] == 1
    assert result["counters"]["chunks_bad_removed"] == 1
    assert result["counters"]["tokens_failed"] == 256 + BLOCK
    # It was computed and stored again.
    assert result["counters"]["chunks_stored"] == 1
    assert file.is_file()
    assert file.stat().st_size == size
    assert file.read_bytes()[HEADER:] == before[HEADER:]


def test_a_missing_file_is_a_miss(written, second, short_prompts, short_files):
    assert second.ask("forget")
    short_files[2].unlink()
    time.sleep(KNOWN_SECONDS)
    result = second.generate(short_prompts[2])
    assert result["tokens"] == written.short[2]["tokens"]
    assert "chunks_bad" not in result["counters"]
    assert short_files[2].exists()


@pytest.fixture(scope="module")
def other_model(tmp_path_factory):
    """A model of the same vocabulary with weights of its own."""
    directory = tmp_path_factory.mktemp("other-model")
    config = {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "hidden_size": 128,
        "intermediate_size": 256,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "num_hidden_layers": 2,
        "vocab_size": 49152,
        "max_position_embeddings": 8192,
        "torch_dtype": "float32",
    }
    (directory / "config.json").write_text(json.dumps(config))
    return directory


@pytest.mark.parametrize("difference", ["dtype", "block_size", "model"])
def test_an_engine_that_differs_never_hits(
    model, other_model, written, short_prompts, logs, difference
):
    arguments = {
        "dtype": {"dtype": "bfloat16"},
        "block_size": {"block_size": 64},
        "model": {"load_format": "dummy", "skip_tokenizer_init": True},
    }[difference]
    which = other_model if difference == "model" else model
    namespaces = {path.name for path in (written.root / "v1").iterdir()}
    with Engine(which, written.root, logs / f"{difference}.log", **arguments) as engine:
        cold = engine.generate(short_prompts[0])
        assert "external_prefix_cache_hits" not in cold["counters"]
        assert "chunks_loaded" not in cold["counters"]
        assert cold["counters"]["chunks_stored"] == (1 if difference == "block_size" else 2)
        # What it stored itself it finds again.
        assert engine.ask("forget")
        warm = engine.generate(short_prompts[0])
        assert warm["counters"]["tokens_loaded"] >= 256
        assert warm["tokens"] == cold["tokens"]
    new = {path.name for path in (written.root / "v1").iterdir()} - namespaces
    assert len(new) == 1
    assert json.loads((written.root / "v1" / new.pop() / "meta.json").read_text())["facts"]


@pytest.fixture
def tmpfs():
    free = shutil.disk_usage("/dev/shm").free
    if free < 1 << 30:
        pytest.skip(f"needs 1 GiB of memory in /dev/shm, this machine gives {free >> 20} MiB")
    directory = Path(tempfile.mkdtemp(prefix="lmkv-test-", dir="/dev/shm"))
    yield directory
    shutil.rmtree(directory)


@pytest.fixture
def fuse(tmp_path):
    """A mount that refuses O_DIRECT."""
    if not os.access("/dev/fuse", os.R_OK | os.W_OK) or not shutil.which("fusermount3"):
        pytest.skip("needs /dev/fuse and fusermount3, which this machine does not give")
    source, mount = tmp_path / "source", tmp_path / "mount"
    source.mkdir()
    mount.mkdir()
    server = subprocess.Popen(
        [sys.executable, str(HERE / "fuse_without_direct_io.py"), str(source), str(mount)],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    try:
        deadline = time.monotonic() + 20
        while not mount.is_mount():
            assert time.monotonic() < deadline
            assert server.poll() is None
            time.sleep(0.05)
        with pytest.raises(OSError, match="Invalid argument"):
            os.open(mount / "probe", os.O_CREAT | os.O_WRONLY | os.O_DIRECT)
        yield mount
    finally:
        if subprocess.run(["fusermount3", "-u", str(mount)], check=False).returncode:
            subprocess.run(["fusermount3", "-uz", str(mount)], check=False)
        server.terminate()
        try:
            server.wait(20)
        finally:
            server.kill()


@pytest.fixture
def shared_over(model, written, prompt, short_prompts, short_files, logs):
    """Runs an engine over a copy of the first one's directory; returns what it logged."""

    def check(name, root, extra=None):
        if root != written.root:
            shutil.copytree(written.root, root)
        file = root / short_files[4].relative_to(written.root)
        before = file.read_bytes()
        file.unlink()
        with Engine(model, root, logs / f"{name}.log", extra) as engine:
            # What another engine stored is loaded ...
            hit = engine.generate(prompt)
            assert hit["tokens"] == written.long["tokens"]
            assert hit["counters"]["tokens_loaded"] == (PROMPT_TOKENS - 1) // BLOCK * BLOCK
            assert engine.ask("kv", prompt=prompt)[:71] == written.digests[:71]
            # ... and what is missing is stored, to the byte as before.
            result = engine.generate(short_prompts[4])
            assert result["tokens"] == written.short[4]["tokens"]
            assert result["counters"]["chunks_stored"] == 1
        assert file.read_bytes()[HEADER:] == before[HEADER:]
        return (logs / f"{name}.log").read_text()

    return check


def test_threads_instead_of_io_uring_give_the_same(written, shared_over):
    said = shared_over("threads", written.root, {"io_engine": "threads"})
    assert "io engine threads (asked for)" in said


def test_a_directory_on_tmpfs_gives_the_same_whether_it_takes_o_direct_or_not(tmpfs, shared_over):
    assert re.search(r"direct I/O (on|off) \(.+?\)", shared_over("tmpfs", tmpfs / "cache"))


def test_where_o_direct_is_refused_the_page_cache_gives_the_same(fuse, shared_over):
    said = shared_over("fuse", fuse / "cache")
    assert re.search(r"direct I/O off \([^)]*(Invalid argument|does not support O_DIRECT)", said)

"""``lmkv explain`` says of a prompt what an engine then does with it.

With lmkv's real scheduler and worker over a tiny model, and with one real engine on a real model.
"""

import json
import os
import shutil

import pytest
from engine_process import BLOCK as REAL_BLOCK
from engine_process import PACKAGE
from engine_process import Engine as RealEngine
from scheduler_harness import BLOCK, CHUNK, FULL, PER_CHUNK, Engine, window
from test_ranks import Ranks
from test_ranks import run as run_ranks
from typer.testing import CliRunner
from worker_harness import run

from lmkv import _C
from lmkv.cli import app

PROMPT = [token % 512 for token in range(3 * CHUNK + 2 * BLOCK + 9)]
LOADABLE = 3 * CHUNK + 2 * BLOCK


@pytest.fixture
def make(engines_with_workers, tiny_model, root):
    return lambda **extra: engines_with_workers(tiny_model, root, **extra)


@pytest.fixture
def explain(tmp_path):
    """Runs the command for token ids; its exit status and the only namespace's answer."""

    def ask(tokens, *arguments):
        file = tmp_path / "tokens.json"
        file.write_text(json.dumps(tokens))
        return answer("--tokens", file, *arguments)

    return ask


def answer(*arguments):
    told = CliRunner().invoke(app, ["explain", *map(str, arguments), "--json"])
    assert told.exit_code in {0, 1}, told.stderr
    read = CliRunner().invoke(app, ["explain", *map(str, arguments)])
    assert read.exit_code == told.exit_code
    (one,) = json.loads(told.stdout)["namespaces"]
    assert one["why"] in read.stdout
    return told.exit_code, one


def store(engine, tokens, name="stored"):
    request = engine.request(name, tokens)
    run(engine)
    return request


def loads(engine, tokens, name="again"):
    """How many tokens an engine that has not seen the prompt finds of it."""
    before = dict(engine.counted)
    engine.request(name, tokens)
    run(engine)
    return engine.counted.get("tokens_loaded", 0) - before.get("tokens_loaded", 0)


def path_of(chunk, rank=0):
    return chunk["files"][rank]["path"]


def test_all_of_what_an_engine_stored_is_there(make, root, explain):
    store(make(), PROMPT)
    code, one = explain(PROMPT, root)
    assert code == 0
    assert one["loadable_tokens"] == one["wanted_tokens"] == LOADABLE
    assert [chunk["state"] for chunk in one["chunks"]] == ["present"] * 4
    assert [chunk["is_tail"] for chunk in one["chunks"]] == [False] * 3 + [True]
    assert one["stops_at"] is None
    assert f"The first {LOADABLE} of {len(PROMPT)} tokens can be loaded" in one["why"]
    for chunk in one["chunks"]:
        assert os.path.getsize(path_of(chunk)) == chunk["files"][0]["bytes"]
    assert loads(make(), PROMPT) == LOADABLE


@pytest.mark.parametrize("at", [0, CHUNK - 1, CHUNK, 2 * CHUNK + 5, LOADABLE - 1, LOADABLE])
def test_a_prompt_that_differs_breaks_where_the_engine_finds_nothing_more(make, root, explain, at):
    store(make(), PROMPT)
    other = [*PROMPT[:at], (PROMPT[at] + 1) % 512, *PROMPT[at + 1 :]]
    code, one = explain(other, root)
    whole = at // CHUNK * CHUNK if at < LOADABLE else LOADABLE
    assert one["loadable_tokens"] == whole
    assert code == (0 if whole == LOADABLE else 1)
    if whole < LOADABLE:
        assert one["stops_at"]["begin"] == whole
        assert "the prompt differs in it" in one["why"]
    assert loads(make(), other) == whole


def test_of_a_hybrid_it_says_what_it_did_not_look_at(
    engines_with_workers, tiny_model, root, explain
):
    store(engines_with_workers(tiny_model, root, [window(64), FULL]), PROMPT)
    code, one = explain(PROMPT, root)
    assert (code, one["loadable_tokens"]) == (0, LOADABLE)
    assert "windows or states, which are not looked at here" in one["why"]


def test_a_chunk_that_was_removed_is_named(make, root, explain):
    store(make(), PROMPT)
    _, before = explain(PROMPT, root)
    os.remove(path_of(before["chunks"][1]))
    code, one = explain(PROMPT, root)
    assert code == 1
    assert one["loadable_tokens"] == CHUNK
    assert one["stops_at"]["key"] == before["chunks"][1]["key"]
    assert f"chunk 2 (tokens {CHUNK} to {2 * CHUNK - 1}) is missing" in one["why"]
    assert "what is stored behind it is of the same prompt" in one["why"]
    assert loads(make(), PROMPT) == CHUNK


def test_a_tail_of_a_shorter_prompt_is_found(make, root, explain):
    store(make(), PROMPT[: CHUNK + 2 * BLOCK + 1])
    _, one = explain(PROMPT, root)
    assert one["loadable_tokens"] == CHUNK + 2 * BLOCK
    assert one["stops_at"]["number"] == 2
    assert [chunk["is_tail"] for chunk in one["chunks"]] == [False, True, False, False, True]
    assert loads(make(), PROMPT) == CHUNK + 2 * BLOCK


def flip_in_header(path):
    _flip(path, 100)


def flip_in_blocks(path):
    _flip(path, 5000)


def cut(path):
    os.truncate(path, 5000)


def _flip(path, offset):
    with open(path, "r+b") as file:
        file.seek(offset)
        byte = file.read(1)[0]
        file.seek(offset)
        file.write(bytes([byte ^ 1]))


@pytest.mark.parametrize(
    ("damage", "why", "only_whole"),
    [
        (flip_in_header, "header checksum mismatch", False),
        (flip_in_blocks, "block checksum mismatch", True),
        (cut, "not as long as its header says", False),
    ],
)
def test_a_bad_chunk_is_named_with_what_is_wrong(make, root, explain, damage, why, only_whole):
    store(make(), PROMPT)
    _, before = explain(PROMPT, root)
    damage(path_of(before["chunks"][2]))
    code, one = explain(PROMPT, root)
    assert (code == 0) == only_whole
    code, one = explain(PROMPT, root, "--verify")
    assert code == 1
    assert one["stops_at"]["state"] == "bad"
    assert one["loadable_tokens"] == 2 * CHUNK
    assert "chunk 3" in one["why"]
    assert why in one["why"]
    assert loads(make(), PROMPT) == 2 * CHUNK


def test_a_chunk_of_another_prompt_under_the_name_is_bad(make, root, explain):
    store(make(), PROMPT)
    _, before = explain(PROMPT, root)
    shutil.copyfile(path_of(before["chunks"][0]), path_of(before["chunks"][1]))
    _, one = explain(PROMPT, root)
    assert one["stops_at"]["number"] == 2
    assert "another key" in one["why"]


def test_a_rank_that_lacks_a_chunk_is_named(tiny_model, root, explain):
    engine = Engine(tiny_model, root, ranks=2, hello=False, extra={"host_memory": "64MiB"})
    engine.config.parallel_config.tensor_parallel_size = 2
    ranks = Ranks(engine)
    engine.request("stored", PROMPT)
    run_ranks(engine)
    ranks.drain()
    code, one = explain(PROMPT, root)
    assert code == 0
    assert [file["rank"] for file in one["chunks"][0]["files"]] == [0, 1]
    os.remove(path_of(one["chunks"][1], rank=1))
    code, one = explain(PROMPT, root)
    for worker in ranks.workers:
        worker.connector.shutdown()
    assert (code, one["loadable_tokens"]) == (1, CHUNK)
    assert [file["state"] for file in one["stops_at"]["files"]] == ["present", "missing"]
    assert "is missing in rank 1" in one["why"]


def test_of_several_directories_each_chunk_is_looked_for_where_it_belongs(
    engines_with_workers, tiny_model, tmp_path, explain
):
    both = [tmp_path / "a", tmp_path / "b"]
    paths = [str(path) for path in both]
    store(engines_with_workers(tiny_model, both[0], path=paths), PROMPT)
    code, one = explain(PROMPT, *both)
    assert code == 0
    for chunk in one["chunks"]:
        home = paths[_C.root_of(paths, bytes.fromhex(chunk["key"]))]
        assert chunk["files"][0]["root"] == home
    moved = path_of(one["chunks"][0])
    home, other = paths if moved.startswith(paths[0]) else reversed(paths)
    elsewhere = moved.replace(home, other)
    os.makedirs(os.path.dirname(elsewhere), exist_ok=True)
    os.rename(moved, elsewhere)
    code, one = explain(PROMPT, *both)
    assert code == 1
    assert f"lies in {other}" in one["why"]
    assert one["loadable_tokens"] == 0


@pytest.mark.parametrize("algorithm", ["sha256", "sha256_cbor"])
def test_the_hash_algorithm_and_seed_are_those_of_the_namespace(
    root, explain, algorithm, monkeypatch
):
    from vllm.utils.hashing import get_hash_fn_by_name
    from vllm.v1.core import kv_cache_utils

    from lmkv.namespace import Namespace
    from lmkv.vllm.lookup import chunk_key
    from lmkv.vllm.prompt import block_hashes

    monkeypatch.setenv("PYTHONHASHSEED", "5")
    facts = {
        "block_tokens": BLOCK, "chunk_tokens": CHUNK, "tensor_parallel": 1,
        "pipeline_parallel": 1, "hash_algorithm": algorithm, "hash_seed": "77",
    }  # fmt: skip
    namespace = Namespace(facts)
    assert namespace.write_meta(str(root), {"model": "m"}) is None
    _, one = explain(PROMPT, root)
    assert os.environ["PYTHONHASHSEED"] == "5"
    # As an engine of that seed has them.
    monkeypatch.setenv("PYTHONHASHSEED", "77")
    function = get_hash_fn_by_name(algorithm)
    kv_cache_utils.init_none_hash(function)
    parent, hashes = None, []
    for begin in range(0, CHUNK, BLOCK):
        parent = kv_cache_utils.hash_block_tokens(function, parent, PROMPT[begin : begin + BLOCK])
        hashes.append(parent)
    assert one["chunks"][0]["key"] == chunk_key(hashes[PER_CHUNK - 1]).hex()
    salted = block_hashes(
        PROMPT, block_tokens=BLOCK, algorithm=algorithm, seed="77", cache_salt="s"
    )
    assert not set(salted) & set(hashes)


@pytest.mark.parametrize("algorithm", ["xxhash", "novel"])
def test_an_algorithm_that_is_not_to_be_had_here_is_said(root, algorithm, monkeypatch):
    from lmkv.namespace import Namespace

    monkeypatch.setattr("vllm.utils.hashing._xxhash", None)
    facts = {
        "block_tokens": BLOCK, "chunk_tokens": CHUNK, "tensor_parallel": 1,
        "pipeline_parallel": 1, "hash_algorithm": algorithm, "hash_seed": "1",
    }  # fmt: skip
    assert Namespace(facts).write_meta(str(root), {"model": "m"}) is None
    told = CliRunner().invoke(app, ["explain", str(root), "--tokens", "-"], input="1 2 3")
    assert told.exit_code == 2
    assert f"vLLM cannot hash by {algorithm} here" in told.stderr


def test_of_a_random_seed_nothing_can_be_said(root, explain):
    from lmkv.namespace import Namespace

    facts = {
        "block_tokens": BLOCK, "chunk_tokens": CHUNK, "tensor_parallel": 1,
        "pipeline_parallel": 1, "hash_algorithm": "xxhash", "hash_seed": "private to engine e",
    }  # fmt: skip
    assert Namespace(facts).write_meta(str(root), {"model": "m"}) is None
    code, one = explain(PROMPT, root)
    assert code == 1
    assert "set PYTHONHASHSEED" in one["why"]
    assert "chunks" not in one


def test_a_prompt_of_a_block_is_stored_nowhere(make, root, explain):
    make()
    code, one = explain(PROMPT[:BLOCK], root)
    assert code == 1
    assert "takes a whole block" in one["why"]


@pytest.mark.parametrize(
    "arguments",
    [
        ("{root}",),
        ("{root}", "--text", "a", "--file", "b"),
        ("{root}", "--tokens", "/nonexistent"),
        ("{root}", "--tokens", "{words}"),
        ("{root}", "--request", "{words}"),
        ("{root}", "--text", "a", "--model", "/no/such/model"),
        ("{root}", "--text", "a", "--namespace", "f" * 16),
        ("{root}", "--text", "a"),
        ("/nonexistent", "--text", "a"),
    ],
)
def test_what_cannot_be_done_is_one_line_and_status_2(make, root, tmp_path, arguments):
    make()
    words = tmp_path / "words"
    words.write_text("one two")
    told = CliRunner().invoke(
        app, ["explain", *(one.format(root=root, words=words) for one in arguments)]
    )
    assert told.exit_code == 2, told.stdout
    assert told.stderr.startswith("error: ")
    assert len(told.stderr.splitlines()) == 1


def test_namespaces_are_chosen_by_model(make, tiny_model, root, explain, tmp_path):
    from lmkv.namespace import Namespace

    make()
    facts = json.loads(next(root.glob("v1/*/meta.json")).read_text())["facts"]
    other = Namespace({**facts, "model": "org/other  revision  commit "})
    assert other.write_meta(str(root), {"model": "org/other"}) is None
    _, one = explain(PROMPT, root, "--model", "org/other")
    assert one["name"] == other.short
    _, one = explain(PROMPT, root, "--model", tiny_model)
    assert one["name"] != other.short


GUIDE = (PACKAGE / "lmkv" / "demo" / "documents" / "guide.md").read_text()


@pytest.mark.engine
@pytest.mark.slow
@pytest.mark.timeout(300)
def test_it_agrees_with_a_real_engine(tmp_path, explain):
    """One engine, asked as people ask it; each prompt is explained before and after it is."""
    from lmkv.demo.model import prepare_smollm2

    model, root = prepare_smollm2(), tmp_path / "cache"
    chat = [
        {"role": "system", "content": "You are brief."},
        {"role": "user", "content": GUIDE[:500]},
    ]
    text, salted = GUIDE[3000:3700], list(range(1000, 1100))
    (tmp_path / "text").write_text(text)
    request = {"messages": chat, "max_tokens": 5, "temperature": 0}
    (tmp_path / "request").write_text(json.dumps(request))
    with RealEngine(model, root, tmp_path / "log", {"chunk_tokens": 64}) as engine:

        def ask(prompt, **more):
            return engine.ask("generate", prompt=prompt, **more)

        asked = ask(chat)
        code, one = answer(root, "--request", tmp_path / "request")
        assert (code, one["tokens"]) == (0, len(asked["prompt"]))
        assert one["loadable_tokens"] == (one["tokens"] - 1) // REAL_BLOCK * REAL_BLOCK > 64

        asked = ask(text)
        code, one = answer(root, "--file", tmp_path / "text", "--model", model)
        assert (code, one["tokens"]) == (0, len(asked["prompt"]))
        code, one = explain(asked["prompt"], root)
        assert code == 0
        assert one["model"] == str(model)

        # What it says of a prompt that differs in the middle is what the engine then does.
        other = list(asked["prompt"])
        other[100] = (other[100] + 1) % 1000
        code, one = explain(other, root)
        assert (code, one["loadable_tokens"], one["stops_at"]["number"]) == (1, 64, 2)
        assert engine.ask("forget")
        assert ask(other)["counters"]["tokens_loaded"] == 64
        assert explain(other, root)[0] == 0

        os.remove(path_of(one["chunks"][0]))
        _, one = explain(other, root)
        assert one["loadable_tokens"] == 0
        assert "chunk 1 (tokens 0 to 63) is missing" in one["why"]

        ask(salted, cache_salt="tenant")
        assert explain(salted, root)[0] == 1
        assert explain(salted, root, "--cache-salt", "tenant")[0] == 0

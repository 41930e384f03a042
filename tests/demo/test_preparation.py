"""What is settled before an engine starts: document, model, context length, the run's folder."""

from __future__ import annotations

import fcntl
import json
from pathlib import Path

import pytest

pytest.importorskip("tokenizers", reason="the demo's dependencies are not installed")

from tokenizers import Tokenizer, models, pre_tokenizers

from lmkv.demo import document, machine, model_choice, plan
from lmkv.demo.document import Document
from lmkv.demo.errors import DemoError
from lmkv.demo.machine import Machine
from lmkv.demo.run_folder import KV, run_folder

CPU = Machine(gpus=(), gpu_memory_gib=0.0, cores=2, memory_gib=16.0)
GPU = Machine(gpus=("0",), gpu_memory_gib=80.0, cores=8, memory_gib=64.0)


@pytest.fixture
def model(tmp_path: Path) -> Path:
    """A model folder whose tokenizer counts words and whose context is 10,000 tokens."""
    folder = tmp_path / "model"
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps({"max_position_embeddings": 10_000}))
    tokenizer = Tokenizer(models.WordLevel({"[unk]": 0}, unk_token="[unk]"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.save(str(folder / "tokenizer.json"))
    return folder


def words(count: int) -> Document:
    return Document("words.txt", "word " * count)


def test_the_shipped_document_leaves_room_for_the_question_and_is_our_own() -> None:
    text = document.load(None).text
    assert text.startswith("# lmkv user guide")
    assert "Limits of this version" in text


def test_messages_end_with_the_question_so_that_other_questions_share_the_prefix() -> None:
    text = words(3)
    one, other = (text.messages(question)[-1]["content"] for question in ("Why?", "How?"))
    assert one.partition("Why?")[0] == other.partition("How?")[0]
    assert one.startswith("word word word")


@pytest.mark.parametrize("content", [None, b"", b" \n", b"\xff\xfe\x00"])
def test_a_document_that_cannot_be_read_is_an_error(tmp_path: Path, content: bytes | None) -> None:
    path = tmp_path / "document.txt"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(DemoError, match=r"document\.txt"):
        document.load(path)


@pytest.mark.parametrize(("length", "expected"), [(100, 4096), (4000, 8192), (9000, 10_000)])
def test_the_context_length_grows_with_the_document(
    model: Path, length: int, expected: int
) -> None:
    chosen = model_choice.choose(str(model), CPU, 4, words(length), max_tokens=48)
    assert chosen.max_len == expected
    assert chosen.source == str(model)


def test_a_document_longer_than_the_models_context_is_an_error(model: Path) -> None:
    with pytest.raises(DemoError, match=r"too long for model.* 10,112 tokens.* takes 10,000"):
        model_choice.choose(str(model), CPU, 4, words(10_000), max_tokens=48)


def test_a_missing_model_folder_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(DemoError, match="no model folder"):
        model_choice.choose(str(tmp_path / "missing"), CPU, 4, words(1), 48)
    with pytest.raises(DemoError, match=r"no config\.json"):
        model_choice.choose(str(tmp_path), CPU, 4, words(1), 48)


def test_a_name_is_left_to_vllm() -> None:
    assert model_choice.choose("org/name", GPU, 4, words(1), 48).max_len == 0
    assert model_choice.choose("org/name", CPU, 4, words(1), 48).max_len == 4096


def test_without_a_gpu_the_default_is_the_small_model(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(model_choice, "_available", lambda name: True)
    monkeypatch.setattr(model_choice, "prepare_smollm2", lambda: Path("/small"))
    assert model_choice._default(CPU, 4) == "/small"


@pytest.mark.parametrize(
    ("engines", "online", "expected"),
    [
        (1, True, "Qwen/Qwen2.5-7B-Instruct"),
        (4, True, "Qwen/Qwen2.5-1.5B-Instruct"),
        (4, False, "/small"),
    ],
)
def test_with_a_gpu_the_default_is_what_fits_and_can_be_had(
    engines: int, online: bool, expected: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(model_choice, "_available", lambda name: online)
    monkeypatch.setattr(model_choice, "prepare_smollm2", lambda: Path("/small"))
    assert model_choice._default(GPU, engines) == expected


def test_without_vllm_the_error_says_how_to_get_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(machine.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(DemoError, match="vLLM is not installed") as error:
        machine.look()
    assert "make demo" in error.value.hint


def test_gpus_are_those_that_cuda_visible_devices_leaves(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tool = tmp_path / "nvidia-smi"
    tool.write_text("#!/bin/sh\necho '0, 81559'\necho '1, 40960'\n")
    tool.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    assert machine._nvidia_gpus() == (("0", "1"), 40.0)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "1")
    assert machine._nvidia_gpus()[0] == ("1",)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    assert machine._nvidia_gpus()[0] == ()
    tool.write_text("#!/bin/sh\nexit 9\n")
    assert machine._nvidia_gpus() == ((), 0.0)


def test_a_run_leaves_nothing_behind(tmp_path: Path) -> None:
    with run_folder(tmp_path) as folder:
        (folder / KV).mkdir()
        (folder / "engine.log").touch()
    assert not folder.exists()


def test_a_failed_run_keeps_its_logs_until_the_next_one(tmp_path: Path) -> None:
    context = run_folder(tmp_path)
    failed = context.__enter__()
    (failed / KV).mkdir()
    (failed / "engine.log").touch()
    assert not context.__exit__(KeyboardInterrupt, KeyboardInterrupt(), None)
    assert (failed / "engine.log").exists()
    assert not (failed / KV).exists()
    with run_folder(tmp_path):
        assert not failed.exists()


def test_a_running_runs_folder_is_left_alone(tmp_path: Path) -> None:
    with run_folder(tmp_path) as first:
        with run_folder(tmp_path):
            assert first.exists()
        with (first / "lock").open() as lock, pytest.raises(BlockingIOError):
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)


def test_engines_that_do_not_fit_into_the_memory_are_not_started() -> None:
    plan.check_memory(CPU, 4)
    plan.check_memory(GPU, 4)
    small = Machine(gpus=(), gpu_memory_gib=0.0, cores=2, memory_gib=8.0)
    plan.check_memory(small, 2)
    with pytest.raises(DemoError, match="4 engines need about 14 GiB of memory, and 8") as error:
        plan.check_memory(small, 4)
    assert "--engines" in error.value.hint

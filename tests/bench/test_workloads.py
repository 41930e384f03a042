"""``benchmarks/workloads.py``: two real engines and the same conversations; briefly."""

from __future__ import annotations

from pathlib import Path

import pytest
from programs import BENCHMARKS, result_of


@pytest.mark.engine
@pytest.mark.slow
@pytest.mark.timeout(300)
def test_conversations_that_left_vllms_cache_are_loaded(tmp_path: Path) -> None:
    result = result_of(
        "workloads.py", tmp_path, "--only", "multi_turn", "--repetitions", "1",
        "--kv-tokens", "1024", "--conversations", "3", "--turns", "2",
    )["multi_turn"]  # fmt: skip
    (row,) = result["rows"]
    assert row["prompt_tokens"] == 3 * (300 + (300 + 16 + 300))
    assert row["plain_seconds"] > 0
    assert row["lmkv_seconds"] > 0
    # The first turn of one conversation at least, a whole chunk of it.
    assert 256 / row["prompt_tokens"] <= result["share_loaded"] < 0.5
    assert result["same_answers"] > 0.8  # of seven answers one may be torn between two tokens


@pytest.mark.slow
def test_vllms_own_dataset_is_cut_into_batches(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("vllm", reason="vLLM is not installed")
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    import workloads

    size = workloads.Size(questions=3)
    batches = workloads.prefix_repetition(1, size)
    prompts = [prompt for batch in batches for prompt in batch]
    assert {len(batch) for batch in batches} == {workloads.AT_ONCE}
    assert len(prompts) == size.documents * 3
    heads = {tuple(prompt[: size.document_tokens // 2]) for prompt in prompts}
    assert len(heads) == size.documents
    assert len({tuple(prompt) for prompt in prompts}) == len(prompts)

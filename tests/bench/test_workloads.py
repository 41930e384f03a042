"""``benchmarks/workloads.py``: two real engines and the same conversations; briefly."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"


@pytest.mark.engine
@pytest.mark.slow
@pytest.mark.timeout(300)
def test_conversations_that_left_vllms_cache_are_loaded(tmp_path: Path) -> None:
    path = os.pathsep.join(path for path in sys.path if path)
    done = subprocess.run(
        [
            sys.executable, BENCHMARKS / "workloads.py", "--path", tmp_path, "--json", "-",
            "--only", "multi_turn", "--repetitions", "1", "--kv-tokens", "1024",
            "--conversations", "3", "--turns", "2",
        ],
        capture_output=True, text=True, check=False, env=os.environ | {"PYTHONPATH": path},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-4000:]
    result = json.loads(done.stdout)["multi_turn"]
    (row,) = result["rows"]
    assert row["prompt_tokens"] == 3 * (300 + (300 + 16 + 300))
    assert row["plain_seconds"] > 0
    assert row["lmkv_seconds"] > 0
    # The first turn of one conversation at least, a whole chunk of it.
    assert 256 / row["prompt_tokens"] <= result["share_loaded"] < 0.5
    assert result["same_answers"] > 0.8  # of seven answers one may be torn between two tokens
    assert list(tmp_path.iterdir()) == []


@pytest.mark.slow
def test_vllms_own_dataset_is_cut_into_batches(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("vllm", reason="vLLM is not installed")
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    import workloads

    batches = workloads.prefix_repetition(seed=1)
    prompts = [prompt for batch in batches for prompt in batch]
    assert {len(batch) for batch in batches} == {workloads.AT_ONCE}
    assert len(prompts) == workloads.DOCUMENTS * workloads.QUESTIONS
    heads = {tuple(prompt[: workloads.DOCUMENT_TOKENS // 2]) for prompt in prompts}
    assert len(heads) == workloads.DOCUMENTS
    assert len({tuple(prompt) for prompt in prompts}) == len(prompts)

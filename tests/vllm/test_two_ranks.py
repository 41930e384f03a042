"""Real engines of two ranks each, with a tiny random model on the CPU: ranks that share every layer
(TP), and ranks that have some of the layers each (PP).
"""

import json
import os

import pytest
from engine_process import BLOCK, Engine

CHUNK = 4 * BLOCK
CHUNKS = 5
GOOD = [(7 * i) % 500 for i in range(CHUNKS * CHUNK + 1)]
BAD = [3, *GOOD[1:]]

pytestmark = [pytest.mark.engine, pytest.mark.slow, pytest.mark.timeout(600)]


@pytest.fixture
def model(tmp_path):
    config = {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "hidden_size": 128,
        "intermediate_size": 256,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "num_hidden_layers": 2,
        "vocab_size": 512,
        "max_position_embeddings": 4096,
        "torch_dtype": "float32",
    }
    directory = tmp_path / "model"
    directory.mkdir()
    (directory / "config.json").write_text(json.dumps(config))
    return directory


def engine(model, root, log, how):
    return Engine(
        model,
        root,
        log,
        extra={"chunk_tokens": CHUNK, "host_memory": "64MiB", "load_policy": "always"},
        **how,
        load_format="dummy",
        skip_tokenizer_init=True,
        max_model_len=2048,
        max_num_batched_tokens=2048,
    )


def files(root, rank):
    return {file.name: file for file in root.glob(f"v1/*/r{rank}/*/*.kv")}


@pytest.mark.parametrize("kind", ["tensor_parallel_size", "pipeline_parallel_size"])
def test_two_ranks_load_what_two_others_stored_and_fail_together(kind, model, root, tmp_path):
    cores = sorted(os.sched_getaffinity(0))
    environ = {
        "VLLM_CPU_OMP_THREADS_BIND": f"{cores[0]}|{cores[-1]}",
        "VLLM_WORKER_MULTIPROC_METHOD": "fork",  # they need not import vLLM again
    }
    how = {kind: 2, "environ": environ}
    with engine(model, root, tmp_path / "first.log", how) as first:
        cold = first.generate(GOOD)
        good = files(root, 0).keys()
        bad = first.generate(BAD)
        assert "tokens_loaded" not in cold["counters"] | bad["counters"]
    assert len(good) == CHUNKS
    assert files(root, 0).keys() == files(root, 1).keys()
    # One rank's part of the other prompt is bad: neither rank has it.
    for name, file in files(root, 1).items():
        if name not in good:
            with file.open("r+b") as damaged:
                damaged.seek(5000)
                damaged.write(b"not what was stored")
    with engine(model, root, tmp_path / "second.log", how) as second:
        hit = second.generate(GOOD)
        assert hit["tokens"] == cold["tokens"]
        assert hit["cached"] == CHUNKS * CHUNK
        assert hit["counters"]["tokens_loaded"] == CHUNKS * CHUNK
        assert hit["counters"]["chunks_loaded"] == 2 * CHUNKS
        assert "memory_hits" not in hit["counters"]
        healed = second.generate(BAD)
        assert healed["tokens"] == bad["tokens"]
        assert healed["counters"]["tokens_failed"] == CHUNKS * CHUNK
        assert healed["counters"]["chunks_bad"] == CHUNKS
    assert len(files(root, 1)) == 2 * CHUNKS, "stored anew"

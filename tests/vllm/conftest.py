import json
import logging
import sys
from pathlib import Path

import pytest

# For the helpers that lie beside the tests (pytest imports test files by path).
sys.path.insert(0, str(Path(__file__).parent))


@pytest.fixture(scope="session")
def tiny_model(tmp_path_factory):
    """A model directory with a config and no weights: enough for a scheduler."""
    directory = tmp_path_factory.mktemp("tiny-llama")
    config = {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "hidden_size": 64,
        "intermediate_size": 128,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "num_hidden_layers": 2,
        "vocab_size": 512,
        "max_position_embeddings": 8192,
        "torch_dtype": "float32",
    }
    (directory / "config.json").write_text(json.dumps(config))
    return directory


@pytest.fixture(autouse=True)
def lookups_end_in_their_step(monkeypatch):
    """On a busy machine a step would not wait long enough for the filesystem."""
    monkeypatch.setattr("lmkv.vllm.lookup.WAIT_SECONDS", 30.0)


@pytest.fixture
def root(tmp_path):
    """The directory that the connector is given."""
    return tmp_path / "cache"


@pytest.fixture
def lines(caplog, monkeypatch):
    """What lmkv logs; vLLM's loggers do not propagate by themselves."""
    monkeypatch.setattr(logging.getLogger("vllm"), "propagate", True)
    caplog.set_level(logging.INFO, logger="vllm.lmkv")
    return lambda: [r.getMessage() for r in caplog.records if r.getMessage().startswith("lmkv:")]


@pytest.fixture
def engines_with_workers():
    """Makes engines with one real worker each, over a directory; all are shut down at the end."""
    from scheduler_harness import Engine
    from worker_harness import RealWorker

    workers = []

    def make(model, root, groups=None, **extra):
        options = {"groups": groups} if groups else {}
        extra = {"host_memory": "64MiB", **extra}
        engine = Engine(model, root, hello=False, extra=extra, **options)
        workers.append(RealWorker(engine))
        engine.greet(workers[-1].connector.get_handshake_metadata())
        return engine

    yield make
    for worker in workers:
        worker.connector.shutdown()

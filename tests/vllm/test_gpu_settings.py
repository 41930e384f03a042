"""What the worker tells the core about copying, and what it says when the GPU is lost."""

import pytest
import torch
from scheduler_harness import Engine
from worker_harness import RealWorker, checked_prompt

from lmkv.tuning import Tuning, save_tuning
from lmkv.vllm import worker as module


@pytest.fixture
def worker(tiny_model, root, request):
    extra = {"host_memory": "64MiB", **getattr(request, "param", {})}
    engine = Engine(tiny_model, root, hello=False, extra=extra)
    made = RealWorker(engine)
    engine.greet(made.connector.get_handshake_metadata())
    yield made
    made.connector.shutdown()


class LostGpu:
    """A real engine whose GPU has gone: it says so, and does what the core does then."""

    def __init__(self, real):
        self.real = real

    def __getattr__(self, name):
        return getattr(self.real, name)

    def stats(self):
        return self.real.stats() | {"device_lost": 1}

    def info(self):
        return self.real.info() | {"device_failure": "the GPU's context is lost: because"}


def test_a_lost_gpu_is_said_once_and_counted(worker, monkeypatch):
    lines = []
    monkeypatch.setattr(module.logger, "error", lambda text, *values: lines.append(text % values))
    side = worker.connector.worker_side
    side._engine = LostGpu(side._engine)
    for name in ("a", "b"):
        checked_prompt(worker.engine, name, 600)
    (said,) = [line for line in lines if "context is lost" in line]
    assert "rank 0: the GPU's context is lost: because." in said
    assert "restart the engine" in said
    assert worker.totals["device_lost"] == 1


@pytest.mark.parametrize(
    ("worker", "mode"),
    [({}, "auto"), ({"transfer": "kernel_mapped"}, "kernel_mapped")],
    indirect=["worker"],
)
def test_the_setting_and_what_was_measured_go_to_the_core(worker, mode, monkeypatch, tmp_path):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    measured = Tuning(gather_copy_engine_from=4096)
    save_tuning("Some GPU", measured)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: "Some GPU")
    used = []
    monkeypatch.setattr(Tuning, "options", lambda self, mode: used.append((self, mode)))
    side = worker.connector.worker_side
    side._on_cuda = True
    side._transfer_options(torch.device("cuda:0"))
    assert used[-1] == (measured, mode)

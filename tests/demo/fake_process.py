"""Engine processes that start `fake_engine.py` in the place of vLLM."""

from __future__ import annotations

import sys
from pathlib import Path

from lmkv.demo import ports
from lmkv.demo.launch import EngineSpec
from lmkv.demo.machine import Machine

FAKE = str(Path(__file__).with_name("fake_engine.py"))
CPU = Machine(gpus=(), gpu_memory_gib=0.0, cores=2, memory_gib=16.0)


def fake_command(spec: EngineSpec) -> list[str]:
    """For `launch.command`: `extra_arguments` are the fake engine's."""
    return [sys.executable, FAKE, "--port", str(spec.port), *spec.extra_arguments]


def fake_spec(*arguments: str, name: str = "plain-a") -> EngineSpec:
    port = ports.choose(1)[0]
    return EngineSpec(name, name.partition("-")[0], "m", port, CPU, extra_arguments=arguments)

"""What the connector's two sides tell each other, across processes."""

import pickle

import pytest

pytest.importorskip("vllm", reason="vLLM is not installed")

from lmkv.vllm.metadata import NOTHING, StepMetadata, Store


@pytest.mark.parametrize("protocol", range(2, pickle.HIGHEST_PROTOCOL + 1))
def test_nothing_to_do_is_the_same_object_in_every_process(protocol):
    assert pickle.loads(pickle.dumps(NOTHING, protocol)) is NOTHING
    something = StepMetadata(stores=[Store(1, b"k" * 32, 0, [1, 2], 3.0)], timed=7)
    copy = pickle.loads(pickle.dumps(something, protocol))
    assert copy == something
    assert copy is not something
    assert pickle.loads(pickle.dumps(StepMetadata(), protocol)) is not NOTHING

"""What is not the same is never loaded for it, though the token ids are: salts, images, prompts of
embeddings, adapters. Through vLLM's real scheduler and its real block hashes.
"""

import pytest
import torch
from scheduler_harness import BLOCK, CHUNK, PER_CHUNK, Engine, key_of, put
from vllm.lora.request import LoRARequest
from vllm.multimodal.inputs import MultiModalFeatureSpec, PlaceholderRange

CHUNKS = 3
PROMPT = CHUNKS * CHUNK + 1


@pytest.fixture
def engine(tiny_model, root):
    return Engine(tiny_model, root)


def image(name, offset, length):
    """One whose placeholder tokens are the same for every image."""
    place = PlaceholderRange(offset=offset, length=length)
    return MultiModalFeatureSpec(data=None, modality="image", identifier=name, mm_position=place)


def loaded(engine):
    """Tokens loaded by all that the scheduler has been asked for."""
    loads = [load for metadata in engine.run() for load in metadata.loads]
    return BLOCK * sum(len(chunk.block_ids) for load in loads for chunk in load.chunks)


def store(engine, request):
    put(engine.root, *(key_of(request, (i + 1) * PER_CHUNK) for i in range(CHUNKS)))


def found(engine, request):
    """Tokens that the connector would load for it."""
    return engine.side.matched_tokens(request, 0)


def test_only_the_tenant_that_stored_a_prompt_loads_it(engine):
    engine.request("a", PROMPT, cache_salt="one")
    assert loaded(engine) == 0
    for name, salt in (("b", "two"), ("c", None), ("d", "on"), ("e", "one ")):
        engine.scheduler.reset_prefix_cache()
        engine.request(name, PROMPT, cache_salt=salt)
        assert loaded(engine) == 0, salt
    engine.scheduler.reset_prefix_cache()
    engine.request("f", PROMPT, cache_salt="one")
    assert loaded(engine) == CHUNKS * CHUNK
    engine.assert_at_rest()


def test_another_image_of_the_same_size_is_another_prompt_from_there_on(engine):
    begin = CHUNK + 5
    store(engine, engine.unasked("a", PROMPT, mm_features=[image("cat", begin, 40)]))
    same = engine.unasked("b", PROMPT, mm_features=[image("cat", begin, 40)])
    other = engine.unasked("c", PROMPT, mm_features=[image("dog", begin, 40)])
    moved = engine.unasked("d", PROMPT, mm_features=[image("cat", begin + 1, 40)])
    none = engine.unasked("e", PROMPT)
    assert found(engine, same) == CHUNKS * CHUNK
    for request in (other, moved, none):
        assert found(engine, request) == CHUNK, request.request_id


def test_images_in_another_order_are_another_prompt(engine):
    def of(name, first, second):
        features = [image(first, 10, 8), image(second, 20, 8)]
        return engine.unasked(name, PROMPT, mm_features=features)

    store(engine, of("a", "cat", "dog"))
    assert found(engine, of("b", "cat", "dog")) == CHUNKS * CHUNK
    assert found(engine, of("c", "dog", "cat")) == 0
    assert found(engine, of("d", "cat", "cat")) == 0


@pytest.mark.parametrize("at", [0, CHUNK - 1, CHUNK, 2 * CHUNK + 17])
def test_one_other_value_in_prompt_embeddings_is_another_prompt_from_there_on(engine, at):
    values = torch.rand(PROMPT, 64, generator=torch.Generator().manual_seed(1))
    other = values.clone()
    other[at, 63] += 1e-3
    store(engine, engine.unasked("a", values))
    assert found(engine, engine.unasked("b", values.clone())) == CHUNKS * CHUNK
    assert found(engine, engine.unasked("c", other)) == at // CHUNK * CHUNK
    # VLLM gives a prompt of embeddings these token ids.
    assert found(engine, engine.unasked("d", [0] * PROMPT)) == 0


def test_a_request_with_an_adapter_passes_by_even_if_its_keys_are_there(engine):
    """Another adapter may have had that name and path when they were stored."""
    request = engine.request("a", PROMPT, lora=LoRARequest("adapter", 1, "/adapters/one"))
    store(engine, request)
    assert not [metadata for metadata in engine.run() if metadata.loads or metadata.stores]
    engine.assert_at_rest()

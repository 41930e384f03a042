"""Layouts as vLLM makes them: the views come from vLLM's own ``create_kv_cache_views``."""

from dataclasses import replace

import pytest
import torch
from vllm.v1.kv_cache_interface import (
    FullAttentionSpec,
    KVCacheTensor,
    MLAAttentionSpec,
    create_kv_cache_views,
)
from vllm.v1.kv_cache_layout import KVCacheLayout

from lmkv.vllm.layout import Layout, LayoutError, Page, page_order, read_layout, read_layouts

LAYERS = ["model.layers.0.attn", "model.layers.1.attn", "model.layers.2.attn"]
BLOCKS = 5


def spec_of(heads=8, padded=None, block_size=16):
    return FullAttentionSpec(
        block_size=block_size,
        num_kv_heads=heads,
        head_size=64,
        dtype=torch.bfloat16,
        page_size_padded=padded,
    )


def views(layout, spec, kernel_block_size=None):
    """The KV cache as vLLM allocates it, and its bytes."""
    page, count = spec.page_size_bytes, len(LAYERS)
    size = page * count * BLOCKS
    if layout is KVCacheLayout.BHLNC:
        strides = (page // spec.num_heads, page * count)
    elif layout.is_layer_compact:
        strides = (page * BLOCKS, page)
    else:
        strides = (page, page * count)
    if layout is KVCacheLayout.LHBNC:
        strides = (page * BLOCKS, page // spec.num_heads)
    tensor = KVCacheTensor(
        size=size, layers=LAYERS, layer_stride=strides[0], block_stride=strides[1]
    )
    raw = torch.arange(size, dtype=torch.int64).to(torch.int8)
    made = create_kv_cache_views(raw, spec, BLOCKS, layout, tensor, kernel_block_size)
    return dict(zip(LAYERS, made, strict=True)), raw


def block_bytes(raw, layout, block):
    """The bytes of one block, read through the segment table alone."""
    parts = []
    for address, stride, size in layout.segments():
        begin = address - raw.data_ptr() + block * stride
        parts.append(raw[begin : begin + size])
    return torch.cat(parts)


def expected_bytes(caches, block, split=1):
    """The bytes of one block, read through vLLM's views, in memory order."""
    parts = []
    for layer in LAYERS:
        for piece in caches[layer][block * split : (block + 1) * split]:
            order = sorted(range(piece.dim()), key=piece.stride, reverse=True)
            parts.append(piece.permute(order).contiguous().view(torch.int8).flatten())
    return torch.cat(parts)


@pytest.mark.parametrize("name", ["LBNHC", "LBHNC", "BLNHC", "BLHNC"])
@pytest.mark.parametrize("padded", [None, 40_960])
def test_every_block_is_found_in_every_block_dense_layout(name, padded):
    layout = KVCacheLayout[name]
    caches, raw = views(layout, spec_of(padded=padded))
    found = read_layout(caches, LAYERS, BLOCKS)
    assert found.block_bytes == 3 * 32_768
    for block in range(BLOCKS):
        assert torch.equal(block_bytes(raw, found, block), expected_bytes(caches, block))
    assert page_order(caches[LAYERS[0]]) == name[-3:]


def test_a_block_outermost_layout_is_one_segment():
    caches, _ = views(KVCacheLayout.BLNHC, spec_of())
    assert len(read_layout(caches, LAYERS, BLOCKS).segments()) == 1
    caches, _ = views(KVCacheLayout.LBNHC, spec_of())
    assert len(read_layout(caches, LAYERS, BLOCKS).segments()) == 3


def test_layer_and_block_outermost_give_the_same_bytes():
    # What lets engines with either layout share a namespace: only the order within a page counts.
    blocks = []
    for name in ("LBNHC", "BLNHC"):
        caches, raw = views(KVCacheLayout[name], spec_of())
        for index, layer in enumerate(LAYERS):
            for block in range(BLOCKS):
                caches[layer][block].fill_(index * BLOCKS + block)
        blocks.append(block_bytes(raw, read_layout(caches, LAYERS, BLOCKS), 2))
    assert torch.equal(*blocks)


@pytest.mark.parametrize("name", ["LHBNC", "BHLNC"])
def test_a_layout_that_spreads_a_block_is_refused_by_layer(name):
    caches, _ = views(KVCacheLayout[name], spec_of())
    with pytest.raises(LayoutError, match=r"layers\.0\.attn does not keep a block.*LAYOUT=BLNHC"):
        read_layout(caches, LAYERS, BLOCKS)


def test_blocks_split_for_a_kernel_are_put_together_again():
    caches, raw = views(KVCacheLayout.LBNHC, spec_of(block_size=64), kernel_block_size=16)
    assert caches[LAYERS[0]].shape[0] == BLOCKS * 4
    found = read_layout(caches, LAYERS, BLOCKS)
    assert found.block_bytes == 3 * 4 * 32_768
    assert found.pages[0].shape[0] == 4
    for block in range(BLOCKS):
        assert torch.equal(block_bytes(raw, found, block), expected_bytes(caches, block, split=4))


def test_latent_attention_is_dense():
    spec = MLAAttentionSpec(block_size=16, num_kv_heads=1, head_size=576, dtype=torch.bfloat16)
    caches, raw = views(KVCacheLayout.LBNHC, spec)
    found = read_layout(caches, LAYERS, BLOCKS)
    assert found.block_bytes == 3 * 16 * 576 * 2
    assert torch.equal(block_bytes(raw, found, 3), expected_bytes(caches, 3))


def test_eight_bit_floats_are_bytes():
    spec = FullAttentionSpec(
        block_size=16,
        num_kv_heads=8,
        head_size=64,
        dtype=torch.float8_e4m3fn,
        page_size_padded=20_480,
    )
    caches, raw = views(KVCacheLayout.BLNHC, spec)
    found = read_layout(caches, LAYERS, BLOCKS)
    assert found.block_bytes == 3 * 16_384
    assert len(found.segments()) == 3  # the padding is not stored
    for block in range(BLOCKS):
        assert torch.equal(block_bytes(raw, found, block), expected_bytes(caches, block))


def test_layers_that_share_kv_are_stored_once():
    caches, _ = views(KVCacheLayout.LBNHC, spec_of())
    shared = caches | {"model.layers.3.attn": caches[LAYERS[1]]}
    assert read_layout(shared, LAYERS, BLOCKS) == read_layout(caches, LAYERS, BLOCKS)


def test_a_tensor_that_no_group_owns_is_refused():
    caches, _ = views(KVCacheLayout.LBNHC, spec_of())
    other, _ = views(KVCacheLayout.LBNHC, spec_of())
    with pytest.raises(LayoutError, match="no KV cache group owns"):
        read_layout(caches | {"draft": other[LAYERS[0]]}, LAYERS, BLOCKS)
    with pytest.raises(LayoutError, match=r"layers\.2\.attn has no KV tensor"):
        read_layout({layer: caches[layer] for layer in LAYERS[:2]}, LAYERS, BLOCKS)


def test_a_block_count_that_does_not_fit_is_refused():
    caches, _ = views(KVCacheLayout.LBNHC, spec_of())
    with pytest.raises(LayoutError, match="5 blocks, not a multiple of 3"):
        read_layout(caches, LAYERS, 3)


def test_overlapping_blocks_are_refused():
    raw = torch.zeros(1000)
    with pytest.raises(LayoutError, match="in one piece"):
        read_layout({"layer": raw.as_strided((4, 1, 8, 8), (32, 64, 8, 1))}, ["layer"], 4)


def test_neighbours_with_another_stride_stay_apart():
    pages = [
        Page("a", 4096, 8192, 100, (1,), torch.int8),
        Page("b", 4196, 100, 100, (1,), torch.int8),
    ]
    layout = Layout(tuple(pages), torch.device("cpu"), 4)
    assert layout.segments() == [(4096, 8192, 100), (4196, 100, 100)]


def at(raw, offset, page, stride, dtype=torch.int8):
    """A layer's tensor in ``raw``: a page of every block."""
    return raw[offset:].as_strided((BLOCKS, 1, 1, page), (stride, page, page, 1)).view(dtype)


def test_groups_that_lie_over_one_another_have_one_layout():
    caches, _ = views(KVCacheLayout.LBNHC, spec_of())
    shorter = {"window.0": caches[LAYERS[0]], "window.1": caches[LAYERS[1]]}
    found = read_layouts(caches | shorter, [LAYERS, list(shorter)], BLOCKS)
    assert replace(found, placed=()) == read_layout(caches, LAYERS, BLOCKS)
    # In whatever order they come: the pages are in the order of the memory.
    swapped = read_layouts(caches | shorter, [list(shorter), LAYERS], BLOCKS)
    assert swapped.segments() == found.segments()


def test_one_group_is_read_as_ever():
    caches, _ = views(KVCacheLayout.BLNHC, spec_of())
    backwards = LAYERS[::-1]
    found = read_layouts(caches, [backwards], BLOCKS)
    assert found == read_layout(caches, backwards, BLOCKS)
    assert [page.layer for page in found.pages] == backwards


def test_a_block_has_all_bytes_that_any_group_has_in_it():
    raw = torch.arange(BLOCKS * 1000).to(torch.int8)
    caches = {
        "full.0": at(raw, 0, 400, 1000),
        "full.1": at(raw, 400, 400, 1000),
        "state.0": at(raw, 0, 16, 1000),
        "state.1": at(raw, 400, 16, 1000),
        "window.0": at(raw, 0, 900, 1000),
    }
    groups = [["full.0", "full.1"], ["state.0", "state.1"]]
    two = {layer: caches[layer] for layers in groups for layer in layers}
    assert read_layouts(two, groups, BLOCKS).segments() == [(raw.data_ptr(), 1000, 800)]
    found = read_layouts(caches, [*groups, ["window.0"]], BLOCKS)
    assert found.block_bytes == 900
    assert torch.equal(block_bytes(raw, found, 3), raw[3000:3900])


def test_layers_may_share_the_kv_of_a_group():
    caches, _ = views(KVCacheLayout.LBNHC, spec_of())
    shared = caches | {"shared": caches[LAYERS[2]]}
    groups = [LAYERS[:1], LAYERS[1:]]
    assert read_layouts(shared, groups, BLOCKS) == read_layouts(caches, groups, BLOCKS)
    other, _ = views(KVCacheLayout.LBNHC, spec_of())
    with pytest.raises(LayoutError, match="layer draft has a KV tensor that no KV cache group"):
        read_layouts(caches | {"draft": other[LAYERS[0]]}, groups, BLOCKS)


@pytest.mark.parametrize(("page", "stride", "offset"), [(400, 400, 0), (600, 1000, 500)])
def test_groups_with_blocks_in_other_places_are_refused(page, stride, offset):
    raw = torch.zeros(BLOCKS * 1000 + 600, dtype=torch.int8)
    caches = {"full": at(raw, 0, 800, 1000), "other": at(raw, offset, page, stride)}
    with pytest.raises(LayoutError, match="place their blocks differently"):
        read_layouts(caches, [["full"], ["other"]], BLOCKS)


def test_each_groups_own_pages_say_what_lies_where():
    def placed(window_order, window_dtype=torch.bfloat16):
        raw = torch.zeros(BLOCKS * 8192, dtype=torch.int8)
        full = raw.view(torch.bfloat16).as_strided((BLOCKS, 1, 16, 256), (4096, 4096, 256, 1))
        size = window_dtype.itemsize
        heads, tokens, width = 2, 16, 256 // size
        strides = {"HNC": (tokens * width, width), "NHC": (width, heads * width)}[window_order]
        window = raw.view(window_dtype).as_strided(
            (BLOCKS, heads, tokens, width), (8192 // size, *strides, 1)
        )
        layout = read_layouts({"f": full, "w": window}, [["w"], ["f"]], BLOCKS)
        assert layout.segments() == [(raw.data_ptr(), 8192, 8192)]
        return [
            (one.place, one.offset, one.page.layer, one.order, one.page.dtype)
            for one in layout.placed
        ]

    # One head of full attention has no place in its order; the windows' order is their own.
    assert placed("HNC") == [
        (0, 0, "f", "NC", torch.bfloat16),
        (0, 0, "w", "HNC", torch.bfloat16),
    ]
    assert placed("NHC") != placed("HNC")
    assert placed("HNC", torch.int8) != placed("HNC")

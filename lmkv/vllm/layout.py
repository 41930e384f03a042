"""From the KV tensors that vLLM registers to the segment table that the core copies by."""

import bisect
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch


class LayoutError(ValueError):
    """The KV cache is laid out in a way that lmkv cannot move; the message says which."""


@dataclass(frozen=True, slots=True)
class Page:
    """One layer's bytes of one block.

    Block ``b``'s page is the ``size`` bytes at ``address + b * stride``. ``shape`` is what it
    holds, outermost first: kernel blocks, then the tensor's own dimensions but the first.
    """

    layer: str
    address: int
    stride: int
    size: int
    shape: tuple[int, ...]
    dtype: torch.dtype


@dataclass(frozen=True, slots=True)
class Placed:
    """A layer's page within a block: it begins ``offset`` bytes into the page of index ``place`` of
    the layout, whose dimensions are in that ``order`` (``page_order``).
    """

    place: int
    offset: int
    page: Page
    order: str


@dataclass(frozen=True, slots=True)
class Layout:
    """Where a block is: its pages, in the order in which a chunk holds them."""

    pages: tuple[Page, ...]
    device: torch.device
    block_count: int
    # Of several groups, whose pages lie over one another: each layer's own, in order of place.
    placed: tuple["Placed", ...] = ()

    @property
    def block_bytes(self) -> int:
        return sum(page.size for page in self.pages)

    def segments(self) -> list[tuple[int, int, int]]:
        """``(address, stride, bytes)`` of every dense run inside every block.

        Pages that follow one another in memory are one run: with a block-outermost layout a
        block is a single segment. The bytes of a block are the same either way.
        """
        runs: list[tuple[int, int, int]] = []
        for page in self.pages:
            if runs:
                address, stride, size = runs[-1]
                if address + size == page.address and stride == page.stride:
                    runs[-1] = (address, stride, size + page.size)
                    continue
            runs.append((page.address, page.stride, page.size))
        return runs


def read_layout(
    kv_caches: Mapping[str, torch.Tensor], layers: Sequence[str], block_count: int
) -> Layout:
    """The layout of ``kv_caches``, whose tensors have blocks in dimension 0.

    ``layers`` are the layers that own KV, in the order that a chunk is to have; a tensor of
    any other layer must be one of theirs (layers may share KV). ``shape[0]`` may be a multiple
    of ``block_count``: vLLM splits blocks for some kernels. Raises LayoutError for a layer
    whose page is not one dense run of bytes.
    """
    pages: dict[tuple[int, int], Page] = {}
    for layer in [*layers, *(name for name in kv_caches if name not in set(layers))]:
        if layer not in kv_caches:
            raise LayoutError(f"layer {layer} has no KV tensor")
        page = _page(layer, kv_caches[layer], block_count)
        first = pages.setdefault((page.address, page.stride), page)
        if first is page and layer not in layers:
            raise LayoutError(f"layer {layer} has a KV tensor that no KV cache group owns")
        if (first.size, first.shape) != (page.size, page.shape):
            raise LayoutError(f"layers {first.layer} and {layer} use the same bytes differently")
    if not pages:
        raise LayoutError("the model has no KV cache")
    devices = {kv_caches[page.layer].device for page in pages.values()}
    if len(devices) != 1:
        raise LayoutError("the KV cache is spread over several devices")
    return Layout(tuple(pages.values()), devices.pop(), block_count)


def read_layouts(
    kv_caches: Mapping[str, torch.Tensor], groups: Sequence[Sequence[str]], block_count: int
) -> Layout:
    """The layout of a KV cache whose groups of layers lie over one another.

    ``groups`` are the layers of each, as in ``read_layout``. A block holds what any of the groups
    has in it, so that it can be copied whosever it is. Raises LayoutError.
    """
    if len(groups) == 1:
        return read_layout(kv_caches, groups[0], block_count)
    pages = [
        page
        for layers in groups
        for page in read_layout(
            {layer: kv_caches[layer] for layer in layers if layer in kv_caches}, layers, block_count
        ).pages
    ]
    places = {(page.address, page.stride) for page in pages}
    owners = {layer for layers in groups for layer in layers}
    for layer in kv_caches.keys() - owners:  # layers may share KV
        page = _page(layer, kv_caches[layer], block_count)
        if (page.address, page.stride) not in places:
            raise LayoutError(f"layer {layer} has a KV tensor that no KV cache group owns")
    if len({page.stride for page in pages}) > 1:
        raise LayoutError("its KV cache groups place their blocks differently")
    merged: list[Page] = []
    for page in sorted(pages, key=lambda page: page.address):
        if merged and page.address < merged[-1].address + merged[-1].size:
            merged[-1] = _over(merged[-1], page)
        else:
            merged.append(page)
    if any(page.size > page.stride for page in merged):
        raise LayoutError("its KV cache groups place their blocks differently")
    device = kv_caches[pages[0].layer].device
    return Layout(tuple(merged), device, block_count, _placed(pages, merged, kv_caches))


def _placed(
    pages: Sequence[Page], merged: Sequence[Page], kv_caches: Mapping[str, torch.Tensor]
) -> tuple[Placed, ...]:
    begins = [page.address for page in merged]
    placed = []
    for page in pages:
        place = bisect.bisect_right(begins, page.address) - 1
        order = page_order(kv_caches[page.layer])
        placed.append(Placed(place, page.address - begins[place], page, order))
    return tuple(sorted(placed, key=lambda one: (one.place, one.offset, one.page.layer)))


def _over(first: Page, second: Page) -> Page:
    """Both pages' bytes, as one page; ``second`` begins in ``first``."""
    end = max(first.address + first.size, second.address + second.size)
    size = end - first.address
    if (first.address, first.size, first.shape, first.dtype) == (
        second.address,
        second.size,
        second.shape,
        second.dtype,
    ):
        return first
    return Page(first.layer, first.address, first.stride, size, (size,), torch.uint8)


def _page(layer: str, cache: torch.Tensor, block_count: int) -> Page:
    if not isinstance(cache, torch.Tensor):
        raise LayoutError(f"layer {layer} keeps its state in several tensors")
    split, rest = divmod(cache.shape[0], block_count)
    if rest or not split:
        raise LayoutError(
            f"layer {layer} has a KV tensor of {cache.shape[0]} blocks, "
            f"not a multiple of {block_count}"
        )
    dense = _dense_elements(cache)
    if dense is None or (split > 1 and cache.stride(0) != dense):
        raise LayoutError(
            f"layer {layer} does not keep a block in one piece (shape {tuple(cache.shape)}, "
            f"strides {cache.stride()}), as the layouts LHBNC and BHLNC do; set "
            "VLLM_KV_CACHE_LAYOUT=BLNHC, or another attention backend"
        )
    return Page(
        layer=layer,
        address=cache.data_ptr(),
        stride=cache.stride(0) * split * cache.element_size(),
        size=dense * split * cache.element_size(),
        shape=(split, *cache.shape[1:]),
        dtype=cache.dtype,
    )


def _dense_elements(cache: torch.Tensor) -> int | None:
    """Elements of ``cache[0]`` if they are one dense run, in whatever order; else None."""
    expected = 1
    inner = zip(cache.stride()[1:], cache.shape[1:], strict=True)
    for stride, size in sorted((stride, size) for stride, size in inner if size != 1):
        if stride != expected:
            return None
        expected *= size
    # Blocks must not overlap, or a block could not be written by itself.
    return expected if cache.stride(0) >= expected else None


def page_order(page_cache: torch.Tensor) -> str:
    """The order of a page's dimensions in memory, such as "HNC" (heads outermost) or "NHC".

    Dimensions of one element have no place in memory and are left out. Names are given to the
    4-D ``[B, H, N, C]`` views of vLLM 0.32; others are numbered.
    """
    names = "HNC" if page_cache.dim() == 4 else "0123456789"[: page_cache.dim() - 1]
    inner = zip(page_cache.stride()[1:], page_cache.shape[1:], names, strict=True)
    ordered = sorted((-stride, name) for stride, size, name in inner if size != 1)
    return "".join(name for _, name in ordered)

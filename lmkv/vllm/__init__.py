"""lmkv in vLLM: a KV connector named ``LMKVConnector``, and ``LMKVTier`` for vLLM's own connector.

The only package of lmkv that imports torch or vLLM, and not before one of the classes is asked for:
this module is also what vLLM imports for ``"kv_connector_module_path": "lmkv.vllm"``, and for a
tier's ``"module_path"``.
"""

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from lmkv.vllm.connector import LMKVConnector
    from lmkv.vllm.tier import LMKVTier

__all__ = ["LMKVConnector", "LMKVTier"]


def __getattr__(name: str) -> object:
    if name == "LMKVConnector":
        from lmkv.vllm.connector import LMKVConnector

        return LMKVConnector
    if name == "LMKVTier":
        from lmkv.vllm.tier import LMKVTier

        return LMKVTier
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")

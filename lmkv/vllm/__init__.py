"""lmkv in vLLM: a KV connector named ``LMKVConnector``.

The only package of lmkv that imports torch or vLLM, and not before the class is asked for:
this module is also what vLLM imports for ``"kv_connector_module_path": "lmkv.vllm"``.
"""

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from lmkv.vllm.connector import LMKVConnector

__all__ = ["LMKVConnector"]


def __getattr__(name: str) -> object:
    if name == "LMKVConnector":
        from lmkv.vllm.connector import LMKVConnector

        return LMKVConnector
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")

import subprocess
import sys
import time

from vllm.config import KVTransferConfig
from vllm.distributed.kv_transfer.kv_connector.factory import KVConnectorFactory
from vllm.distributed.kv_transfer.kv_connector.v1 import supports_hma

from lmkv.vllm import LMKVConnector
from lmkv.vllm.plugin import register


def test_registering_twice_is_registering_once():
    register()
    register()
    config = KVTransferConfig(kv_connector="LMKVConnector", kv_role="kv_both")
    assert KVConnectorFactory.get_connector_class(config) is LMKVConnector


def test_the_module_path_alone_is_enough():
    config = KVTransferConfig(
        kv_connector="LMKVConnector", kv_connector_module_path="lmkv.vllm", kv_role="kv_both"
    )
    assert KVConnectorFactory.get_connector_class(config) is LMKVConnector


def test_hybrid_models_keep_their_allocator():
    assert supports_hma(LMKVConnector)


def test_the_plugin_imports_neither_torch_nor_vllm():
    code = (
        "import sys, lmkv, lmkv.vllm.plugin; "
        "print([name for name in ('torch', 'vllm') if name in sys.modules])"
    )
    begin = time.perf_counter()
    output = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True
    )
    assert output.stdout.strip() == "[]"
    assert time.perf_counter() - begin < 10

"""The ``vllm.general_plugins`` entry point: makes ``"kv_connector": "LMKVConnector"`` enough."""

CONNECTOR = "LMKVConnector"


def register() -> None:
    """Register the connector with vLLM. Called in every vLLM process, perhaps repeatedly."""
    from vllm.distributed.kv_transfer.kv_connector.factory import KVConnectorFactory

    try:
        KVConnectorFactory.register_connector(CONNECTOR, "lmkv.vllm", CONNECTOR)
    except ValueError:  # registered before
        return

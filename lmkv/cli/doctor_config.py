"""``lmkv doctor --config``: what an engine would make of its ``--kv-transfer-config``."""

from __future__ import annotations

import json
import os
from typing import Any

from lmkv.cli.diagnosis import Diagnosis
from lmkv.config import Config
from lmkv.errors import ConfigError

CONNECTOR = "LMKVConnector"
MODULE = "lmkv.vllm"

_ROLES = {
    "kv_both": "",
    "kv_producer": "The engine stores and loads nothing (kv_producer): it gains nothing itself.",
    "kv_consumer": "The engine loads and stores nothing (kv_consumer): another has to.",
}


def examine_config(found: Diagnosis, text: str) -> Config | None:
    """Read the value of ``--kv-transfer-config``, and this process's LMKV_* variables; None, with
    the problem said, for settings that stop an engine.
    """
    try:
        transfer = json.loads(text)
    except ValueError as error:
        found.problems.append(f"--kv-transfer-config is no JSON: {error}")
        return None
    if not isinstance(transfer, dict):
        found.problems.append("--kv-transfer-config is no JSON object")
        return None
    _examine_connector(found, transfer)
    extra = transfer.get("kv_connector_extra_config") or {}
    try:
        config = Config.from_sources(extra, os.environ)
    except (ConfigError, TypeError, AttributeError) as error:
        found.problems.append(f"The engine would not start: {error}")
        return None
    found.facts["settings"] = ", ".join(f"{name} {value}" for name, value in sorted(extra.items()))
    return config


def settings_of_environment() -> Config | None:
    """Of an engine that would be told of its directories only; None if they cannot work."""
    try:
        return Config.from_sources({"path": "/"}, os.environ)
    except ConfigError:
        return None


def _examine_connector(found: Diagnosis, transfer: dict[str, Any]) -> None:
    connector = transfer.get("kv_connector")
    if connector == "MultiConnector":
        found.note("Of MultiConnector's connectors give lmkv's own here.")
    elif connector != CONNECTOR:
        found.problems.append(f'"kv_connector" is {connector!r} and not "{CONNECTOR}".')
    module = transfer.get("kv_connector_module_path", MODULE)
    if module != MODULE:
        found.problems.append(f'"kv_connector_module_path" is {module!r} and not "{MODULE}".')
    role = transfer.get("kv_role")
    if role not in _ROLES:
        found.problems.append(f'"kv_role" is {role!r}: it has to be one of {", ".join(_ROLES)}.')
    elif _ROLES[role]:
        found.note(_ROLES[role])
    policy = transfer.get("kv_load_failure_policy", "fail")
    if policy != "recompute":
        found.note(
            f'"kv_load_failure_policy" is {policy!r}: requests whose chunks turn out to be bad or '
            'gone fail. Set it to "recompute".'
        )

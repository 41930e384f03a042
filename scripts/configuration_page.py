"""Writes docs/configuration.md from the settings dataclass; tests/test_docs.py compares them."""

from pathlib import Path

from lmkv.config import settings_table

PAGE = Path(__file__).resolve().parent.parent / "docs" / "configuration.md"

INTRODUCTION = """\
# Configuration

<!-- Written by scripts/configuration_page.py from lmkv/config.py; change it there. -->

A setting is a key of `kv_connector_extra_config` in vLLM's `--kv-transfer-config`, or an
environment variable; where both are given the former wins. An unknown key stops the engine at
start, with the nearest known one named. Sizes are numbers of bytes, or texts such as `"500GiB"`
(powers of 1024) and `"2GB"` (powers of 1000).

```console
vllm serve MODEL --kv-transfer-config '{"kv_connector": "LMKVConnector", "kv_role": "kv_both", \
"kv_load_failure_policy": "recompute", "kv_connector_extra_config": {"path": "/mnt/kv", \
"host_memory": "8GiB"}}'
```

`kv_load_failure_policy` is vLLM's own. With its default, `fail`, a chunk that turns out to be bad
or gone fails the request; with `recompute` it costs the time to compute it. lmkv warns when it is
not `recompute`.

"""


def page() -> str:
    return INTRODUCTION + settings_table()


if __name__ == "__main__":
    PAGE.write_text(page(), encoding="utf-8")
    print(f"wrote {PAGE}")

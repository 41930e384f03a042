"""A host of a Mooncake Store that has memory for chunks: options, size, the file that says that it
is up, its address.
"""

import json
import sys
import time
from pathlib import Path

from mooncake.store import MooncakeDistributedStore

from lmkv.values import parse_size


def main(options: str, segment: str, ready: str, address: str) -> None:
    settings = json.loads(options)
    store = MooncakeDistributedStore()
    failed = store.setup(
        address, settings["metadata_server"], parse_size(segment), 16 << 20, "tcp", "",
        settings["master_server_address"],
    )  # fmt: skip
    assert not failed, failed
    Path(ready).touch()
    while True:
        time.sleep(60)


if __name__ == "__main__":
    main(*sys.argv[1:])

"""A remote tier over a link of so many bits a second, through lmkv and by its engine's own client.

    python benchmarks/remote_link.py --engine s3|mooncake --path DIR [--rate 4gbit] [WORDS ...]

Server and client are in networks of their own (Linux network namespaces, a veth pair between them
with tc's token buckets at both ends), on one machine: SeaweedFS with its S3 gateway, or a Mooncake
master with a host of memory, as the tests have them. Over loopback both sides of a transfer, and
whatever lmkv does besides, would take the same few processors, and that is what would be measured.
The rest is ``lmkv bench remote``, which ``WORDS`` are for. Needs root.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

from command_line import folder_in, keep_standard_output, parser_of, write_result

sys.path.insert(0, str(Path(__file__).parents[1] / "tests" / "remote"))
from remote_servers import ACCESS_KEY, SECRET_KEY, Where, mooncake, s3_options, seaweedfs

# About 10 ms of a fast link: less would be lost to the kernel's clock.
BURST, LATENCY = "4mb", "20ms"


def _run(*words: str) -> None:
    subprocess.run(words, check=True)


@contextmanager
def link(rate: str) -> Iterator[tuple[Where, tuple[str, ...]]]:
    """Where the server is, and what runs a command at the other end."""
    spaces = [f"lmkv-{os.getpid()}-{name}" for name in ("server", "client")]
    address = f"10.{os.getpid() % 200 + 20}.1"
    with ExitStack() as ends:
        for space in spaces:
            _run("ip", "netns", "add", space)
            ends.callback(_run, "ip", "netns", "del", space)
            _run("ip", "-n", space, "link", "set", "lo", "up")
        first, second = spaces
        veth = ("type", "veth", "peer", "link0", "netns", second)
        _run("ip", "-n", first, "link", "add", "link0", *veth)
        bucket = ("tbf", "rate", rate, "burst", BURST, "latency", LATENCY)
        for number, space in enumerate(spaces, 1):
            _run("ip", "-n", space, "addr", "add", f"{address}.{number}/24", "dev", "link0")
            _run("ip", "-n", space, "link", "set", "link0", "up")
            _run("tc", "-n", space, "qdisc", "add", "dev", "link0", "root", *bucket)
        yield Where(("ip", "netns", "exec", first), f"{address}.1"), ("ip", "netns", "exec", second)


def main() -> None:
    """See the module."""
    parser = parser_of(__doc__.split("\n")[0])
    parser.add_argument("--engine", choices=("s3", "mooncake"), required=True)
    parser.add_argument("--rate", default="4gbit", help="as tc has it")
    arguments, words = parser.parse_known_args()
    keep_standard_output()
    with ExitStack() as ends:
        folder = ends.enter_context(folder_in(arguments.path, "remote"))
        server, at_the_other_end = ends.enter_context(link(arguments.rate))
        if arguments.engine == "s3":
            port = ends.enter_context(seaweedfs(folder / "server", server))
            url, options = "s3://bucket/bench", s3_options(port, server.address)
        else:
            options = dict(ends.enter_context(mooncake(folder / "server", "2GiB", server)))
            url = f"mooncake://{options.pop('master_server_address')}/bench"
        given = [word for pair in options.items() for word in ("--option", "=".join(pair))]
        result = folder / "result.json"
        subprocess.run(
            [*at_the_other_end, sys.executable, "-c", "from lmkv.cli import app; app()", "bench",
             "remote", url, *given, *words, "--json", str(result)],
            env=os.environ | {"AWS_ACCESS_KEY_ID": ACCESS_KEY, "AWS_SECRET_ACCESS_KEY": SECRET_KEY},
            check=True,
        )  # fmt: skip
        found = {"rate": arguments.rate, **json.loads(result.read_text())}
    write_result(found, arguments.json)


if __name__ == "__main__":
    main()

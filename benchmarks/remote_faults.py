"""What requests take behind a remote tier that fails, against requests that load nothing.

    python benchmarks/remote_faults.py --path DIR [--rounds 12] [--manner NAME ...] [--json FILE]

Two real engines (vLLM on the CPU, SmolLM2-135M) and SeaweedFS with its S3 gateway: one fills the
tier with each prompt before it is asked for, the other has the tier behind a proxy that fails in
one manner after the other. It is asked for such a prompt, and, right before or after, for another
one, as long, with `{"lmkv": {"load": false}}`, which computes it without a look. Answers that are
not those of the first engine end the run. Of each manner the first request, which is the one that
finds out, is told from those after it, and none is left out. "well" is a tier that does not fail.
At the end: how long it takes until something is loaded again.
"""

from __future__ import annotations

import os
import statistics
import sys
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from command_line import folder_in, keep_standard_output, parser_of, write_result

sys.path.insert(0, str(Path(__file__).parents[1] / "tests" / "remote"))
from fleet import MANNERS, PROMPT_TOKENS, Fleet, Turn
from remote_servers import seaweedfs

SPARE = 100  # prompts, to warm up and to see the tier come back

COUNTED = (
    "tokens_loaded", "remote_hits", "chunks_bad", "lookups_given_up",
    "remote_lookups_out_of_service", "load_decisions_compute",
)  # fmt: skip


def spread(values: list[float]) -> dict[str, float]:
    """Of the middle, and of all."""
    return {"median": statistics.median(values), "least": min(values), "most": max(values)}


def told(turns: list[Turn]) -> dict[str, Any]:
    """Ratios are those of each pair: what else this machine does goes up and down with both."""
    first, *others = turns
    ratios = [turn.with_it / turn.without for turn in others]
    return {
        "ratio": spread(ratios),
        "excess_ms": spread([1e3 * (turn.with_it - turn.without) for turn in others]),
        "first": first.with_it / first.without,
        "without_seconds": spread([turn.without for turn in others]),
        "counters": {
            name: count
            for name in COUNTED
            if (count := sum(turn.counters.get(name, 0) for turn in turns))
        },
    }


def main() -> None:
    """See the module."""
    parser = parser_of(__doc__.split("\n")[0])
    parser.add_argument("--rounds", type=int, default=12, help="requests behind the first, of each")
    parser.add_argument("--manner", action="append", choices=list(MANNERS), help="default: all")
    arguments = parser.parse_args()
    manners = ["well", *(arguments.manner or MANNERS)]
    # Prompts begin at each token of one text.
    most = (PROMPT_TOKENS - SPARE) // (2 * len(manners)) - 1
    if not 0 < arguments.rounds <= most:
        parser.error(f"--rounds: 1 to {most}")
    keep_standard_output()
    found: dict[str, Any] = {}
    with ExitStack() as ends:
        folder = ends.enter_context(folder_in(arguments.path, "remote-faults"))
        fleet = Fleet(
            ends, prepared_model(), folder, ends.enter_context(seaweedfs(folder / "server"))
        )
        fleet.warm_up()
        for manner in manners:
            cause = "" if manner == "well" else manner
            found[manner] = told([fleet.turn(cause, n) for n in range(arguments.rounds + 1)])
            print(f"{manner}: {found[manner]}", file=sys.stderr, flush=True)
        recovery = fleet.recovery()
    failing = [found[manner]["ratio"]["median"] for manner in manners[1:]]
    result = {
        "cores": os.cpu_count(),
        "prompt_tokens": PROMPT_TOKENS,
        "rounds": arguments.rounds,
        "manners": found,
        "recovery_seconds": recovery,
        "ratios": {"failing_vs_none": max(failing)},
    }
    write_result(result, arguments.json)


def prepared_model() -> Path:
    """That of the demo."""
    from lmkv.demo.model import prepare_smollm2

    return prepare_smollm2()


if __name__ == "__main__":
    main()

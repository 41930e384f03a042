"""Two real engines, a directory that fails, and requests of every kind: all answers must be right.

    python benchmarks/connector_soak.py --path DIR [--minutes 15] [--seed N] [--json FILE]
        [--remote URL [--remote-options JSON]]

First an engine without lmkv answers every prompt of a pool: documents with common heads, questions
behind them. Then two engines with lmkv (vLLM on the CPU, a tiny model whose answers depend on all
of their prompt; one of them schedules asynchronously) share one directory. Each has a KV cache for
few requests, so that it preempts, and a directory for few documents, so that it evicts. Requests
arrive at random, with other priorities, salts, answer lengths, kv_transfer_params and `n`; some
are aborted, wherever they are; vLLM's own cache is emptied now and then, and files are deleted.
Every few seconds the disk gets other faults (I/O errors, flipped bits, delays, ...) or none. With a
remote tier each has a directory of its own, and they share that; if it is a directory, files are
deleted from it, too.

At the end of such a phase nothing may be left of it: no request, no block, no state of lmkv's, and
descriptors and, after some minutes, memory are what they were. Every greedy answer has to be the
plain engine's (up to a token where that one was torn between two, if there is one). Exit status 1
if anything is not so, or if the run was so idle that it shows nothing.
"""

from __future__ import annotations

import json
import math
import random
import sys
import time
from collections import Counter
from dataclasses import dataclass, field
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from command_line import folder_in, keep_standard_output, parser_of, write_result
from soak import MOST_RSS_GROWTH_MIB, delete_some, judged, random_spec, settled
from tiny_llama import VOCABULARY, save_tiny_llama
from vllm_engine import counters_of, engine_processes, make_engine

CHUNK_TOKENS = 128
MODEL_LEN = 1536
BLOCKS = 52  # of the KV cache: 1,664 tokens
RUNNING = 8
STEP_TOKENS = 512  # a long prompt takes several steps
DOCUMENTS = 10
PROMPTS = 80
ANSWER_TOKENS = 64
CAPACITY = "6MiB"  # of the directory: about a third of the documents
HOST_MEMORY = "2MiB"  # a dozen chunks: most loads read files
SALTS = ("", "", "", "tenant-a", "tenant-b")
TORN = 2e-3  # of log probability, between the first token and the second
REST_SECONDS = 120.0
MORE_SECONDS = 200.0
FLAT = ("fds", "slabs_in_use")
ENOUGH_PHASES = 12  # to say whether memory grows
ENGINES: tuple[dict[str, Any], ...] = (
    {"async_scheduling": False, "load_policy": "always"},
    {"async_scheduling": True, "load_policy": "auto"},
)
# What lmkv remembers on purpose, within bounds, or until the next step.
BOUNDED = {
    "_known", "_recent", "_absent", "_uses", "_seconds", "_counts", "_gauges", "_remote_alone",
}  # fmt: skip
# What a run has to have seen of each, or it was no soak.
SEEN = ("answers", "aborted", "preemptions", "tokens_loaded", "chunks_stored", "tokens_failed")

Prompt = list[int]


@dataclass(frozen=True)
class Answer:
    """What a plain engine says: its tokens, and by how much each won."""

    tokens: list[int]
    lead: list[float]

    def admits(self, tokens: list[int]) -> bool | None:
        """Whether this is the answer, or its beginning; None if it is as good."""
        for i, token in enumerate(tokens):
            if token != self.tokens[i]:
                return None if self.lead[i] < TORN else False
        return True


def make_prompts(seed: int) -> list[Prompt]:
    """Documents with questions behind them; some end within a document, some hold two."""
    dice = random.Random(seed)

    def fresh(low: int, high: int) -> Prompt:
        return [dice.randrange(2, VOCABULARY) for _ in range(dice.randint(low, high))]

    documents = [fresh(100, 900) for _ in range(DOCUMENTS)]
    prompts = []
    for _ in range(PROMPTS):
        head = list(dice.choice(documents))
        if dice.random() < 0.3:
            head = head[: dice.randint(40, len(head))]
        if dice.random() < 0.2:
            head += dice.choice(documents)[:400]
        if dice.random() < 0.85:
            head += fresh(1, 60)
        prompts.append(head[: MODEL_LEN - ANSWER_TOKENS - 1])
    return prompts


def make_soaked_engine(model: Path, settings: dict[str, Any] | None, *, is_async: bool) -> Any:
    """VLLM in this process; plain without ``settings``."""
    return make_engine(
        model,
        settings,
        skip_tokenizer_init=True,
        max_model_len=MODEL_LEN,
        max_num_seqs=RUNNING,
        max_num_batched_tokens=STEP_TOKENS,
        num_gpu_blocks_override=BLOCKS if settings else None,
        scheduling_policy="priority",
        async_scheduling=is_async,
        enable_prefix_caching=settings is not None,
    )


def plain_answers(connection: Connection, model: Path, prompts: list[Prompt]) -> None:
    """In a process of its own: what an engine without any cache answers."""
    from vllm import SamplingParams
    from vllm.inputs import TokensPrompt

    engine = make_soaked_engine(model, None, is_async=False)
    sampling = SamplingParams(
        max_tokens=ANSWER_TOKENS, temperature=0.0, ignore_eos=True, detokenize=False, logprobs=2
    )
    for i, prompt in enumerate(prompts):
        engine.add_request(str(i), TokensPrompt(prompt_token_ids=prompt), sampling)
    answers: dict[int, Answer] = {}
    while engine.has_unfinished_requests():
        for output in engine.step():
            if output.finished:
                (said,) = output.outputs
                lead = []
                for of_token in said.logprobs:
                    first, second = sorted((p.logprob for p in of_token.values()), reverse=True)[:2]
                    lead.append(first - second)
                answers[int(output.request_id)] = Answer(list(said.token_ids), lead)
    connection.send([answers[i] for i in range(len(prompts))])
    engine.engine_core.engine_core.shutdown()


@dataclass
class _Asked:
    """A request that is under way."""

    prompt: int
    n: int
    core_id: str
    abort_at: float
    said: dict[int, list[int]] = field(default_factory=dict)  # by index, of n


def sizes_within(holder: Any) -> dict[str, int]:
    """Lengths of all collections in one of lmkv's objects, and in those that it has."""
    found: dict[str, int] = {}
    seen: set[int] = set()
    left = [("", holder)]
    while left:
        path, holder = left.pop()
        seen.add(id(holder))
        for name, value in getattr(holder, "__dict__", {}).items():
            if name in BOUNDED:
                continue
            if isinstance(value, dict | set | list):
                found[path + name] = len(value)
            elif type(value).__module__.startswith("lmkv.vllm") and id(value) not in seen:
                left.append((f"{path}{name}.", value))
    return found


class Soak:
    """One engine with lmkv, what it was asked, and what came of it."""

    def __init__(
        self, model: Path, root: Path, prompts: list[Prompt], answers: list[Answer],
        which: int, seed: int, remote: dict[str, Any],
    ) -> None:  # fmt: skip
        from lmkv._C import Faults, fault_engine
        from lmkv.vllm import scheduler, worker

        # To rest an engine has to see its last stores end, however slow the disk is.
        scheduler.STORE_LINGER_SECONDS = REST_SECONDS

        self._prompts, self._answers = prompts, answers
        self._roots = [root]
        self._flat = FLAT
        if (url := urlsplit(remote.get("remote", ""))).scheme == "file":
            # A chunk that is gone here is there: without this no load would ever fail.
            self._roots.append(Path(url.path))
        elif remote:  # a client keeps connections as it likes
            self._flat = FLAT[1:]
        self._wanted = (*SEEN, "remote_hits", "remote_chunks_stored") if remote else SEEN
        self._dice = random.Random(seed)
        self.failures: list[str] = []
        self.seen: Counter[str] = Counter()
        self.samples: list[dict[str, float]] = []
        self.faults = Faults("", seed)
        self.cores: list[Any] = []

        def with_faults(options: Any) -> Any:
            self.cores.append(fault_engine(options, self.faults))
            return self.cores[-1]

        worker.Engine = with_faults
        variant = dict(ENGINES[which])
        is_async = variant.pop("async_scheduling")
        settings = {
            "path": str(root),
            "chunk_tokens": CHUNK_TOKENS,
            "host_memory": HOST_MEMORY,
            "capacity": CAPACITY,
            "free_space_floor": 0,
            "store_generated": bool(which),
            **variant,
            **remote,
        }
        self._engine = make_soaked_engine(model, settings, is_async=is_async)
        self._scheduler = self._engine.engine_core.engine_core.scheduler
        self._side = self._scheduler.connector.scheduler_side
        self._number = 0
        self._asked: dict[str, _Asked] = {}
        self._fresh_blocks = self._pool.get_num_free_blocks()
        self._sizes = self.sizes()

    @property
    def _pool(self) -> Any:
        return self._scheduler.kv_cache_manager.block_pool

    def run(self, minutes: float) -> None:
        """Phases until the time is over or something is wrong; a few more if little was seen."""
        end = time.monotonic() + 60 * minutes
        while not self.failures:
            left = end - time.monotonic()
            is_enough = len(self.samples) >= 2 and not self.unseen()
            if left < 0 and (is_enough or left < -MORE_SECONDS):
                break
            self._phase(min(4.0 + 4 * self._dice.random(), 60 * minutes / 4))
        self._engine.engine_core.engine_core.shutdown()

    def _phase(self, seconds: float) -> None:
        dice = self._dice
        # A disk that fails all the time is soon out of service, and nothing more is seen of it.
        spec = random_spec(dice) if dice.random() < 0.6 else ""
        self.faults.change(spec)
        pace = dice.choice((5.0, 20.0, 60.0))  # requests per second
        now = time.monotonic()
        end, arrival, disturbance = now + seconds, now, now + 0.7
        while now < end and not self.failures:
            if now >= arrival and len(self._asked) < 40:
                arrival = now + dice.expovariate(pace)
                self._ask(now)
            if now >= disturbance:
                disturbance += 0.7
                self._disturb()
            self._abort_some(now)
            self._step()
            now = time.monotonic()
        self.faults.change("")
        self.faults.release()
        deadline = time.monotonic() + REST_SECONDS
        while self._is_busy() and not self.failures:
            self._step()
            if time.monotonic() > deadline:
                self._fail(f"no rest after {spec!r}: {self.sizes()}, {len(self._asked)} requests")
        self._check_rest()

    def _ask(self, now: float) -> None:
        from vllm import SamplingParams
        from vllm.inputs import TokensPrompt

        dice = self._dice
        self._number += 1
        name = f"request-{self._number}"
        which = dice.randrange(len(self._prompts))
        prompt = TokensPrompt(prompt_token_ids=self._prompts[which])
        if salt := dice.choice(SALTS):
            prompt["cache_salt"] = salt
        control: dict[str, Any] = {}
        if dice.random() < 0.2:
            control = dice.choice((
                {"store": False}, {"load": False}, {"max_load_tokens": dice.randrange(0, 900)},
                {"store": False, "load": False},
            ))  # fmt: skip
        n = 2 if dice.random() < 0.1 else 1
        sampling = SamplingParams(
            max_tokens=dice.choice((1, 2, ANSWER_TOKENS // 2, ANSWER_TOKENS)),
            n=n,
            temperature=0.0 if n == 1 else 1.0,  # 0 allows no n
            top_k=0 if n == 1 else 1,
            ignore_eos=True,
            detokenize=False,
            prompt_logprobs=1 if dice.random() < 0.03 else None,
            extra_args={"kv_transfer_params": {"lmkv": control}} if control else None,
        )
        core_id = self._engine.add_request(name, prompt, sampling, priority=dice.randrange(3))
        abort_at = now + dice.expovariate(4.0) if dice.random() < 0.2 else float("inf")
        self._asked[name] = _Asked(which, n, core_id, abort_at)
        self.seen["asked"] += 1

    def _abort_some(self, now: float) -> None:
        for name in [name for name, asked in self._asked.items() if now >= asked.abort_at]:
            asked = self._asked.pop(name)
            request = self._scheduler.requests.get(asked.core_id)
            where = request.status.name.lower() if request is not None else "of_several"
            self.seen[f"aborted_{where}"] += 1
            self.seen["aborted"] += 1
            self._engine.abort_request([name])
            self._check(asked)

    def _disturb(self) -> None:
        dice = self._dice
        self.faults.release()
        if dice.random() < 0.3:
            for root in self._roots:
                delete_some(root, dice)
        if dice.random() < 0.2:
            # True: all running requests are preempted.
            running = dice.random() < 0.3
            try:
                done = self._engine.reset_prefix_cache(reset_running_requests=running)
            except RuntimeError:  # VLLM's answer when blocks are held, all preempted as they are
                done = False
            self.seen["resets" if done else "resets_refused"] += 1

    def _step(self) -> None:
        for output in self._engine.step():
            asked = self._asked.get(output.request_id)
            if asked is None:  # aborted
                continue
            for said in output.outputs:
                asked.said[said.index] = list(said.token_ids)
            if output.finished:
                del self._asked[output.request_id]
                self.seen["answers"] += 1
                if len(asked.said) != asked.n:
                    self._fail(f"{len(asked.said)} of {asked.n} answers")
                self._check(asked)

    def _check(self, asked: _Asked) -> None:
        expected = self._answers[asked.prompt]
        for tokens in asked.said.values():
            is_right = expected.admits(tokens)
            self.seen["tokens_checked"] += len(tokens)
            self.seen["torn"] += is_right is None
            if is_right is False:
                self._fail(f"prompt {asked.prompt}: {tokens}, and a plain engine {expected.tokens}")

    def _is_busy(self) -> bool:
        return bool(self._asked or self._scheduler.has_requests() or self._side.stores_under_way)

    def _check_rest(self) -> None:
        if not self.failures:
            free = self._pool.get_num_free_blocks()
            if free != self._fresh_blocks:
                self._fail(f"{self._fresh_blocks - free} blocks are leaked")
            held = sum(block.ref_cnt > 0 for block in self._pool.blocks if not block.is_null)
            if held:
                self._fail(f"{held} blocks are held")
            if self._scheduler.requests:
                self._fail(f"{len(self._scheduler.requests)} requests are leaked")
            more = dict(self.sizes().items() - self._sizes.items())
            if more:
                self._fail(f"lmkv keeps {more}")
        self.samples.append(settled(self.cores, self.samples, self._flat))

    def sizes(self) -> dict[str, int]:
        """How much the scheduler's side keeps, of all that should be empty at rest."""
        return sizes_within(self._side)

    def _fail(self, what: str) -> None:
        print(f"soak: {what}", file=sys.stderr, flush=True)
        self.failures.append(what)

    def _counters(self) -> dict[str, float]:
        metrics = self._engine.get_metrics()
        preempted = sum(m.value for m in metrics if m.name == "vllm:num_preemptions")
        return {**counters_of(self._engine), "preemptions": preempted}

    def unseen(self) -> list[str]:
        """What the run has not met yet, of what it is for."""
        counters = self._counters() | self.seen
        return [name for name in self._wanted if not counters.get(name)]

    def result(self) -> dict[str, Any]:
        """What was seen; "failures" is empty if all is well."""
        for name in self.unseen():
            self._fail(f"no {name}: the run shows nothing")
        flat = {}
        if not self.failures:
            # While vLLM is young it grows, too.
            warm = self.samples[len(self.samples) // 4 :]
            most = MOST_RSS_GROWTH_MIB if len(warm) >= ENOUGH_PHASES else math.inf
            flat = judged(warm, self.failures, self._flat, most)
        return {
            "phases": len(self.samples),
            "seen": dict(sorted(self.seen.items())),
            "counters": {name: value for name, value in self._counters().items() if value},
            "injected": sum(self.faults.counts().values()),
            "rss_mib_by_phase": [round(sample["rss_mib"]) for sample in self.samples],
            **flat,
            "failures": self.failures,
        }


def run_soak(
    connection: Connection, model: Path, root: Path, prompts: list[Prompt], answers: list[Answer],
    which: int, seed: int, minutes: float, remote: dict[str, Any],
) -> None:  # fmt: skip
    """In a process of its own."""
    soak = Soak(model, root, prompts, answers, which, seed, remote)
    soak.run(minutes)
    connection.send(soak.result())


def in_processes(target: Any, *arguments: tuple[Any, ...]) -> list[Any]:
    """What ``target`` sends, in as many processes as there are arguments."""
    context = engine_processes(
        OMP_NUM_THREADS="1",
        ONEDNN_PRIMITIVE_CACHE_CAPACITY="8",  # it has an entry for every length of a prompt
    )
    started = []
    for each in arguments:
        mine, theirs = context.Pipe()
        process = context.Process(target=target, args=(theirs, *each))
        process.start()
        theirs.close()
        started.append((process, mine))
    found = []
    try:
        for _, mine in started:
            try:
                found.append(mine.recv())
            except EOFError:
                raise RuntimeError("an engine ended; its lines above say why") from None
    finally:
        for process, _ in started:
            process.join(60 if len(found) == len(started) else 0)
            process.kill()
    return found


def main() -> None:
    """See the module."""
    parser = parser_of("Real engines over a directory that fails.")
    parser.add_argument("--minutes", type=float, default=15)
    parser.add_argument("--seed", type=int, default=random.randrange(1 << 30))
    parser.add_argument("--remote", default="", help="as the setting; each has a directory then")
    parser.add_argument("--remote-options", type=json.loads, default={})
    arguments = parser.parse_args()
    remote: dict[str, Any] = {}
    if arguments.remote:
        remote = {"remote": arguments.remote, "remote_options": arguments.remote_options}

    keep_standard_output()
    with folder_in(arguments.path, "connector-soak") as folder:
        model = save_tiny_llama(folder / "model")
        prompts = make_prompts(arguments.seed)
        (answers,) = in_processes(plain_answers, (model, prompts))
        results = in_processes(
            run_soak,
            *(
                (model, folder / (f"cache-{which}" if remote else "cache"), prompts, answers,
                 which, arguments.seed + which, arguments.minutes, remote)
                for which in range(len(ENGINES))
            ),
        )  # fmt: skip
    failures = [failure for result in results for failure in result["failures"]]
    result = {
        "minutes": arguments.minutes,
        "seed": arguments.seed,
        "remote": arguments.remote.split(":", 1)[0],
        "engines": results,
        "failures": failures,
    }
    write_result(result, arguments.json or "-")
    if failures:
        sys.exit("error: " + "; ".join(failures[:5]))


if __name__ == "__main__":
    main()

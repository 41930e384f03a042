"""One real vLLM engine with lmkv, in a process of its own (``engine_process.py``), and what it does
when it is asked.
"""

import ctypes
import os
import time

CLONE_NEWNET = 0x40000000  # sched.h


def kv_digests(worker, block_ids):
    """In the worker: a digest of each block's bytes, over all layers."""
    import hashlib

    digests = []
    for block in block_ids:
        digest = hashlib.sha256()
        for cache in worker.model_runner.kv_caches:
            digest.update(cache[block].contiguous().numpy().tobytes())
        digests.append(digest.hexdigest())
    return digests


def make_room_for_a_pipeline(worker):
    """In the worker: for what the rank before it computes. VLLM does so in a trial run of the
    model, which it leaves out on CPUs unless the model is compiled, and that takes a minute.
    """
    runner = worker.model_runner
    runner.intermediate_tensors = runner.model.make_empty_intermediate_tensors(
        batch_size=runner.max_num_tokens, dtype=runner.model_config.dtype, device=runner.device
    )


def enter_network(name):
    """Whose sockets those of this process are from now on (``ip netns``)."""
    with open(f"/run/netns/{name}") as space:
        if ctypes.CDLL(None, use_errno=True).setns(space.fileno(), CLONE_NEWNET):
            raise OSError(ctypes.get_errno(), name)


class Driver:
    def __init__(self, arguments):
        from vllm import LLM

        from lmkv.vllm import scheduler

        # Stores of one request are not to be counted with the next, however slow the disk is.
        scheduler.STORE_LINGER_SECONDS = 25.0
        self.llm = LLM(**arguments)
        self.core = self.llm.llm_engine.engine_core.engine_core
        self.scheduler = self.core.scheduler
        if arguments.get("pipeline_parallel_size", 1) > 1:
            self.llm.collective_rpc(make_room_for_a_pipeline)

    def generate(self, prompt, max_tokens=1, cache_salt=None, control=None):
        """``prompt`` is token ids, a text, or a chat's messages; ``control`` as in
        ``kv_transfer_params``.
        """
        from vllm import SamplingParams
        from vllm.inputs import TokensPrompt

        before = self.counters()
        sampling = SamplingParams(
            max_tokens=max_tokens,
            temperature=0.0,
            ignore_eos=True,
            detokenize=False,
            extra_args={"kv_transfer_params": {"lmkv": control}} if control else None,
        )
        if isinstance(prompt, list) and isinstance(prompt[0], dict):
            (output,) = self.llm.chat(prompt, sampling, use_tqdm=False)
        else:
            if isinstance(prompt, list):
                prompt = TokensPrompt(prompt_token_ids=prompt)
                if cache_salt:
                    prompt["cache_salt"] = cache_salt
            (output,) = self.llm.generate(prompt, sampling, use_tqdm=False)
        # An engine core process keeps stepping by itself while blocks are held.
        deadline = time.monotonic() + 30
        while self.scheduler.has_requests() and time.monotonic() < deadline:
            self.llm.llm_engine.step()
        after = self.counters()
        return {
            "tokens": list(output.outputs[0].token_ids),
            "prompt": list(output.prompt_token_ids),
            "ttft": output.metrics.first_token_latency,
            "cached": output.num_cached_tokens,
            "counters": {
                name: count - before.get(name, 0)
                for name, count in after.items()
                if count != before.get(name, 0)
            },
        }

    def counters(self):
        found = {}
        for metric in self.llm.get_metrics():
            name = metric.name.removeprefix("vllm:")
            if not hasattr(metric, "value"):  # a histogram
                continue
            if name.startswith(("lmkv_", "external_prefix_cache")):
                found[name.removeprefix("lmkv_")] = found.get(name, 0) + metric.value
        return found

    def kv(self, prompt):
        """Digests of the prompt's whole blocks that are in vLLM's prefix cache, in order."""
        from vllm import SamplingParams
        from vllm.v1.request import Request

        request = Request(
            "probe", prompt, SamplingParams(max_tokens=1), None,
            block_hasher=self.core.request_block_hasher,
        )  # fmt: skip
        pool = self.scheduler.kv_cache_manager.block_pool
        found = [pool.get_cached_block(block_hash, [0]) for block_hash in request.block_hashes]
        blocks = [cached[0].block_id for cached in found if cached]
        return self.llm.collective_rpc(kv_digests, args=(blocks,))[0]

    def forget(self):
        """Empty vLLM's own prefix cache."""
        return self.llm.reset_prefix_cache()

    def layout(self):
        return self.scheduler.vllm_config.cache_config.kv_cache_layout


def serve(connection, log, environ, arguments):
    """The process: answers requests, (name, arguments), until there is nobody to ask any more.

    ``environ`` is set first. ``arguments`` are those of vLLM's ``LLM``; all that is printed goes to
    the file ``log``.
    """
    with open(log, "w") as output:
        os.dup2(output.fileno(), 1)
        os.dup2(output.fileno(), 2)
    os.environ.update(environ)
    if network := environ.get("TEST_NETWORK"):
        enter_network(network)
    driver = Driver(arguments)
    connection.send("ready")
    while True:
        try:
            what, of_request = connection.recv()
        except (EOFError, ConnectionResetError):
            break
        connection.send(getattr(driver, what)(**of_request))
    driver.core.shutdown()

"""A prompt as an engine sees it: its tokens, and the hashes of its blocks, by vLLM's own code."""

import os
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from vllm import SamplingParams
from vllm.config import DeviceConfig, ModelConfig, VllmConfig
from vllm.entrypoints.openai.chat_completion.protocol import ChatCompletionRequest
from vllm.entrypoints.openai.completion.protocol import CompletionRequest
from vllm.renderers import renderer_from_config
from vllm.renderers.inputs.preprocess import parse_model_prompt
from vllm.utils.hashing import get_hash_fn_by_name
from vllm.v1.core.kv_cache_utils import (
    DEFAULT_NONE_HASH_SEED,
    get_request_block_hasher,
    init_none_hash,
)
from vllm.v1.request import Request

from lmkv.errors import ConfigError


def block_hashes(
    tokens: Sequence[int], *, block_tokens: int, algorithm: str, seed: str, cache_salt: str = ""
) -> list[bytes]:
    """The hashes of a prompt's whole blocks. ``algorithm`` and ``seed`` are a namespace's facts
    ``hash_algorithm`` and ``hash_seed``. Raises ConfigError for an algorithm that vLLM lacks here.

    It sets the seed of this process: not for one that serves.
    """
    try:
        hash_function = get_hash_fn_by_name(algorithm)
        _set_seed(hash_function, seed)
    except (ValueError, ImportError) as error:  # xxhash is a package of its own
        raise ConfigError(f"vLLM cannot hash by {algorithm} here: {error}") from error
    request = Request(
        request_id="explain",
        prompt_token_ids=list(tokens),
        sampling_params=SamplingParams(max_tokens=1),
        pooling_params=None,
        cache_salt=cache_salt or None,
        block_hasher=get_request_block_hasher(block_tokens, hash_function),
    )
    return list(request.block_hashes)


def _set_seed(hash_function: Callable[[Any], bytes], seed: str) -> None:
    """As vLLM takes it: from the environment."""
    before = os.environ.pop("PYTHONHASHSEED", None)
    try:
        if seed != DEFAULT_NONE_HASH_SEED:
            os.environ["PYTHONHASHSEED"] = seed
        init_none_hash(hash_function)
    finally:
        os.environ.pop("PYTHONHASHSEED", None)
        if before is not None:
            os.environ["PYTHONHASHSEED"] = before


def prompt_tokens(model: str, request: Mapping[str, Any]) -> list[int]:
    """The tokens of a request to ``/v1/chat/completions``, or to ``/v1/completions``, as vLLM's
    server makes them of it with its default options. ``model``: a folder, or a name of a hub.

    Raises ConfigError for a request that vLLM refuses, and for one with more than text in it.
    """
    try:
        config = VllmConfig(
            model_config=ModelConfig(model=model), device_config=DeviceConfig("cpu")
        )
        rendered = _render(config, request)
    except (ValueError, TypeError, OSError, RuntimeError) as error:
        said = " ".join(str(error).split())
        raise ConfigError(f"vLLM cannot make tokens of it: {said}") from error
    if len(rendered) != 1 or rendered[0].get("type") != "token":
        raise ConfigError("only one prompt, and of text only, can be explained")
    return list(rendered[0]["prompt_token_ids"])


def _render(config: VllmConfig, request: Mapping[str, Any]) -> Sequence[Mapping[str, Any]]:
    model = config.model_config
    renderer = renderer_from_config(config)
    if "messages" not in request:
        completion = CompletionRequest.model_validate(dict(request))
        prompt = parse_model_prompt(model, completion.prompt)
        answer: Sequence[Mapping[str, Any]] = renderer.render_cmpl(
            [prompt], completion.build_tok_params(model)
        )
        return answer
    chat = ChatCompletionRequest.model_validate(dict(request))
    tools = [tool.model_dump() for tool in chat.tools] if chat.tools else None
    parameters = chat.build_chat_params(None, "auto").with_defaults(
        {"tools": tools, "tokenize": False}
    )
    _, answer = renderer.render_chat([chat.messages], parameters, chat.build_tok_params(model))
    return answer

"""Asks an engine a question through the OpenAI client and measures the answer."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from lmkv.demo import metrics
from lmkv.demo.errors import DemoError
from lmkv.demo.launch import SERVED_NAME

if TYPE_CHECKING:
    from openai import OpenAI

Message = dict[str, str]


@dataclass
class Answer:
    """An answer and its measurements. Filled in while the stream runs, whole when it has ended.

    `ttft_s`: seconds from sending the request to the first piece of text. `tokens_per_s`: after
    the first token. `tokens_loaded`: prompt tokens that came through lmkv. `tokens_kept`: prompt
    tokens from the engine's own prefix cache. `reading_s`: how long lmkv read its chunks from the
    directory, a part of `ttft_s` that is up to the disk.
    """

    text: str = ""
    ttft_s: float = 0.0
    total_s: float = 0.0
    prompt_tokens: int = 0
    answer_tokens: int = 0
    tokens_loaded: int = 0
    tokens_kept: int = 0
    reading_s: float = 0.0

    @property
    def tokens_per_s(self) -> float:
        """Decoding speed; 0.0 for an answer of one token."""
        decoding = self.total_s - self.ttft_s
        return (self.answer_tokens - 1) / decoding if decoding > 0 else 0.0


class Asker:
    """A connection to one engine. One request at a time: counters are read around it."""

    def __init__(
        self, base_url: str, model: str = SERVED_NAME, *, timeout_s: float = 600.0
    ) -> None:
        from openai import DefaultHttpxClient, OpenAI, Timeout

        self._base_url = base_url
        self._model = model
        # trust_env=False: a proxy configured for the internet must not see loopback requests.
        http = DefaultHttpxClient(trust_env=False, timeout=Timeout(timeout_s, connect=10))
        self._client: OpenAI = OpenAI(
            base_url=f"{base_url}/v1", api_key="unused", http_client=http, max_retries=0
        )

    def warm_up(self) -> None:
        """Answers a few tokens, shorter than a KV block, so that nothing is cached or stored.

        The first request of an engine pays for what the following ones do not (templates,
        buffers, connections), with lmkv and without; the measured ones should not.
        """
        for _ in self.stream([{"role": "system", "content": "."}, _user("Hi")], max_tokens=2):
            pass

    def ask(self, messages: Sequence[Message], max_tokens: int) -> Answer:
        """The whole answer. Blocks; raises `DemoError`."""
        *_, answer = self.stream(messages, max_tokens)
        return answer

    def stream(
        self, messages: Sequence[Message], max_tokens: int, salt: str = ""
    ) -> Iterator[Answer]:
        """Yields the same `Answer` after every piece of text, and once more when it is whole.

        Greedy decoding, so that engines can be compared. KV that was computed with another `salt`
        is not used, whether it is in the engine or in the directory. Raises `DemoError`.
        """
        import openai

        try:
            yield from self._stream(messages, max_tokens, salt)
        except openai.BadRequestError as error:
            raise _refused(error) from error
        except _connection_errors() as error:
            raise DemoError(f"the engine stopped answering: {error}") from error

    def _stream(self, messages: Sequence[Message], max_tokens: int, salt: str) -> Iterator[Answer]:
        before = metrics.read(self._base_url)
        request: Any = {
            "model": self._model,
            "messages": list(messages),
            "max_tokens": max_tokens,
            "temperature": 0.0,
            "stream": True,
            "stream_options": {"include_usage": True},
        }
        if salt:
            request["extra_body"] = {"cache_salt": salt}
        answer = Answer()
        started = time.perf_counter()
        for part in self._client.chat.completions.create(**request):
            if part.usage is not None:
                answer.prompt_tokens = part.usage.prompt_tokens
                answer.answer_tokens = part.usage.completion_tokens
            text = part.choices[0].delta.content if part.choices else None
            if text:
                answer.ttft_s = answer.ttft_s or time.perf_counter() - started
                answer.text += text
                yield answer
        answer.total_s = time.perf_counter() - started
        if not answer.prompt_tokens:  # the last part of every whole stream counts the tokens
            raise DemoError("the engine stopped answering: the answer was cut off")
        if not answer.text:
            raise DemoError(
                "the engine answered without a word",
                hint="ask another question, or allow more tokens",
            )
        after = metrics.read(self._base_url)
        answer.tokens_loaded = after.tokens_loaded - before.tokens_loaded
        answer.tokens_kept = after.tokens_kept - before.tokens_kept
        answer.reading_s = after.reading_s - before.reading_s
        yield answer


def _user(content: str) -> Message:
    return {"role": "user", "content": content}


def _connection_errors() -> tuple[type[Exception], ...]:
    """What a broken connection raises. The openai client 3 uses httpx2, a fork of httpx."""
    import openai

    modules = (sys.modules.get(name) for name in ("httpx", "httpx2"))
    transport = [module.HTTPError for module in modules if module is not None]
    return (openai.OpenAIError, *transport)


def _refused(error: Any) -> DemoError:
    """The sentence for a request that the engine calls wrong: nearly always its length."""
    text = str(error.body.get("message", error) if isinstance(error.body, dict) else error)
    if "context length" in text or "max_model_len" in text or "maximum model length" in text:
        return DemoError(
            f"the document is too long for the model: {text}",
            hint="give a shorter document, or a model with a longer context",
        )
    return DemoError(f"the engine refused the request: {text}")

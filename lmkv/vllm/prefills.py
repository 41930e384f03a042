"""Which admitted prompts are still being computed, and what the steps that do it take."""

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from vllm.v1.request import Request

from lmkv.vllm.pace import FEWEST_TOKENS, Pace


@dataclass(slots=True)
class _Step:
    number: int
    tokens: int
    begun: float


class Prefills:
    """Times the steps that prefill much. Scheduler thread only.

    With asynchronous scheduling a step is planned while the one before it runs: it begins when it
    is planned or when that one ends, whichever is later. Workers say which step has ended.
    """

    def __init__(self, pace: Pace, clock: Callable[[], float] = time.monotonic) -> None:
        self._pace = pace
        self._clock = clock
        self._requests: dict[str, Request] = {}
        self._timed: list[_Step] = []
        self._last_number = 0
        self._last_end = 0.0

    def __bool__(self) -> bool:
        return bool(self._requests or self._timed)

    def admit(self, request: Request) -> None:
        """Its prompt is computed from now on, behind what it has."""
        self._requests[request.request_id] = request

    def forget(self, request_id: str) -> None:
        """The request ended."""
        self._requests.pop(request_id, None)

    def backlog(self) -> int:
        """Prompt tokens of admitted requests that are still to be computed."""
        return sum(
            max(0, request.num_prompt_tokens - request.num_computed_tokens)
            for request in self._requests.values()
        )

    def step(self, scheduled_tokens: Mapping[str, int]) -> int:
        """A step is planned; its number if it is to be timed, or 0."""
        if not self._requests:
            return 0
        tokens = 0
        done = []
        for request_id, request in self._requests.items():
            scheduled = scheduled_tokens.get(request_id, 0)
            tokens += scheduled
            if request.num_computed_tokens + scheduled >= request.num_prompt_tokens:
                done.append(request_id)
        for request_id in done:
            del self._requests[request_id]
        if tokens < FEWEST_TOKENS:
            return 0
        self._last_number += 1
        self._timed.append(_Step(self._last_number, tokens, self._clock()))
        return self._last_number

    def step_ended(self, number: int) -> None:
        """Any step has ended; ``number`` is what ``step`` said of it."""
        if not self._timed:  # the next to be timed is not planned yet, and begins later than now
            return
        now = self._clock()
        while number and self._timed and self._timed[0].number <= number:
            step = self._timed.pop(0)
            if step.number == number:
                self._pace.saw_prefill(step.tokens, now - max(step.begun, self._last_end))
        self._last_end = now

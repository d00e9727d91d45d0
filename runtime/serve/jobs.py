"""From the body of a request to what the scheduler decodes: one order for each choice."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from time import perf_counter
from typing import Any, TypeVar

from ..decoding.options import CHAT_OPTIONS, GenerationOptions
from ..decoding.session import Session
from ..sampling.declaration import options_of
from ..trace.record import Trace
from .refusals import RefusedError, timed_out
from .requests import Defaults, Request, detokenize_request, tokenize_request
from .scheduler import Order
from .tool_use import ToolUse, form_of

_NO_CHAT_OPTIONS: dict[str, Any] = {
    name: options_of(GenerationOptions)[name].default for name in CHAT_OPTIONS
}
"""Values of options that only say how messages become tokens."""

Parse = Callable[[bytes, Defaults], Request]
Result = TypeVar("Result")


@dataclass(frozen=True)
class Job:
    """A request that was read and fits the bundle.

    Attributes:
        request: what is asked.
        prompts: tokens of each prompt.
        arrived: time of arrival, on the clock of `perf_counter`.
        owner: index of the API key that it came with.
    """

    request: Request
    prompts: Sequence[list[int]]
    arrived: float
    owner: int

    @property
    def count(self) -> int:
        """Number of choices of the answer."""
        return len(self.prompts) * self.request.n


class Reader:
    """Reads requests in a thread of its own, one at a time.

    What holds Python's lock there delays the event loop once, not once for each client.

    Args:
        session: whose bundle the requests must fit; nothing is decoded on it.
        defaults: values for requests that do not set them.
        timeout: seconds that a request may take, waiting included.
    """

    def __init__(self, session: Session, defaults: Defaults, timeout: float) -> None:
        self._session = session
        self._defaults = defaults
        self._timeout = timeout
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="cospec-reader")

    async def run(self, function: Callable[..., Result], *arguments: Any) -> Result:
        """Call a function in the reader's thread."""
        return await asyncio.get_running_loop().run_in_executor(self._thread, function, *arguments)

    def read(self, parse: Parse, data: bytes, arrived: float, owner: int) -> tuple[Job, Order]:
        """Read a request, tokenise its prompts, and return it with its first order.

        Raises:
            CospecError: it cannot be decoded.
        """
        try:
            request = parse(data, self._defaults)
            job = Job(request, self._tokens(request), arrived, owner)
            return job, self.order(job, 0)
        except RecursionError:
            raise RefusedError("the body is nested too deeply") from None

    def tokenize(self, data: bytes) -> dict[str, Any]:
        """Answer a request to `/tokenize`; the prompt must fit the bundle's capacity."""
        request, is_spelled = tokenize_request(data, self._defaults)
        (tokens,) = self._tokens(request)
        spelling = self._session.codec.spelling
        return {
            "count": len(tokens),
            "max_model_len": self._session.manifest.capacity,
            "tokens": tokens,
            "token_strs": [spelling(token) for token in tokens] if is_spelled else None,
        }

    def detokenize(self, data: bytes) -> dict[str, Any]:
        """Answer a request to `/detokenize`; special tokens are spelled, as vLLM does it."""
        codec = self._session.codec
        tokens = self._session.encode(detokenize_request(data, self._defaults))
        return {"prompt": codec.tokenizer.decode(tokens, skip_special_tokens=False)}

    def _tokens(self, request: Request) -> list[list[int]]:
        return [self._session.encode(one, request.options) for one in request.prompts]

    def order(self, job: Job, index: int) -> Order:
        """Return the order of one choice.

        Raises:
            CospecError: it cannot be decoded, or the time of the request is over.
        """
        request, place = job.request, index // job.request.n
        left = job.arrived + self._timeout - perf_counter()
        if left <= 0:
            raise timed_out(self._timeout, queued=True)
        trace = Trace(self._session) if request.trace else None
        options = replace(
            request.options_of_choice(index), timeout=left, observer=trace, **_NO_CHAT_OPTIONS
        )
        if request.tool_use is not None:
            options = self._with_calls(options, request.tool_use, request.options.template)
        self._check_length(options.num_draft_tokens)
        plan = self._session.plan(job.prompts[place], **vars(options))
        echo = None
        if request.echo:
            prompt = request.prompts[place]
            echo = prompt if isinstance(prompt, str) else self._session.codec.decode(plan.tokens)
        return Order(
            plan,
            job.arrived,
            job.owner,
            is_first=index == 0,
            echo=echo,
            writes=request.writes,
            trace=trace,
        )

    def _with_calls(
        self, options: GenerationOptions, use: ToolUse, template: str | None
    ) -> GenerationOptions:
        """Return options whose grammar allows calls of tools beside the answer that was asked for."""
        schema = options.json_schema
        answer = None if schema is None else json.loads(str(schema))
        grammar = use.grammar(form_of(self._session.codec, template), answer)
        if grammar is None:
            return options
        return replace(options, grammar=grammar, json_schema=None)

    def _check_length(self, length: object) -> None:
        defaults = self._session.manifest.generation
        widest = max(defaults.num_draft_tokens, defaults.prefill_chunk - 1)
        if isinstance(length, int) and length > widest:
            raise RefusedError(
                f"num_draft_tokens is {length}, but a pass of this bundle drafts at most {widest}",
                param="num_draft_tokens",
            )

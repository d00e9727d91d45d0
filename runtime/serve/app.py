"""The HTTP side: routes, keys, bodies, events, and clients that leave."""

from __future__ import annotations

import asyncio
import hmac
import json
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from dataclasses import dataclass, field
from time import perf_counter, time
from typing import Any

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect
from starlette.requests import Request as HttpRequest
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from ...errors import BundleError, CospecError
from ..bundle.json_input import parse_json_object
from ..decoding.completion import Piece
from ..decoding.session import Session
from .answers import Answer, ChatAnswer, TextAnswer
from .metrics import Metrics
from .refusals import RefusedError, refusal_of
from .requests import Defaults, Request, chat_request, completion_request
from .running import ClientLeftError, EventStream, Running
from .scheduler import Order, Scheduler
from .token_text import TokenTexts

MAX_JSON_DEPTH = 16
"""The deepest request of the API has 6 levels."""
CLIENT_LEFT = 499
"""nginx's status for a client that closed the connection; nobody reads it."""

Parse = Callable[[Mapping[str, Any], Defaults], Request]


@dataclass(frozen=True)
class ServeOptions:
    """How a bundle is served.

    Attributes:
        defaults: what holds where a request says nothing.
        api_key: what `/v1` asks for, or None.
        max_queue: requests that may wait for a slot.
        timeout: seconds that a request may take, waiting included.
        max_body_bytes: of a request.
        body_timeout: seconds in which a request's body must have come.
    """

    defaults: Defaults
    api_key: str | None = field(default=None, repr=False)
    max_queue: int = 64
    timeout: float = 600.0
    max_body_bytes: int = 2 << 20
    body_timeout: float = 30.0


class Service:
    """One bundle behind HTTP.

    Args:
        sessions: the decoding slots, at least one, all on the same engines.
        options: how it is served.

    Raises:
        UsageError: a default that no request could be answered with.
        MissingExtraError: prometheus_client is not installed.
    """

    def __init__(self, sessions: Sequence[Session], options: ServeOptions) -> None:
        self.options = options
        self.metrics = Metrics(options.defaults.model)
        self.scheduler = Scheduler(sessions, options.max_queue, options.timeout, self.metrics)
        self.app = Starlette(
            routes=[
                Route("/v1/chat/completions", self._chat, methods=["POST"]),
                Route("/v1/completions", self._text, methods=["POST"]),
                Route("/v1/models", self._models),
                Route("/v1/models/{model:path}", self._model),
                Route("/health", self._health),
                Route("/metrics", self._metrics),
            ],
            exception_handlers={
                CospecError: self._refuse,
                HTTPException: _http_error,
                Exception: _bug,
            },
        )
        self._session = sessions[0]
        self._order(completion_request({"prompt": "?"}, options.defaults), arrived=0.0)
        self._texts = TokenTexts(self._session.codec)
        self._started = int(time())

    async def _chat(self, http: HttpRequest) -> Response:
        return await self._answer(http, chat_request, ChatAnswer)

    async def _text(self, http: HttpRequest) -> Response:
        return await self._answer(http, completion_request, TextAnswer)

    async def _models(self, http: HttpRequest) -> Response:
        self._check_key(http)
        return JSONResponse({"object": "list", "data": [self._card()]})

    async def _model(self, http: HttpRequest) -> Response:
        self._check_key(http)
        name, served = http.path_params["model"], self.options.defaults.model
        if name != served:
            raise RefusedError(
                f"the model '{name[:100]}' is not here; this server has '{served}'",
                status=404,
                code="model_not_found",
            )
        return JSONResponse(self._card())

    async def _health(self, http: HttpRequest) -> Response:
        """Say 200 while requests are taken; what balances load asks this."""
        state = "shutting down" if self.scheduler.closed else "ok"
        return JSONResponse({"status": state}, 503 if self.scheduler.closed else 200)

    async def _metrics(self, http: HttpRequest) -> Response:
        return Response(self.metrics.render(), headers={"Content-Type": self.metrics.content_type})

    async def _answer(self, http: HttpRequest, parse: Parse, form: type[Answer]) -> Response:
        """Answer one request of either API."""
        arrived = perf_counter()
        self._check_key(http)
        try:
            request = parse(await self._body(http), self.options.defaults)
            self.scheduler.ensure_room()  # before work is done on its text
            # Tokenising a long prompt takes a while, and the other clients' events must not wait.
            order = await asyncio.to_thread(self._order, request, arrived)
            running = Running(self.scheduler, order, http)
            answer = form(
                self.options.defaults.model,
                f"fp_{self._session.manifest.seal[:16]}",
                self._texts,
                logprobs=request.sampling.logprobs is not None,
                include_usage=request.include_usage,
            )
            if not request.stream:
                stream = await running.end()
                return JSONResponse(answer.whole(stream.completion()))
            pieces = aiter(running)
            first = await anext(pieces)  # until here, an error is a status of its own
            return EventStream(self._events(answer, running, first, pieces))
        except (ClientLeftError, ClientDisconnect):
            return Response(status_code=CLIENT_LEFT)

    async def _events(
        self, answer: Answer, running: Running, first: Piece, pieces: AsyncIterator[Piece]
    ) -> AsyncIterator[str]:
        """Yield the data of each event."""
        try:
            for chunk in answer.opening() + answer.chunks(first):
                yield _compact(chunk)
            async for piece in pieces:
                for chunk in answer.chunks(piece):
                    yield _compact(chunk)
            stream = await running.end()
            assert stream.finish_reason is not None, "it has ended"
            for chunk in answer.closing(stream.finish_reason, stream.stats):
                yield _compact(chunk)
        except ClientLeftError:
            return
        except CospecError as error:  # too late for a status: clients know this event
            yield _compact(self._refused(error).to_json())
        finally:
            running.cancel()
        yield "[DONE]"

    def _order(self, request: Request, arrived: float) -> Order:
        """Check a request against the bundle, as far as that goes without decoding.

        Raises:
            CospecError: it cannot be decoded.
        """
        manifest = self._session.manifest
        defaults = manifest.generation
        length = request.num_draft_tokens
        widest = max(defaults.num_draft_tokens, defaults.prefill_chunk - 1)
        if isinstance(length, int) and length > widest:
            raise RefusedError(
                f"num_draft_tokens is {length}, but a pass of this bundle drafts at most {widest}",
                param="num_draft_tokens",
            )
        # A stream does nothing before it is asked for its first piece, but all checks are made.
        checked = self._session.stream(
            request.prompt,
            max_tokens=request.max_tokens,
            num_draft_tokens=length,
            sampling=request.sampling,
            mode=request.mode,
            threshold=request.threshold,
        )
        return Order(request, checked.prompt_tokens, arrived)

    async def _body(self, http: HttpRequest) -> dict[str, Any]:
        """Read the body of a request.

        Raises:
            RefusedError: it is not JSON, too large or too slow.
        """
        kind = http.headers.get("content-type", "").partition(";")[0].strip().lower()
        if kind != "application/json":
            # Web pages of other origins may send any other type without asking first.
            raise RefusedError(
                f"the Content-Type is '{kind[:60]}', but must be 'application/json'", status=415
            )
        try:
            data = await asyncio.wait_for(self._read(http), self.options.body_timeout)
            return parse_json_object(
                data, max_bytes=self.options.max_body_bytes, max_depth=MAX_JSON_DEPTH
            )
        except BundleError as error:  # what a file of a bundle would be refused with
            raise RefusedError(f"the body is {error.message}") from error
        except asyncio.TimeoutError:
            raise RefusedError("the body took too long to come", status=408) from None

    async def _read(self, http: HttpRequest) -> bytes:
        limit = self.options.max_body_bytes
        data = bytearray()
        async for chunk in http.stream():
            data += chunk
            if len(data) > limit:
                raise RefusedError(
                    f"the body is larger than {limit} bytes",
                    status=413,
                    headers={"Connection": "close"},
                    reason="too_large",
                )
        return bytes(data)

    def _check_key(self, http: HttpRequest) -> None:
        """Refuse who has not the key; the comparison takes as long for any wrong key."""
        key = self.options.api_key
        if key is None:
            return
        scheme, _, given = http.headers.get("authorization", "").partition(" ")
        same = hmac.compare_digest(given.strip().encode(), key.encode())
        if scheme.lower() != "bearer" or not same:
            raise RefusedError(
                "the API key is missing or wrong: send the header 'Authorization: Bearer KEY'",
                status=401,
                code="invalid_api_key",
                headers={"WWW-Authenticate": "Bearer"},
                reason="unauthorized",
            )

    def _card(self) -> dict[str, Any]:
        return {
            "id": self.options.defaults.model,
            "object": "model",
            "created": self._started,
            "owned_by": "cospec",
            "max_model_len": self._session.manifest.capacity,
        }

    async def _refuse(self, http: HttpRequest, error: Exception) -> Response:
        assert isinstance(error, CospecError), "Starlette asks for these only"
        refusal = self._refused(error)
        return JSONResponse(refusal.to_json(), refusal.status, headers=refusal.headers)

    def _refused(self, error: CospecError) -> RefusedError:
        refusal = refusal_of(error)
        self.metrics.refused(refusal.reason)
        return refusal


def _compact(value: object) -> str:
    return json.dumps(value, ensure_ascii=False, separators=(",", ":"))


async def _http_error(http: HttpRequest, error: Exception) -> Response:
    """Say in OpenAI's form what the routing refuses: unknown paths, wrong methods."""
    assert isinstance(error, HTTPException), "Starlette asks for these only"
    refusal = RefusedError(f"{http.method} {http.url.path[:100]}: {error.detail}")
    return JSONResponse(refusal.to_json(), error.status_code, headers=error.headers)


async def _bug(http: HttpRequest, error: Exception) -> Response:
    """Say that it was us; the traceback is in the log, and no business of the client."""
    refusal = RefusedError("the server failed; its log says why", kind="server_error")
    return JSONResponse(refusal.to_json(), 500)

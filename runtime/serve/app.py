"""The HTTP application: routes, and the way of a request from its body to its answer."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from time import perf_counter, time
from typing import Any

import msgspec
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.middleware.cors import CORSMiddleware
from starlette.requests import ClientDisconnect
from starlette.requests import Request as HttpRequest
from starlette.responses import Response
from starlette.routing import Route

from ..decoding.completion import Piece
from ..decoding.generation import Plan
from ..decoding.session import Session
from .access import KnownHosts, owner_of
from .answers import Answer, ChatAnswer, TextAnswer
from .bodies import read_body
from .containment import Containment
from .metrics import Metrics
from .refusals import RefusedError, refusal_of, unknown_model
from .requests import Defaults, Request, chat_request, completion_request
from .running import ClientLeftError, EventStream, Running
from .scheduler import Order, Scheduler
from .token_text import TokenTexts

CLIENT_LEFT = 499
"""nginx's status for a client that closed the connection; nobody reads it."""

Parse = Callable[[bytes, Defaults], Request]

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class ServeOptions:
    """How a bundle is served.

    Attributes:
        defaults: options of requests that do not set them.
        api_keys: keys that `/v1` accepts; empty accepts everybody. Caches are shared within one key.
        hide_cached_tokens: do not report how much of a prompt was found in a cache.
        known_hosts: values of the Host header that are served, without port; None serves all.
        cors_origins: origins whose web pages may use the server.
        max_queue: number of requests that may wait for a slot.
        timeout: seconds that a request may take, waiting included.
        max_body_bytes: largest body of a request.
        body_timeout: seconds in which the body of a request must arrive.
    """

    defaults: Defaults
    api_keys: tuple[str, ...] = field(default=(), repr=False)
    hide_cached_tokens: bool = False
    known_hosts: frozenset[str] | None = None
    cors_origins: tuple[str, ...] = ()
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
        self.metrics = Metrics(options.defaults.model, hide_hits=options.hide_cached_tokens)
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
            middleware=self._middleware(),
            exception_handlers={HTTPException: _http_error},
        )
        self._session = sessions[0]
        self._running: set[Running] = set()
        # One thread reads all requests: what holds Python's lock there delays the event loop once, not
        # once for each client.
        self._reader = ThreadPoolExecutor(1, thread_name_prefix="cospec-reader")
        self._plan(completion_request(b'{"prompt": "?"}', options.defaults))
        if self._session.drafter != "none":
            _ = self._session.draft_length_controller  # measures costs while nothing else runs
        self._texts = TokenTexts(self._session.codec)
        self._started = int(time())

    def cut(self) -> None:
        """End all running answers now, each with an error."""
        for running in list(self._running):
            running.cut()

    def _middleware(self) -> list[Middleware]:
        options = self.options
        chain = [Middleware(Containment, refused=self._refused)]
        if options.known_hosts is not None:
            chain.append(Middleware(KnownHosts, names=options.known_hosts))
        if options.cors_origins:
            origins = list(options.cors_origins)
            headers = ["Authorization", "Content-Type"]
            chain.append(
                Middleware(
                    CORSMiddleware,
                    allow_origins=origins,
                    allow_methods=["GET", "POST"],
                    allow_headers=headers,
                )
            )
        return chain

    async def _chat(self, http: HttpRequest) -> Response:
        return await self._answer(http, chat_request, ChatAnswer)

    async def _text(self, http: HttpRequest) -> Response:
        return await self._answer(http, completion_request, TextAnswer)

    async def _models(self, http: HttpRequest) -> Response:
        self._owner(http)
        return _json({"object": "list", "data": [self._card()]})

    async def _model(self, http: HttpRequest) -> Response:
        self._owner(http)
        name, served = http.path_params["model"], self.options.defaults.model
        if name != served:
            raise unknown_model(name, served)
        return _json(self._card())

    async def _health(self, http: HttpRequest) -> Response:
        """Return 200 while requests are accepted; load balancers ask this."""
        closed = self.scheduler.closed
        return _json({"status": "shutting down" if closed else "ok"}, 503 if closed else 200)

    async def _metrics(self, http: HttpRequest) -> Response:
        return Response(self.metrics.render(), headers={"Content-Type": self.metrics.content_type})

    async def _answer(self, http: HttpRequest, parse: Parse, form: type[Answer]) -> Response:
        """Answer one request of either API."""
        arrived = perf_counter()
        owner = self._owner(http)
        try:
            data = await read_body(http, self.options.max_body_bytes, self.options.body_timeout)
            self.scheduler.ensure_room()  # before work is done on its text
            request, order = await asyncio.get_running_loop().run_in_executor(
                self._reader, self._read, parse, data, arrived, owner
            )
            answer = form(
                self.options.defaults.model,
                f"fp_{self._session.manifest.seal[:16]}",
                self._texts,
                logprobs=request.options.logprobs is not None,
                include_usage=request.include_usage,
                show_cached=not self.options.hide_cached_tokens,
            )
            running = Running(self.scheduler, order, http, self._running)
            if not request.stream:
                stream = await running.end()
                return _json(answer.whole(stream.completion()))
            pieces = aiter(running)
            first = await anext(pieces)  # until here, an error is a status of its own
            return EventStream(self._events(answer, running, first, pieces))
        except (ClientLeftError, ClientDisconnect):
            return Response(status_code=CLIENT_LEFT)

    async def _events(
        self, answer: Answer, running: Running, first: Piece, pieces: AsyncIterator[Piece]
    ) -> AsyncIterator[bytes]:
        """Yield the data of each event."""
        try:
            for chunk in answer.opening() + answer.chunks(first):
                yield _encode(chunk)
            async for piece in pieces:
                for chunk in answer.chunks(piece):
                    yield _encode(chunk)
            stream = await running.end()
            assert stream.finish_reason is not None, "it has ended"
            for chunk in answer.closing(stream.finish_reason, stream.stats):
                yield _encode(chunk)
        except ClientLeftError:
            return
        except (asyncio.CancelledError, GeneratorExit):
            raise
        except BaseException as error:  # noqa: BLE001 - a panic in a library written in Rust is one
            yield self._refused(error).to_json()  # too late for a status: clients know this event
        finally:
            running.cancel()
        yield b"[DONE]"

    def _read(self, parse: Parse, data: bytes, arrived: float, owner: int) -> tuple[Request, Order]:
        """Read a request and tokenise its prompt; called in the reader's thread."""
        try:
            request = parse(data, self.options.defaults)
            return request, Order(self._plan(request), arrived, owner)
        except RecursionError:
            raise RefusedError("the body is nested too deeply") from None

    def _plan(self, request: Request) -> Plan:
        """Check a request against the bundle.

        Raises:
            CospecError: it cannot be decoded.
        """
        defaults = self._session.manifest.generation
        length = request.options.num_draft_tokens
        widest = max(defaults.num_draft_tokens, defaults.prefill_chunk - 1)
        if isinstance(length, int) and length > widest:
            raise RefusedError(
                f"num_draft_tokens is {length}, but a pass of this bundle drafts at most {widest}",
                param="num_draft_tokens",
            )
        options = replace(request.options, timeout=self.options.timeout)
        return self._session.plan(request.prompt, **vars(options))

    def _owner(self, http: HttpRequest) -> int:
        return owner_of(http.headers.get("authorization", ""), self.options.api_keys)

    def _card(self) -> dict[str, Any]:
        return {
            "id": self.options.defaults.model,
            "object": "model",
            "created": self._started,
            "owned_by": "cospec",
            "max_model_len": self._session.manifest.capacity,
        }

    def _refused(self, error: BaseException) -> RefusedError:
        """Return what a client is sent in place of an answer; faults of our own go to the log."""
        refusal = refusal_of(error)
        if refusal.reason == "server_error":
            _log.error("a request failed", exc_info=error)
        self.metrics.refused(refusal.reason)
        return refusal


_encode = msgspec.json.encode


def _json(value: object, status: int = 200) -> Response:
    return Response(_encode(value), status, media_type="application/json")


async def _http_error(http: HttpRequest, error: Exception) -> Response:
    """Return what the routing refuses, unknown paths and wrong methods, in OpenAI's form."""
    assert isinstance(error, HTTPException), "registered for these only"
    refusal = RefusedError(
        f"{http.method} {http.url.path[:100]!a}: {error.detail}",
        status=error.status_code,
        headers=error.headers,
    )
    return refusal.response()

"""The HTTP application: routes, and the way of a request from its body to its answer."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Callable, Sequence
from dataclasses import dataclass, field
from importlib.util import find_spec
from time import perf_counter, time
from typing import Any

import msgspec
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.middleware.cors import CORSMiddleware
from starlette.requests import ClientDisconnect
from starlette.requests import Request as HttpRequest
from starlette.responses import HTMLResponse, Response
from starlette.routing import Route

from ..decoding.session import Session
from .access import KnownHosts, owner_of
from .answers import Answer, Form
from .bodies import read_body
from .chat_page import read_chat_page
from .completion_answers import ChatAnswer, TextAnswer
from .containment import Containment
from .jobs import Job, Parse, Reader
from .metrics import Metrics
from .refusals import RefusedError, refusal_of, unknown_model
from .requests import Defaults, Request, chat_request, completion_request
from .responses import responses_request
from .responses_answer import ResponsesAnswer
from .running import ClientLeftError, EventStream, Running
from .scheduler import Order, Scheduler
from .token_text import TokenTexts
from .tool_use import form_of

CLIENT_LEFT = 499
"""nginx's status for a client that closed the connection; nobody reads it."""

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
        page: serve the chat page at `/`.
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
    page: bool = True
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
                Route("/v1/responses", self._responses, methods=["POST"]),
                Route("/v1/models", self._models),
                Route("/v1/models/{model:path}", self._model),
                Route("/tokenize", self._tokenize, methods=["POST"]),
                Route("/detokenize", self._detokenize, methods=["POST"]),
                Route("/health", self._health),
                Route("/metrics", self._metrics),
                *([Route("/", self._page)] if options.page else []),
            ],
            middleware=self._middleware(),
            exception_handlers={HTTPException: _http_error},
        )
        self._session = sessions[0]
        self._running: set[Running] = set()
        self._reader = Reader(sessions[0], options.defaults, options.timeout)
        self._reader.read(completion_request, b'{"prompt": "?"}', perf_counter(), 0)
        if self._session.drafter != "none":
            _ = self._session.draft_length_controller  # measures costs while nothing else runs
        self._texts = TokenTexts(self._session.codec)
        self._started = int(time())
        self._page_and_headers = read_chat_page()

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

    async def _responses(self, http: HttpRequest) -> Response:
        return await self._answer(http, responses_request, ResponsesAnswer)

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

    async def _page(self, http: HttpRequest) -> Response:
        """Return the chat page; it needs no key, because what it sends does."""
        page, headers = self._page_and_headers
        return HTMLResponse(page, headers=headers)

    async def _tokenize(self, http: HttpRequest) -> Response:
        return await self._convert(http, self._reader.tokenize)

    async def _detokenize(self, http: HttpRequest) -> Response:
        return await self._convert(http, self._reader.detokenize)

    async def _convert(
        self, http: HttpRequest, convert: Callable[[bytes], dict[str, Any]]
    ) -> Response:
        """Answer a request that needs the tokenizer only."""
        self._owner(http)
        try:
            return _json(await self._reader.run(convert, await self._body(http)))
        except ClientDisconnect:
            return Response(status_code=CLIENT_LEFT)

    async def _body(self, http: HttpRequest) -> bytes:
        return await read_body(http, self.options.max_body_bytes, self.options.body_timeout)

    async def _answer(self, http: HttpRequest, parse: Parse, kind: type[Answer]) -> Response:
        """Answer one request of either API."""
        arrived = perf_counter()
        owner = self._owner(http)
        try:
            data = await self._body(http)
            self.scheduler.ensure_room()  # before work is done on its text
            job, order = await self._reader.run(self._reader.read, parse, data, arrived, owner)
            answer = kind(self._form(job.request))
            chunks = self._choices(http, job, order, answer)
            first = await anext(chunks)  # until here, an error is a status of its own
            if job.request.stream:
                return EventStream(self._events(answer, first, chunks))
            async for _ in chunks:
                pass
            return _json(answer.whole())
        except (ClientLeftError, ClientDisconnect):
            return Response(status_code=CLIENT_LEFT)

    def _form(self, request: Request) -> Form:
        codec, use, template = self._session.codec, request.tool_use, request.options.template
        return Form(
            self.options.defaults.model,
            f"fp_{self._session.manifest.seal[:16]}",
            self._texts,
            request,
            show_cached=not self.options.hide_cached_tokens,
            splitter=codec.split_reasoning if request.separates_reasoning else lambda prompt: None,
            calls=None if use is None else lambda: use.reader(form_of(codec, template)),
        )

    async def _choices(
        self, http: HttpRequest, job: Job, order: Order, answer: Answer
    ) -> AsyncIterator[list[dict[str, Any]]]:
        """Decode the choices one after the other, write them into the answer, yield its chunks."""
        for index in range(job.count):
            if index > 0:
                order = await self._reader.run(self._reader.order, job, index)
            chunks = answer.open(index, order.plan.tokens)
            running = Running(self.scheduler, order, http, self._running)
            async for piece in running:
                yield chunks + answer.push(piece)
                chunks = []
            stream = await running.end()
            page = await self._reader.run(order.page, stream)
            is_new = index % job.request.n == 0
            yield chunks + answer.close(stream, page, counts_prompt=is_new)
        yield answer.finish()

    async def _events(
        self,
        answer: Answer,
        first: list[dict[str, Any]],
        rest: AsyncIterator[list[dict[str, Any]]],
    ) -> AsyncIterator[bytes]:
        """Yield the events of a stream."""
        try:
            for chunk in first:
                yield answer.frame(chunk)
            async for chunks in rest:
                for chunk in chunks:
                    yield answer.frame(chunk)
        except ClientLeftError:
            return
        except (asyncio.CancelledError, GeneratorExit):
            raise
        except BaseException as error:  # noqa: BLE001 - a panic in a library written in Rust is one
            yield answer.failed(self._refused(error))  # too late for a status
        else:
            yield answer.ending

    def _owner(self, http: HttpRequest) -> int:
        return owner_of(http.headers.get("authorization", ""), self.options.api_keys)

    def _card(self) -> dict[str, Any]:
        return {
            "id": self.options.defaults.model,
            "object": "model",
            "created": self._started,
            "owned_by": "cospec",
            "max_model_len": self._session.manifest.capacity,
            "capabilities": self._capabilities(),
        }

    def _capabilities(self) -> dict[str, Any]:
        """Return what requests may ask of this bundle, under our own key."""
        session = self._session
        return {
            "chat": session.codec.has_chat_template,
            "modes": ["strict"] if session.arbiter is None else ["strict", "collab"],
            "drafter": session.drafter,
            "num_draft_tokens": session.manifest.generation.num_draft_tokens,
            "max_tokens": session.manifest.generation.max_tokens,
            "grammars": find_spec("llguidance") is not None,
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

"""Connects an order in the scheduler with its client, which may leave at any moment."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import suppress
from typing import Any

from starlette.requests import ClientDisconnect
from starlette.requests import Request as HttpRequest
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from ..decoding.completion import Piece, Stream
from .refusals import shutting_down
from .scheduler import Order, Scheduler


class ClientLeftError(Exception):
    """The client closed the connection."""


class Running:
    """An order that is being processed; it ends when its client leaves.

    Its pieces wait here until they are sent, so a client that reads slowly keeps no slot busy.

    Args:
        scheduler: decodes it.
        order: what to decode.
        http: the client's request, whose body has been read.
        group: all orders that are being processed.
    """

    def __init__(
        self, scheduler: Scheduler, order: Order, http: HttpRequest, group: set[Running]
    ) -> None:
        self._pieces: asyncio.Queue[Piece | None] = asyncio.Queue()
        self._cut: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._work = asyncio.ensure_future(scheduler.generate(order, self._pieces.put_nowait))
        self._gone = asyncio.ensure_future(_left(http))
        self._group = group
        group.add(self)
        self._work.add_done_callback(self._ended)
        self._gone.add_done_callback(lambda _: self._work.cancel())

    async def __aiter__(self) -> AsyncIterator[Piece]:
        try:
            while (piece := await self._pieces.get()) is not None:
                yield piece
        except BaseException:
            self.cancel()
            raise
        await self.end()

    async def end(self) -> Stream:
        """Wait for the end of the generation and return its stream.

        Raises:
            ClientLeftError: the client closed the connection before.
            CospecError: the order was refused, cut off or failed.
        """
        try:
            both: list[asyncio.Future[Any]] = [self._work, self._cut]
            await asyncio.wait(both, return_when=asyncio.FIRST_COMPLETED)
        finally:
            self.cancel()
        if self._cut.done():
            raise shutting_down()
        if self._work.cancelled():
            raise ClientLeftError
        return self._work.result()

    def cut(self) -> None:
        """End the order with an error, without waiting for the pass that is being computed."""
        if not self._cut.done():
            self._cut.set_result(None)
        self._pieces.put_nowait(None)
        self.cancel()

    def cancel(self) -> None:
        """End the order if it has not ended yet."""
        self._work.cancel()

    def _ended(self, work: asyncio.Future[Stream]) -> None:
        self._group.discard(self)
        self._gone.cancel()
        self._pieces.put_nowait(None)
        if not work.cancelled():
            work.exception()  # marks it as seen: if the client has left too, nobody reads it


class EventStream(Response):
    """Server-sent events.

    Unlike Starlette's own streaming response it does not watch for the client to leave: `Running` does,
    also while the request waits in the queue.

    Args:
        events: as they are sent.
    """

    media_type = "text/event-stream"

    def __init__(self, events: AsyncIterator[bytes]) -> None:
        super().__init__(headers={"Cache-Control": "no-cache"})
        del self.headers["content-length"]
        self._events = events

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Send the events as they come."""
        start = {"type": "http.response.start", "status": self.status_code}
        await send({**start, "headers": self.raw_headers})
        async for event in self._events:
            await send({"type": "http.response.body", "body": event, "more_body": True})
            # Without this, pieces that are ready would be sent without a turn for the event loop, and
            # nobody would notice that the client has left.
            await asyncio.sleep(0)
        await send({"type": "http.response.body", "body": b"", "more_body": False})


async def _left(http: HttpRequest) -> None:
    """Return when the client has closed the connection. The body must have been read."""
    with suppress(ClientDisconnect):
        while (await http.receive())["type"] != "http.disconnect":
            continue

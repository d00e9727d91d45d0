"""uvicorn with our ending and our refusals: imported only when something is served."""

from __future__ import annotations

import asyncio
import os
import socket
from collections.abc import Callable
from types import FrameType

import h11
import uvicorn
from uvicorn.protocols.http.h11_impl import H11Protocol

from .app import Service
from .refusals import RefusedError

LINGER = 2.0
"""Seconds in which a client may finish sending after it was refused."""
KEEP_ALIVE = 75
"""Seconds for which an idle connection stays open.

Clients close theirs earlier, OpenAI's after 5 seconds. If the server closed at that moment, a request
that was just being sent would fail.
"""
CUT_GRACE = 1.0
"""Seconds in which answers that were cut off may send their last event."""


class Protocol(H11Protocol):
    """One connection; what is not HTTP is refused in OpenAI's form."""

    _is_refused = False

    def data_received(self, data: bytes) -> None:
        """Parse what arrives; after a refusal, ignore it."""
        if not self._is_refused:
            super().data_received(data)

    def send_400_response(self, msg: str) -> None:
        """Refuse what h11 cannot parse, and close the connection.

        Closed with unread data, a connection is reset, and the client may not see the answer. So only
        our side is closed at first. In the middle of an answer there is nothing to send.
        """
        self._is_refused = True
        if self.cycle is not None:  # the request that is being read: to the application it has left
            self.cycle.disconnected = True
            self.cycle.waiting_for_100_continue = False
            self.cycle.message_event.set()
        state = self.conn.our_state
        if state in (h11.IDLE, h11.SEND_RESPONSE):
            body = RefusedError("this is not an HTTP/1.1 request").to_json()
            headers = [
                ("Content-Type", "application/json"),
                ("Content-Length", str(len(body))),
                ("Connection", "close"),
            ]
            self._send(h11.Response(status_code=400, headers=headers, reason=b"Bad Request"))
            if state is h11.IDLE or self.scope["method"] != "HEAD":
                self._send(h11.Data(data=body))
            self._send(h11.EndOfMessage())
            self.transport.write_eof()
            self.loop.call_later(LINGER, self.transport.close)
        else:
            self.transport.close()

    def _send(self, event: h11.Event) -> None:
        self.transport.write(self.conn.send(event) or b"")


class Server(uvicorn.Server):
    """A server that tells when it is ready, and whose second signal ends it at once.

    Args:
        service: what to serve.
        shutdown_timeout: seconds after which running answers are cut off; None waits for them.
        on_ready: called with a function that stops the server.
    """

    def __init__(
        self,
        service: Service,
        shutdown_timeout: float | None,
        on_ready: Callable[[Callable[[], None]], None] | None,
    ) -> None:
        super().__init__(
            uvicorn.Config(
                service.app,
                http=Protocol,
                ws="none",
                lifespan="off",
                log_level="critical",
                access_log=False,
                server_header=False,
                timeout_keep_alive=KEEP_ALIVE,
            )
        )
        self._service = service
        self._shutdown_timeout = shutdown_timeout
        self._on_ready = on_ready
        self._loop: asyncio.AbstractEventLoop | None = None
        self._second_signal: int | None = None

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """Stop at the first signal; at the second, cut running answers off and end the process."""
        if not self.should_exit:
            self.should_exit = True
            self._captured_signals.append(sig)  # raised again at the end
        elif self._second_signal is None and self._loop is not None:
            self._second_signal = sig
            self._loop.call_soon_threadsafe(self._cut)

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """Begin to listen."""
        self._loop = asyncio.get_running_loop()
        await super().startup(sockets)
        if self._on_ready is not None and self.started:
            self._on_ready(self._stop)

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """Refuse new requests, and wait for running answers for the time that they have."""
        self._service.scheduler.close()
        if self._shutdown_timeout is not None:
            asyncio.get_running_loop().call_later(self._shutdown_timeout, self._cut)
        await super().shutdown(sockets)
        if self._second_signal is not None:
            os._exit(128 + self._second_signal)  # a thread may still compute a long pass

    def _stop(self) -> None:
        self.should_exit = True

    def _cut(self) -> None:
        self._service.cut()
        asyncio.get_running_loop().call_later(CUT_GRACE, self._give_up)

    def _give_up(self) -> None:
        """Stop waiting for clients that do not read their last event."""
        self.force_exit = True

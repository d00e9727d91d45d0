"""The process: a socket, uvicorn on it, and an orderly end."""

from __future__ import annotations

import importlib.util
import ipaddress
import signal
import socket
from collections.abc import Callable, Sequence
from contextlib import suppress
from typing import TYPE_CHECKING

from ...errors import MissingExtraError, ResourceError, UsageError
from ..decoding.session import Session

if TYPE_CHECKING:
    from .app import ServeOptions, Service


def require_packages() -> None:
    """Say which extra brings what a server needs, if it is not there.

    Raises:
        MissingExtraError: Starlette or uvicorn is not installed.
    """
    for package in ("starlette", "uvicorn"):
        if importlib.util.find_spec(package) is None:
            raise MissingExtraError(package, "serve", "Serving")


def make_service(session: Session, slots: int, options: ServeOptions) -> Service:
    """Make the application around a loaded bundle, with `slots` sessions on its engines."""
    require_packages()
    from .app import Service

    return Service([session, *(session.new_session() for _ in range(slots - 1))], options)


def listen(host: str, port: int) -> socket.socket:
    """Open the socket; port 0 takes a free one.

    Raises:
        UsageError: no such address.
        ResourceError: it is in use, or may not be opened.
    """
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(
            host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )[0]
    except (OSError, OverflowError) as error:
        raise UsageError(f"cannot listen on {host}, port {port}: {error}") from error
    # With its protocol: asyncio turns Nagle's delay off only where it reads there that this is TCP. An
    # answer's body would wait 40 ms for the client to acknowledge the headers.
    opened = socket.socket(family, kind, protocol)
    try:
        opened.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        opened.bind(address)
        opened.listen()
    except (OSError, OverflowError) as error:
        opened.close()
        raise ResourceError(
            f"cannot listen on {host}, port {port}: {error}",
            hint="choose another --port, or 0 for any free one",
        ) from error
    return opened


def is_loopback(host: str) -> bool:
    """Say whether only this machine reaches an address."""
    with suppress(ValueError):
        return ipaddress.ip_address(host).is_loopback
    return host == "localhost"


def serve(
    service: Service,
    sockets: Sequence[socket.socket],
    *,
    shutdown_timeout: int | None = None,
    on_ready: Callable[[Callable[[], None]], None] | None = None,
) -> None:
    """Serve until SIGTERM or Ctrl-C; or, off the main thread, until told to stop.

    Then no new connection is taken, requests in the queue are refused with 503, and answers that are
    under way come to their end. A second signal ends the process at once.

    Args:
        service: what to serve.
        sockets: listening; closed at the end.
        shutdown_timeout: seconds after which answers under way are cancelled; None waits for them.
        on_ready: called once requests can be answered, with what stops the server.
    """
    require_packages()
    import uvicorn

    class Server(uvicorn.Server):
        """uvicorn's, which says when it starts and ends."""

        async def startup(self, sockets: list[socket.socket] | None = None) -> None:
            await super().startup(sockets)
            if on_ready is not None and self.started:
                on_ready(self.stop)

        async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
            service.scheduler.close()
            await super().shutdown(sockets)

        def stop(self) -> None:
            self.should_exit = True

    config = uvicorn.Config(
        service.app,
        lifespan="off",
        log_level="warning",
        access_log=False,
        server_header=False,
        timeout_graceful_shutdown=shutdown_timeout,
    )
    # uvicorn raises its signals again at its end. That of SIGTERM would make an orderly end look like
    # a kill, so the handler that it then finds does nothing. Only a main thread may set one.
    with suppress(ValueError):
        signal.signal(signal.SIGTERM, lambda *_: None)
    Server(config).run(sockets=list(sockets))

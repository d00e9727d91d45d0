"""Sockets, and the life of the process: imports neither Starlette nor uvicorn until it serves."""

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
    """Check that the extra `serve` is installed.

    Raises:
        MissingExtraError: Starlette or uvicorn is not installed.
    """
    for package in ("starlette", "uvicorn"):
        if importlib.util.find_spec(package) is None:
            raise MissingExtraError(package, "serve", "Serving")


def make_service(session: Session, slots: int, options: ServeOptions) -> Service:
    """Return the application around a loaded bundle, with `slots` sessions on its engines."""
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
    # asyncio turns Nagle's delay off only for sockets whose protocol is TCP. Otherwise the body of an
    # answer would wait 40 ms until the client acknowledges the headers.
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
    """Return whether an address can be reached from this machine only."""
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
    """Serve until SIGTERM or Ctrl-C, or until the function that `on_ready` gets is called.

    Then no new connection is accepted, requests in the queue are refused with 503, and running answers
    come to their end. A second signal cuts them off, each with an error, and ends the process.

    Args:
        service: what to serve.
        sockets: listening; closed at the end.
        shutdown_timeout: seconds after which running answers are cut off; None waits for them.
        on_ready: called once requests can be answered, with a function that stops the server.
    """
    require_packages()
    from .uvicorn_server import Server

    # uvicorn raises its signals again at its end. That of SIGTERM would make an orderly end look like
    # a kill, so the handler that it then finds does nothing. Only a main thread may set one.
    with suppress(ValueError):
        signal.signal(signal.SIGTERM, lambda *_: None)
    Server(service, shutdown_timeout, on_ready).run(sockets=list(sockets))

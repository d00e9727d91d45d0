"""A server of the package in a thread of the test, and sessions whose passes wait for the test."""

from __future__ import annotations

import logging
import socket
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import httpx2 as httpx

import cospec
from cospec.runtime.serve.app import ServeOptions, Service
from cospec.runtime.serve.requests import Defaults
from cospec.runtime.serve.server import listen, serve


@dataclass
class Served:
    """A running server.

    Attributes:
        url: of the API, without a slash at the end.
        service: its inside.
        stop: ends it, as a signal would.
    """

    url: str
    service: Service
    stop: Callable[[], None]

    @property
    def root(self) -> str:
        return self.url.removesuffix("/v1")

    @property
    def address(self) -> tuple[str, int]:
        host, port = self.root.removeprefix("http://").split(":")
        return host, int(port)

    def client(self, **settings: Any) -> Any:
        """OpenAI's client, which does not try again by itself."""
        import openai

        given: dict[str, Any] = {"api_key": "none", "max_retries": 0, "timeout": 60} | settings
        return openai.OpenAI(base_url=self.url, **given)

    def post(self, path: str, body: Any, **headers: str) -> httpx.Response:
        """Send a body, as it is or as JSON, to a path below /v1."""
        data: dict[str, Any] = {"content": body} if isinstance(body, bytes) else {"json": body}
        sent = {"Content-Type": "application/json"} | headers
        return httpx.post(f"{self.url}/{path}", **data, headers=sent, timeout=60)

    def exchange(self, data: bytes, *, close: bool = False) -> bytes:
        """Send bytes and return all that comes back until the server closes the connection."""
        with socket.create_connection(self.address, timeout=30) as connection:
            connection.sendall(data)
            if close:
                connection.shutdown(socket.SHUT_WR)
            answer = b""
            while received := connection.recv(65536):
                answer += received
        return answer


@contextmanager
def serving(
    sessions: Sequence[Any], defaults: Defaults | None = None, **options: Any
) -> Iterator[Served]:
    """Serve some sessions on a free port, with fields of ServeOptions."""
    service = Service(sessions, ServeOptions(defaults or Defaults("tiny"), **options))
    opened = listen("127.0.0.1", 0)
    url = f"http://127.0.0.1:{opened.getsockname()[1]}/v1"
    ready = threading.Event()
    stops: list[Callable[[], None]] = []

    def on_ready(stop: Callable[[], None]) -> None:
        stops.append(stop)
        ready.set()

    thread = threading.Thread(target=serve, args=(service, [opened]), kwargs={"on_ready": on_ready})
    thread.start()
    assert ready.wait(30)
    try:
        yield Served(url, service, stops[0])
    finally:
        stops[0]()
        thread.join(30)
        assert not thread.is_alive()


class GatedSession:
    """A session whose target passes wait for a permit each, so that tests decide how far one is.

    Attributes:
        permits: release one for each pass.
        passes: how many have begun.
        streams: those that it began.
    """

    def __init__(self, session: cospec.Session) -> None:
        self._session = session.new_session()
        self.permits = threading.Semaphore(0)
        self.passes = 0
        self.streams: list[Any] = []
        target = self._session.caches.target
        step = target.step

        def gated(tokens: Any, rows: int | None = None) -> Any:
            self.passes += 1
            assert self.permits.acquire(timeout=60)
            return step(tokens, rows)

        target.step = gated  # type: ignore[method-assign]

    def __getattr__(self, name: str) -> Any:
        return getattr(self._session, name)

    def run(self, plan: Any) -> Any:
        self.streams.append(self._session.run(plan))
        return self.streams[-1]

    @property
    def told_to_end(self) -> bool:
        """Whether the last stream was cancelled; its pass may still run."""
        return bool(self.streams[-1]._interrupt.reason() == "cancelled")


def until(condition: Callable[[], bool], seconds: float = 30.0) -> None:
    """Wait for a condition."""
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "waited in vain"
        time.sleep(0.005)


def events(response: httpx.Response) -> Iterator[str]:
    """Yield the data of a stream's events."""
    return (line.removeprefix("data: ") for line in response.iter_lines() if line)


@contextmanager
def silence(caplog: Any) -> Iterator[None]:
    """Check that nothing was logged, by us, by uvicorn or by asyncio."""
    caplog.clear()
    with caplog.at_level(logging.INFO):
        yield
    records = [record for record in caplog.records if not record.name.startswith("http")]
    assert [record.getMessage() for record in records] == []

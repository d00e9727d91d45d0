"""A server in a thread, on a free port, with the trained tiny pair."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

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

    def client(self, **settings: Any) -> Any:
        """OpenAI's client, which does not try again by itself."""
        import openai

        settings = {"api_key": "none", "max_retries": 0, "timeout": 60} | settings
        return openai.OpenAI(base_url=self.url, **settings)


Serve = Callable[..., AbstractContextManager[Served]]


@pytest.fixture(scope="session")
def session(tiny_pair_bundle: Path) -> cospec.Session:
    """What the server's answers are compared with."""
    return cospec.load(tiny_pair_bundle)


@pytest.fixture(scope="session")
def serving(session: cospec.Session) -> Serve:
    """Call it to serve: `with serving(max_queue=1) as served`, with fields of ServeOptions."""

    @contextmanager
    def serving(
        *, sessions: Sequence[Any] | None = None, defaults: Defaults | None = None, **options: Any
    ) -> Iterator[Served]:
        made = ServeOptions(defaults or Defaults("tiny"), **options)
        service = Service(sessions or [session.new_session()], made)
        socket = listen("127.0.0.1", 0)
        url = f"http://127.0.0.1:{socket.getsockname()[1]}/v1"
        ready = threading.Event()
        stops: list[Callable[[], None]] = []

        def on_ready(stop: Callable[[], None]) -> None:
            stops.append(stop)
            ready.set()

        thread = threading.Thread(
            target=serve, args=(service, [socket]), kwargs={"on_ready": on_ready}
        )
        thread.start()
        assert ready.wait(30)
        try:
            yield Served(url, service, stops[0])
        finally:
            stops[0]()
            thread.join(30)
            assert not thread.is_alive()

    return serving


@pytest.fixture(scope="session")
def served(serving: Serve) -> Iterator[Served]:
    """One server for all tests that leave it as it was."""
    with serving() as running:
        yield running


class GatedSession:
    """A session whose target passes wait for a permit each, so that tests decide how far one is.

    Attributes:
        permits: release one for each pass.
        passes: how many have begun.
        streams: that it was asked for.
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

    def stream(self, *args: Any, **settings: Any) -> Any:
        self.streams.append(self._session.stream(*args, **settings))
        return self.streams[-1]

    @property
    def told_to_end(self) -> bool:
        """Whether the last stream was cancelled; its pass may still run."""
        return self.streams[-1]._interrupt.reason() == "cancelled"


@pytest.fixture
def gated(session: cospec.Session) -> Iterator[GatedSession]:
    made = GatedSession(session)
    yield made
    made.permits.release(10_000)  # whatever still runs may end

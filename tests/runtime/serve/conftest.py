"""Servers with the trained tiny pair, with and without its arbiter."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import http_server
import pytest
from arbiters import bundle_with_arbiter
from http_server import GatedSession, Served

import cospec
from cospec.export.arbiter_folder import read_arbiter
from cospec.models.tiny_pair import ARBITER
from cospec.runtime.text.chat_format import CHAT_FILE, ChatFormat
from cospec.runtime.text.codec import TextCodec

Serve = Callable[..., AbstractContextManager[Served]]


@pytest.fixture(scope="session")
def session(tiny_pair_bundle: Path) -> cospec.Session:
    """What the server's answers are compared with."""
    return cospec.load(tiny_pair_bundle)


@pytest.fixture(scope="session")
def collab(tiny_pair_bundle: Path, tmp_path_factory: pytest.TempPathFactory) -> cospec.Session:
    """The same with an arbiter; an export of its own would take half a minute."""
    arbiter = read_arbiter(ARBITER)
    folder = tmp_path_factory.mktemp("collab") / "tiny"
    return cospec.load(
        bundle_with_arbiter(tiny_pair_bundle, arbiter.graph, folder, arbiter.threshold)
    )


TEMPLATE = (
    "{{ bos_token }}{% if tools %}<tool_call>{% endif %}"
    "{% for tool in tools or [] %} {{ tool.function.name }}{% endfor %}"
    "{% for message in messages %}{{ message.role[0] }}: {{ message.content or '' }}"
    "{% for call in message.tool_calls or [] %}{{ call.function.name }}{% endfor %}{% endfor %}A:"
)


@pytest.fixture(scope="session")
def taught(
    session: cospec.Session, tiny_pair_bundle: Path, tmp_path_factory: pytest.TempPathFactory
) -> cospec.Session:
    """The tiny pair with a chat template that knows tools."""
    path = tmp_path_factory.mktemp("taught") / CHAT_FILE
    path.write_text(ChatFormat({"default": TEMPLATE}, {"bos_token": "<s>"}).to_json())
    codec = TextCodec(tiny_pair_bundle / session.manifest.tokenizer, path)
    return cospec.Session(session.manifest, *session.engines, codec)


@pytest.fixture(scope="session")
def serving(session: cospec.Session) -> Serve:
    """Call it to serve: `with serving(max_queue=1) as served`, with fields of ServeOptions."""

    def serving(*, sessions: Any = None, **options: Any) -> AbstractContextManager[Served]:
        return http_server.serving(sessions or [session.new_session()], **options)

    return serving


@pytest.fixture(scope="session")
def served(serving: Serve) -> Iterator[Served]:
    """One server for all tests that leave it as it was."""
    with serving() as running:
        yield running


@pytest.fixture
def gated(session: cospec.Session) -> Iterator[GatedSession]:
    made = GatedSession(session)
    yield made
    made.permits.release(10_000)  # whatever still runs may end


@pytest.fixture(scope="module")
def client(served):
    with served.client() as client:
        yield client

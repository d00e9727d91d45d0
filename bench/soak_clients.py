"""The clients of `serve_soak`: requests of all kinds, their expected answers, and who sends them."""

from __future__ import annotations

import asyncio
import json
import random
from collections import Counter
from contextlib import suppress
from dataclasses import dataclass, field
from importlib.util import find_spec
from pathlib import Path
from time import monotonic
from typing import Any

import click

from cospec.runtime.decoding.session import load

MAX_TOKENS = 64
LONG_TOKENS = 400
"""Length of an answer that its client leaves: more than any client waits for."""
OPTIONS = {"guided_regex": "regex"}
"""Fields of requests whose generation option has another name."""
TEMPLATE = (
    "{{ bos_token }}{% if tools %}<tool_call> {{ tools | tojson }}{% endif %}"
    "{% for message in messages %}Q: {{ message.content }}\n{% endfor %}A:"
)
"""A chat template that knows tools: the tiny pair's own does not."""
NUMBER = {"type": "integer", "minimum": 0, "maximum": 99}
ADD = {
    "type": "function",
    "function": {
        "name": "add",
        "parameters": {
            "type": "object",
            "properties": {"a": NUMBER, "b": NUMBER},
            "required": ["a", "b"],
            "additionalProperties": False,
        },
    },
}


@dataclass(frozen=True)
class Case:
    """A request: messages, what is special about it, other fields, and the expected answer.

    The answer is None for a case whose expected answer is the one that the server gives while it is
    idle: a session does not call tools.
    """

    messages: list[dict[str, str]]
    kind: str
    fields: dict[str, Any]
    expected: str | None

    def settings(self, **changes: Any) -> dict[str, Any]:
        """Return the arguments of OpenAI's client."""
        fixed = {"model": "tiny", "messages": self.messages, "max_tokens": MAX_TOKENS}
        return {**fixed, "extra_body": dict(self.fields), **changes}

    def long(self) -> dict[str, Any]:
        """Return the arguments of a streamed answer that takes a while."""
        shortest = {"min_tokens": LONG_TOKENS}
        return self.settings(max_tokens=LONG_TOKENS, extra_body=shortest, stream=True)


NESTED = b'{"messages":[{"role":"user","content":"x","y":[' + b"[]," * 600_000 + b"[]]}]}"
HOSTILE: tuple[tuple[str, bytes], ...] = (
    ("nested lists", NESTED),
    ("deep lists", b'{"messages":' + b"[" * 500_000 + b"]" * 500_000 + b"}"),
    ("a long prompt", b'{"messages":[{"role":"user","content":"' + b"1 + 2 " * 300_000 + b'"}]}'),
    ("half a surrogate", b'{"model":"\\ud83d","messages":[{"role":"user","content":"x"}]}'),
    ("a long number", b'{"messages":[],"logit_bias":{"' + b"9" * 5000 + b'":1}}'),
    ("no JSON", b"\x00\xff" * 500),
    ("too much", b'{"messages":"' + b"x" * 3_000_000 + b'"}'),
)
"""Requests that must be refused, by what is wrong with them."""


@dataclass
class Tally:
    """What happened.

    Attributes:
        count: requests by how they ended.
        wrong: answers that were not the expected ones, with those.
        lost: errors that should not have been.
        memory: (seconds since the start, resident bytes of the server).
        waiting: longest queue seen.
    """

    count: Counter[str] = field(default_factory=Counter)
    wrong: list[tuple[str, str | None]] = field(default_factory=list)
    lost: list[str] = field(default_factory=list)
    memory: list[tuple[float, int]] = field(default_factory=list)
    waiting: int = 0

    def lose(self, what: str) -> None:
        """Note an error that should not have been, and print it."""
        self.lost.append(what)
        click.echo(f"lost: {what}", err=True)


def cases(engine_dir: Path, count: int) -> list[Case]:
    """Return requests with the answers that a session gives without a server."""
    session = load(engine_dir)
    kinds: list[tuple[str, dict[str, Any]]] = [
        ("greedy", {"temperature": 0}),
        ("sampled", {"temperature": 1.0}),
        ("auto", {"temperature": 0, "num_draft_tokens": "auto"}),
        ("penalty", {"temperature": 0, "repetition_penalty": 1.2}),
    ]
    if session.arbiter is not None:
        kinds.append(("collab", {"temperature": 0, "mode": "collab"}))
    if find_spec("llguidance") is not None:
        kinds.append(("grammar", {"temperature": 0, "guided_regex": "The answer is [0-9]{1,4}"}))
        kinds.append(("tools", {"temperature": 0, "tools": [ADD], "tool_choice": "required"}))
    rng = random.Random(0)
    made = []
    for i in range(count):
        question = f"What is {rng.randint(1, 99)} + {rng.randint(1, 99)} - {rng.randint(1, 9)}?"
        messages = [{"role": "user", "content": question}]
        kind, fields = kinds[i % len(kinds)]
        if kind == "sampled":
            fields = {**fields, "seed": i}
        # The draft length never changes a strict answer.
        options = {OPTIONS.get(name, name): value for name, value in fields.items()}
        options.pop("num_draft_tokens", None)
        text = None
        if kind != "tools":
            text = session.generate(messages, max_tokens=MAX_TOKENS, **options).text
        made.append(Case(messages, kind, fields, text))
    return made


async def ask(client: Any, case: Case) -> str:
    """Return the whole answer to a request."""
    message = (await client.chat.completions.create(**case.settings())).choices[0].message
    if message.tool_calls:
        (call,) = message.tool_calls
        return f"{call.function.name}{call.function.arguments}"
    return message.content or ""


async def ask_for_stream(client: Any, case: Case) -> str:
    """Return the streamed answer to a request."""
    text = ""
    async for event in await client.chat.completions.create(**case.settings(), stream=True):
        delta = event.choices[0].delta
        text += delta.content or ""
        for call in delta.tool_calls or []:
            text += f"{call.function.name or ''}{call.function.arguments or ''}"
    return text


async def client_loop(
    client: Any, known: list[Case], rng: random.Random, tally: Tally, end: float, think: float
) -> None:
    """Send one request after the other until the time is over.

    Args:
        client: of the OpenAI package.
        known: requests to choose from.
        rng: decides which, and how.
        tally: where the results go.
        end: time of `monotonic` to stop at.
        think: mean pause between two requests, in seconds.
    """
    import openai

    await asyncio.sleep(rng.uniform(0, think))
    while monotonic() < end:
        case = rng.choice(known)
        ways = ["whole", "stream", "leave", "hostile", "no key", "half"]
        how = rng.choices(ways, [16, 16, 8, 2, 1, 1])[0]
        try:
            if how == "whole":
                check(await ask(client, case), case, tally)
            elif how == "stream":
                check(await ask_for_stream(client, case), case, tally)
            elif how == "leave":
                await leave(client, case, rng, tally)
            elif how == "hostile":
                name, body = rng.choice(HOSTILE)
                await attack(client, name, body, (400, 413, 429), tally)
            elif how == "no key":
                await attack(client, how, b"{}", (401,), tally, key="guessed")
            else:
                await send_half(client, rng, tally)
        except openai.RateLimitError as refused:
            tally.count["refused with 429"] += 1
            if int(refused.response.headers["retry-after"]) < 1:
                tally.lose("a 429 without a useful Retry-After")
            await asyncio.sleep(rng.uniform(0.05, 0.2))
        except Exception as error:  # noqa: BLE001  whatever it is, it is counted and shown
            tally.lose(f"{how} {case.kind}: {type(error).__name__}: {error} ({error.__cause__!r})")
        await asyncio.sleep(rng.expovariate(1 / think) if think else 0)


def check(text: str, case: Case, tally: Tally) -> None:
    """Compare an answer."""
    tally.count[f"answered: {case.kind}"] += 1
    if text != case.expected:
        tally.wrong.append((text, case.expected))


async def attack(
    client: Any,
    name: str,
    body: bytes,
    expected: tuple[int, ...],
    tally: Tally,
    key: str | None = None,
) -> None:
    """Send a request that must be refused with one of the expected statuses."""
    headers = {
        "Content-Type": "application/json",
        "Authorization": f"Bearer {key or client.api_key}",
    }
    answer = await client._client.post("chat/completions", content=body, headers=headers)
    tally.count[f"refused: {name}"] += 1
    error = json.loads(answer.content)["error"]
    if answer.status_code not in expected or not error["message"]:
        tally.lose(f"{name} got {answer.status_code}")


async def send_half(client: Any, rng: random.Random, tally: Tally) -> None:
    """Send a part of a request, wait for a moment, and close the connection."""
    whole = b"POST /v1/completions HTTP/1.1\r\nHost: localhost\r\nContent-Length: 90\r\n\r\n{}"
    host, port = client.base_url.host, client.base_url.port
    _, writer = await asyncio.open_connection(host, port)
    writer.write(whole[: rng.randrange(len(whole))])
    await asyncio.sleep(rng.uniform(0, 2))
    writer.close()
    with suppress(OSError):  # the server may have closed it
        await writer.wait_closed()
    tally.count["left in the request"] += 1


async def leave(client: Any, case: Case, rng: random.Random, tally: Tally) -> None:
    """Close the connection in the middle of a long answer, or while the request waits."""
    if rng.random() < 0.3:
        with suppress(asyncio.TimeoutError):
            opening = client.chat.completions.create(**case.long())
            events = await asyncio.wait_for(opening, rng.uniform(0.001, 0.3))
            await events.close()
        tally.count["left before the answer began"] += 1
        return
    events = await client.chat.completions.create(**case.long())
    wanted = rng.randint(1, 20)
    async for _ in events:
        wanted -= 1
        if wanted == 0:
            break
    await events.close()
    tally.count["left in the answer"] += 1

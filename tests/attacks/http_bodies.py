"""Requests from the API's fields and from raw bytes, as hypothesis makes them."""

from __future__ import annotations

import json
from typing import Any

from hypothesis import strategies as st

PROMPT = "Q: What is 2 + 2?\nA:"

# JSON as text: there are no values for NaN, for half surrogates and for names that appear twice.
odd_text = st.one_of(
    st.text(max_size=20),
    st.sampled_from(["\ud83d", "\udc00x", "\x00", "\u202e", "<|im_end|>", "{{ 1/0 }}", "a" * 5000]),
)
texts = odd_text.map(json.dumps)
numbers = st.one_of(
    st.integers(-3, 100).map(str),
    st.floats(allow_nan=True).map(json.dumps),
    st.sampled_from(
        ["1e999", "-0", "1.0", "9" * 30, "-" + "9" * 5000, "1e-400", "01", "+1", "0x1"]
    ),
)
words = st.sampled_from(["true", "false", "null", "None", "tru", "", "''"])
anything = st.recursive(
    st.one_of(texts, numbers, words),
    lambda inner: st.one_of(
        st.lists(inner, max_size=3).map(lambda items: f"[{','.join(items)}]"),
        st.lists(st.tuples(texts, inner), max_size=3).map(
            lambda pairs: "{" + ",".join(f"{k}:{v}" for k, v in pairs) + "}"
        ),
        st.tuples(st.sampled_from([3, 100, 2000]), inner).map(
            lambda nested: "[" * nested[0] + nested[1] + "]" * nested[0]
        ),
    ),
    max_leaves=5,
)
MESSAGE = '{"role":"user","content":"What is 2 + 2?"}'
messages = st.lists(
    st.one_of(
        st.just(MESSAGE),
        st.sampled_from(
            [
                '{"role":"developer","content":[{"type":"text","text":"x","cache_control":{}}]}',
                '{"role":"assistant","content":"x","reasoning_content":"y","refusal":null}',
                '{"role":"assistant","content":null,"tool_calls":[{"id":"1"}]}',
                '{"role":"tool","content":"x","tool_call_id":"1"}',
                '{"role":"user","content":[{"type":"image_url","image_url":{"url":"x"}}]}',
                '{"role":"user"}',
                "{}",
            ]
        ),
        anything,
    ),
    max_size=3,
).map(lambda items: f"[{','.join(items)}]")
RIGHT: dict[str, Any] = {
    "model": st.just('"tiny"'),
    "messages": messages,
    "prompt": st.one_of(st.just(json.dumps(PROMPT)), texts, st.just('["a","b"]'), st.just("[1,2]")),
    "input": st.one_of(st.just('"x"'), messages),
    "max_tokens": st.integers(0, 12).map(str),
    "stream": st.sampled_from(["true", "false"]),
    "stream_options": st.sampled_from(['{"include_usage":true}', "{}"]),
    "temperature": st.sampled_from(["0", "0.7", "2"]),
    "top_p": st.sampled_from(["0.1", "1", "0"]),
    "top_k": st.sampled_from(["-1", "0", "5"]),
    "seed": st.integers(-5, 5).map(str),
    "stop": st.sampled_from(['"a"', '["a","b"]', "[]", '""']),
    "logprobs": st.sampled_from(["true", "false", "0", "3", "64", "65"]),
    "top_logprobs": st.integers(0, 21).map(str),
    "logit_bias": st.sampled_from(
        ['{"5":1}', '{"' + "9" * 5000 + '":1}', '{"x":1}', '{"1":1e999}']
    ),
    "min_tokens": st.integers(-1, 5).map(str),
    "mode": st.sampled_from(['"strict"', '"collab"', '"x"']),
    "threshold": st.sampled_from(["0", "0.5", "2"]),
    "num_draft_tokens": st.sampled_from(["0", "3", '"auto"', "100"]),
    "n": st.sampled_from(["1", "2", "0", "1000000"]),
    "echo": st.sampled_from(["true", "false"]),
    "tools": st.sampled_from(["[]", '[{"type":"function","function":{"name":"f"}}]']),
    "tool_choice": st.sampled_from(['"auto"', '"required"', '{"type":"function"}']),
    "response_format": st.sampled_from(
        [
            '{"type":"text"}',
            '{"type":"json_object"}',
            '{"type":"json_schema","json_schema":{"name":"x","schema":{"type":"object"}}}',
            '{"type":"json_schema","json_schema":{"name":"x","schema":{"$ref":"#"}}}',
        ]
    ),
    "chat_template_kwargs": st.sampled_from(['{"enable_thinking":false}', "{}", "[]"]),
    "reasoning_effort": st.sampled_from(['"low"', '"none"', "1"]),
    "continue_final_message": st.sampled_from(["true", "false"]),
    "add_generation_prompt": st.sampled_from(["true", "false"]),
    "stop_token_ids": st.sampled_from(["[1,2]", "[-1]", "[]"]),
    "overflow": st.sampled_from(['"stop"', '"slide"']),
}
names = st.one_of(st.sampled_from(sorted(RIGHT)).map(json.dumps), texts)


def one_in(count: int) -> st.SearchStrategy[bool]:
    """Return a strategy that is True once in so many times."""
    return st.sampled_from([True] + [False] * (count - 1))


@st.composite
def bodies(draw: st.DrawFn) -> bytes:
    """Bodies of the API: mostly right, some fields wrong, some bytes changed."""
    chat = draw(st.booleans())
    pairs = [('"messages"', f"[{MESSAGE}]") if chat else ('"prompt"', json.dumps(PROMPT))]
    pairs.append(('"max_tokens"', "4"))
    for name in draw(st.lists(st.sampled_from(sorted(RIGHT)), max_size=3, unique=True)):
        pairs = [pair for pair in pairs if pair[0] != f'"{name}"']
        value = draw(anything if draw(one_in(10)) else RIGHT[name])
        pairs.append((f'"{name}"', value))
    if draw(one_in(10)):
        pairs.append((draw(names), draw(anything)))
    text = "{" + ",".join(f"{name}:{value}" for name, value in pairs) + "}"
    data = bytearray(text.encode("utf-8", "surrogatepass"))
    for _ in range(draw(st.sampled_from([0] * 8 + [1, 3]))):
        data[draw(st.integers(0, len(data) - 1))] = draw(st.integers(0, 255))
    return bytes(data)


paths = st.one_of(
    st.sampled_from(
        [
            "/v1/chat/completions",
            "/v1/completions",
            "/v1/responses",
            "/tokenize",
            "/detokenize",
            "/v1/models",
            "/health",
            "/metrics",
            "/",
        ]
    ),
    st.text(st.characters(max_codepoint=255, exclude_characters="\r\n"), max_size=8).map(
        lambda text: f"/v1/models/{text}"
    ),
    st.sampled_from(
        ["/v1/models/%ed%a0%80", "/%00", "/v1//", "*", "http://x/", "/v1/models/" + "x" * 9000]
    ),
)
headers = st.lists(
    st.sampled_from(
        [
            "Authorization: Bearer \xff",
            "Origin: http://evil.example",
            "Expect: 100-continue",
            "Accept-Encoding: gzip",
            "Content-Encoding: gzip",
            "Upgrade: websocket",
            "Connection: Upgrade",
            "X: " + "x" * 5000,
            "Cookie: \x80",
            "Bad Header: x",
            "Content-Length: 3",
            "Transfer-Encoding: gzip, chunked",
        ]
    ),
    max_size=2,
)


@st.composite
def requests(draw: st.DrawFn) -> bytes:
    """Whole requests as bytes: mostly well-formed HTTP around a body, or around garbage."""
    if draw(one_in(20)):
        return draw(st.binary(max_size=300))
    body = draw(st.binary(max_size=100) if draw(one_in(10)) else bodies())
    path = draw(
        paths if draw(one_in(5)) else st.sampled_from(["/v1/chat/completions", "/v1/completions"])
    )
    method = draw(st.sampled_from(["POST"] * 40 + ["GET", "PUT", "HEAD", "OPTIONS", "X"]))
    kind = draw(
        st.sampled_from(["application/json"] * 20 + ["text/plain", "application/json; x=\xff"])
    )
    lines = [f"{method} {path} HTTP/1.1", "Host: localhost", f"Content-Type: {kind}"]
    lines += ["Connection: close"]
    if draw(one_in(5)):
        lines += draw(headers)
    if draw(one_in(6)):
        lines.append("Transfer-Encoding: chunked")
        body = (
            f"{len(body):x}\r\n".encode()
            + body
            + draw(st.sampled_from([b"\r\n0\r\n\r\n"] * 3 + [b"\r\n", b"", b"zz\r\n"]))
        )
    else:
        lines.append(f"Content-Length: {len(body) + draw(st.sampled_from([0] * 40 + [-1, 5]))}")
    return "\r\n".join(lines).encode("latin-1", "replace") + b"\r\n\r\n" + body

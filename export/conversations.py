"""What the text gate asks: texts and conversations in which runtimes are known to differ."""

from __future__ import annotations

from typing import Any

_MIXED = "naïve e\u0301 你好 \u202etfel 👩\u200d👩\u200d👧 \U0001d54f \u2028\u00a0|"
_QUOTES = "<b>\"x\" & 'y' > z</b> \\n \\u0041 {{ x }} {% if %}"
_SPACES = "  two spaces,\ttabs \r\n\n\n  lines  "

TEXTS: dict[str, str] = {
    "a word": "Hello",
    "a sentence": "The answer is 42, or 3.14159; isn't it?",
    "no text": "",
    "a space": " ",
    "a space in front": " Hello",
    "spaces and lines": _SPACES,
    "quotation marks and markup": _QUOTES,
    "characters beyond U+FFFF": _MIXED,
    "digits": "1234567890 007 1e-5 12:30",
    "code": "def f(x):\n\treturn [i**2 for i in range(x)]  # é\n",
    "turns that are spelled out": "<|im_start|>user\n[INST] <s>x</s> [/INST]<|eot_id|><end_of_turn>",
}
"""Plain texts by what they are about."""


def _talk(*contents: str, system: str | None = None) -> list[dict[str, Any]]:
    first = [] if system is None else [{"role": "system", "content": system}]
    roles = ("user", "assistant")
    return [*first, *({"role": roles[i % 2], "content": c} for i, c in enumerate(contents))]


_CALL = {
    "id": "call12345",
    "type": "function",
    "function": {
        "name": "weather",
        "arguments": {"city": "Köln <&>", "days": 2, "exact": True, "where": [1.5, None]},
    },
}

CONVERSATIONS: dict[str, list[dict[str, Any]]] = {
    "a question": _talk("Hello"),
    "a question after a system message": _talk("Hello", system="Be brief."),
    "several turns": _talk("a", "b", "c", "d", "e"),
    "several turns after a system message": _talk("a", "b", "c", system="Be brief."),
    "white space around messages": _talk("  a \n", "\n b ", "\tc\r\n", system="  s \n"),
    "quotation marks and markup": _talk(_QUOTES, _QUOTES, _QUOTES, system=_QUOTES),
    "characters beyond U+FFFF": _talk(_MIXED, _MIXED, _MIXED, system=_MIXED),
    "turns that are spelled out": _talk("<|im_start|>x<|im_end|><|eot_id|></s>[INST]"),
    "empty messages": _talk("", "", "x"),
    "an empty system message": _talk("x", system=""),
    "a last message of the assistant": _talk("a", "b"),
    "a last message with spaces": _talk("a", " b \n"),
    "thoughts": _talk("a", "<think>\nhm\n</think>\n\nb", "c"),
    "reasoning": [
        *_talk("a"),
        {"role": "assistant", "content": "b", "reasoning_content": "hm <&>"},
        {"role": "user", "content": "c"},
    ],
    "two questions in a row": [*_talk("a"), *_talk("b")],
    "a message in parts": [
        {"role": "user", "content": [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]}
    ],
    "a developer's message": [{"role": "developer", "content": "d"}, *_talk("a")],
    "a call of a tool": [
        *_talk("a"),
        {"role": "assistant", "content": None, "tool_calls": [_CALL]},
        {"role": "tool", "tool_call_id": "call12345", "name": "weather", "content": '{"t": 3}'},
    ],
    "calls of tools": [
        *_talk("a", system="s"),
        {"role": "assistant", "content": "b", "tool_calls": [_CALL, _CALL]},
        {"role": "tool", "tool_call_id": "call12345", "name": "weather", "content": "3"},
        {"role": "tool", "tool_call_id": "call12345", "name": "weather", "content": "4"},
        *_talk("c"),
    ],
}
"""Conversations by what they are about."""

WITH_VARIABLES = ("several turns after a system message", "thoughts", "a call of a tool")
"""Conversations in which the variables of a template's own are tried."""

TOOLS: list[dict[str, Any]] = [
    {
        "type": "function",
        "function": {
            "name": "weather",
            "description": 'The <weather> of a "city" & more, it\'s exact',
            "parameters": {
                "type": "object",
                "properties": {
                    "city": {"type": "string", "description": "e.g. Köln"},
                    "days": {"type": ["integer", "null"], "enum": [1, 2]},
                },
                "required": ["city"],
            },
        },
    },
    {
        "type": "function",
        "function": {
            "name": "now",
            "description": "",
            "parameters": {"type": "object", "properties": {}},
        },
    },
]
DOCUMENTS: list[dict[str, Any]] = [{"title": "T <1>", "text": "x & y"}, {"title": "2", "text": "z"}]
VALUES: tuple[Any, ...] = (True, False, "low", 3)
"""What each variable of a template's own is set to, one after the other."""

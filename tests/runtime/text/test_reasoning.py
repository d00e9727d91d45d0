"""Reasoning is split from the answer in the same way, however the text is cut into pieces."""

from __future__ import annotations

from pathlib import Path

import pytest
from factories import write_tokenizer
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import Tokenizer

from cospec.errors import UsageError
from cospec.runtime.text.chat_format import ChatFormat
from cospec.runtime.text.codec import TextCodec
from cospec.runtime.text.reasoning import ReasoningMarks, ReasoningSplitter, marks_in

MARKS = ReasoningMarks("<think>", "</think>")
WHOLE = [
    ("<think>\nwhy\n</think>\n\nbecause\n", False, "why", "because\n"),
    ("  \n<think>why</think>because", False, "why", "because"),
    ("because", False, "", "because"),
    ("\n because <think>x</think>", False, "", "\n because <think>x</think>"),
    ("<thin ice", False, "", "<thin ice"),
    ("", False, "", ""),
    ("<think>", False, "", ""),
    ("<think>\nwhy", False, "why", ""),
    ("<think>a </thin b</think>c</think>d", False, "a </thin b", "c</think>d"),
    ("<think></think>\n", False, "", ""),
    ("why\n\n</think>\n\nbecause", True, "why", "because"),
    ("\n<think>\nwhy</think>because", True, "why", "because"),
    ("why </thi", True, "why </thi", ""),
    ("<thi", True, "<thi", ""),
    ("<thi", False, "", "<thi"),
    ("a\n\nb\n</think>\n\nc\n\nd\n", True, "a\n\nb", "c\n\nd\n"),
]


def split(pieces: list[str], inside: bool) -> tuple[str, str]:
    splitter = ReasoningSplitter(MARKS, inside=inside)
    parts = [*map(splitter.push, pieces), splitter.finish()]
    return "".join(part[0] for part in parts), "".join(part[1] for part in parts)


@pytest.mark.parametrize(("text", "inside", "reasoning", "answer"), WHOLE)
def test_every_way_to_cut_a_text_gives_the_same_parts(text, inside, reasoning, answer):
    assert split([text], inside) == (reasoning, answer)
    assert split(list(text), inside) == (reasoning, answer)
    for at in range(len(text)):
        assert split([text[:at], text[at:]], inside) == (reasoning, answer)


@given(
    st.lists(
        st.sampled_from(["<think>", "</think>", "</th", "<", "\n", " ", "a", "bc"]), max_size=12
    ),
    st.booleans(),
    st.data(),
)
def test_random_texts_cut_at_random(parts, inside, data):
    text = "".join(parts)
    cuts = sorted(data.draw(st.sets(st.integers(0, len(text)), max_size=6)))
    pieces = [text[a:b] for a, b in zip([0, *cuts], [*cuts, len(text)], strict=True)]
    whole = split([text], inside)
    assert split(pieces, inside) == whole
    assert "</think>" not in whole[0]


def test_the_answer_is_not_held_back():
    splitter = ReasoningSplitter(MARKS)
    assert splitter.push("<think>a") == ("a", "")
    assert splitter.push(" b</") == (" b", "")
    assert splitter.push("think>\n") == ("", "")
    assert splitter.push("c <") == ("", "c <")


@pytest.mark.parametrize(
    ("template", "marks"),
    [
        ("{{ content.split('</think>')[-1] }}<think>\n", MARKS),
        ("[THINK]{{ x }}[/THINK]", ReasoningMarks("[THINK]", "[/THINK]")),
        ("{{ messages }}", None),
        ("<think>", None),
    ],
)
def test_the_marks_of_a_template(template, marks):
    assert marks_in(["", template]) == marks


def test_empty_marks_are_refused():
    with pytest.raises(UsageError, match="marks"):
        ReasoningMarks("", "</think>")


TEMPLATE = (
    "{% for m in messages %}<|user|>{{ m.content }}{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>{{ '<think>\n' if think }}{% endif %}"
    "{{ '' if true else '</think>' }}"
)


@pytest.fixture(params=[True, False], ids=["special marks", "plain marks"])
def codec(request: pytest.FixtureRequest, tmp_path: Path) -> TextCodec:
    path = write_tokenizer(tmp_path)
    tokenizer = Tokenizer.from_file(str(path))
    if request.param:
        tokenizer.add_special_tokens([MARKS.begin, MARKS.end])
    tokenizer.save(str(path))
    chat = tmp_path / "chat.json"
    chat.write_text(ChatFormat({"default": TEMPLATE}, {}).to_json(), encoding="utf-8")
    return TextCodec(path, chat)


@pytest.mark.parametrize(
    ("messages", "arguments", "output", "expected"),
    [
        (["x"], {"think": True}, "why</think>y", ("why", "y")),
        (["x"], {}, "<think>why</think>y", ("why", "y")),
        (["what does <think> mean?"], {}, "y", ("", "y")),
        (["<think>"], {}, "y", ("", "y")),
    ],
)
def test_the_prompt_says_whether_the_output_begins_within_reasoning(
    codec, messages, arguments, output, expected
):
    talk = [{"role": "user", "content": text} for text in messages]
    prompt = codec.encode_chat(talk, template_args=arguments)
    splitter = codec.split_reasoning(prompt)
    stream = codec.stream(prompt)
    text = stream.push([*codec.encode(output), 1]) + stream.finish()
    parts = [splitter.push(text), splitter.finish()]
    assert ("".join(p[0] for p in parts), "".join(p[1] for p in parts)) == expected
    assert codec.decode(codec.encode(output)) == output


def test_a_message_that_is_continued_within_its_reasoning(codec):
    talk = [{"role": "user", "content": "x"}, {"role": "assistant", "content": "<think>wh"}]
    prompt = codec.encode_chat(talk, continue_final_message=True)
    assert codec.split_reasoning(prompt).push("y</think>z") == ("y", "z")
    talk[1]["content"] = "<think>why</think>becau"
    prompt = codec.encode_chat(talk, continue_final_message=True)
    assert codec.split_reasoning(prompt).push("se") == ("", "se")


def test_marks_that_are_set(tmp_path):
    codec = TextCodec(write_tokenizer(tmp_path), None)
    assert codec.reasoning_marks is None
    assert codec.split_reasoning([0]) is None
    codec.reasoning_marks = ReasoningMarks("<|user|>", "<|assistant|>")
    assert codec.decode([0, 2, 3, 1]) == "<|user|><|assistant|>"
    assert codec.split_reasoning([0]).push("<|user|>a<|assistant|>b") == ("a", "b")

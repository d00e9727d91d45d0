"""The text gate: the runtime makes of text and chats what transformers makes, or there is no bundle."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from factories import CHAT_TEMPLATE, write_tokenizer
from gguf_files import CONTROL, byte_level, write_gguf
from transformers import AutoTokenizer

from cospec.errors import BundleError, GateError, PromptError
from cospec.export.text_gate import chat_format, check_text, write_chat
from cospec.models.checkpoint import open_checkpoint
from cospec.models.fast_tokenizer import load_tokenizer, stored
from cospec.models.presets import resolve
from cospec.runtime.text.codec import TextCodec
from cospec.runtime.text.reference import compare, read_record

DATA = Path(__file__).parents[1] / "data" / "chat_templates.txt"
SECTIONS = DATA.read_text(encoding="utf-8").split("===== ")[1:]
CONSTRUCTS = {name: text[:-1] for name, _, text in (part.partition("\n") for part in SECTIONS)}
EMOJI = "<|end\U0001f600|>"
CONTENTS = "{% for m in messages %}{{ m['content'] }}{% endfor %}"


def checkpoint(folder: Path, template: Any = CHAT_TEMPLATE, **facts: Any) -> Path:
    """Write the tokenizer's part of a checkpoint."""
    write_tokenizer(folder, extra=[EMOJI, "<sep>", "<image>"])
    file = folder / "tokenizer_config.json"
    config = json.loads(file.read_text(encoding="utf-8"))
    config |= {"chat_template": template, **facts}
    file.write_text(
        json.dumps({k: v for k, v in config.items() if v is not None}), encoding="utf-8"
    )
    return folder


def bundle(source: Path) -> tuple[Path, TextCodec, Any]:
    """Write the text part of a bundle: its folder, its codec and the reference."""
    reference = load_tokenizer(source, None)
    folder = source.with_name("bundle")
    folder.mkdir()
    tokenizer = folder / "tokenizer.json"
    tokenizer.write_text(stored(reference, 320, source), encoding="utf-8")
    chat = write_chat(folder, reference, "mine")
    return folder, TextCodec(tokenizer, None if chat is None else folder / chat), reference


def passed(source: Path) -> tuple[TextCodec, dict[str, Any]]:
    folder, codec, reference = bundle(source)
    return codec, check_text(folder, codec, reference, "mine")


def refused(source: Path, change: Callable[[Path], None]) -> str:
    """Change a file of the bundle, and return what the gate says to it."""
    folder, _, reference = bundle(source)
    change(folder)
    codec = TextCodec(folder / "tokenizer.json", folder / "chat.json")
    with pytest.raises(GateError) as caught:
        check_text(folder, codec, reference, "mine")
    assert not (folder / "text_gate.json").exists()
    assert caught.value.message.startswith("mine: the text gate: ")
    return caught.value.message


def edit(name: str, old: str, new: str) -> Callable[[Path], None]:
    def change(folder: Path) -> None:
        file = folder / name
        text = file.read_text(encoding="utf-8")
        assert old in text
        file.write_text(text.replace(old, new, 1), encoding="utf-8")

    return change


@pytest.mark.parametrize(
    "name",
    [
        "generation",
        "tojson",
        "tools are none",
        "dates",
        "alternation",
        "tool calls",
        "own variables",
    ],
)
def test_every_case_passes_and_is_recorded(tmp_path, name):
    codec, facts = passed(checkpoint(tmp_path / "source", CONSTRUCTS[name]))
    record = read_record(tmp_path / "bundle" / "text_gate.json")
    assert record.counts() == facts
    assert facts["texts"] > 10 < facts["conversations"]
    compare(codec, record)  # later, and at another time
    refusals = [case for case in record.cases if case.refused is not None]
    assert len(refusals) == facts["refused_by_both"]
    for case in refusals:
        with pytest.raises(PromptError):
            codec.encode_chat(case.messages, **case.arguments)


def test_what_a_template_knows_is_tried(tmp_path):
    source = (
        "{{ tools | tojson }}{% for d in documents or [] %}{{ d.title }}{% endfor %}"
        "{% if enable_thinking is defined and not enable_thinking %}off{% endif %}" + CONTENTS
    )
    passed(checkpoint(tmp_path / "source", source))
    record = read_record(tmp_path / "bundle" / "text_gate.json")
    texts = "".join(case.text for case in record.cases)
    for piece in ('<weather> of a \\"city\\" & more', "T <1>", "off", "null", "👩\u200d👩\u200d👧"):
        assert piece in texts
    assert "<|user|>" in texts, "special tokens are spelled out"


def test_a_checkpoint_without_a_template(tmp_path):
    codec, facts = passed(checkpoint(tmp_path / "source", None))
    assert not codec.has_chat_template
    assert facts["conversations"] == 0 < facts["texts"]


@pytest.mark.parametrize(
    ("facts", "files", "variable", "expected"),
    [
        ({"eos_token": EMOJI}, {}, "eos_token", EMOJI),
        ({"sep_token": "<sep>"}, {}, "sep_token", "<sep>"),
        ({"mask_token": {"__type": "AddedToken", "content": "<sep>"}}, {}, "mask_token", "<sep>"),
        ({"extra_special_tokens": {"image_token": "<image>"}}, {}, "image_token", "<image>"),
        (
            {"cls_token": None},
            {"special_tokens_map.json": {"cls_token": "<sep>"}},
            "cls_token",
            "<sep>",
        ),
        ({"tokenizer_class": "GPT2Tokenizer", "eos_token": None}, {}, "eos_token", "<|endoftext|>"),
    ],
)
def test_every_special_token_reaches_the_template(tmp_path, facts, files, variable, expected):
    source = checkpoint(tmp_path / "source", CONTENTS + "{{ " + variable + " }}", **facts)
    for name, contents in files.items():
        (source / name).write_text(json.dumps(contents), encoding="utf-8")
    codec, _ = passed(source)
    assert codec.chat.render([{"role": "user", "content": "x"}]) == "x" + expected


def test_white_space_in_front_of_a_template_is_kept(tmp_path):
    codec, _ = passed(checkpoint(tmp_path / "source", "\n  " + CHAT_TEMPLATE))
    assert codec.chat.render([{"role": "user", "content": "x"}]).startswith("\n  <bos>")


def test_named_templates_from_every_place(tmp_path):
    named = [{"name": "default", "template": "D" + CONTENTS}, {"name": "tool_use", "template": "T"}]
    tools = [{"type": "function", "function": {"name": "f"}}]
    talk = [{"role": "user", "content": "x"}]
    codec, _ = passed(checkpoint(tmp_path / "a" / "source", named))
    assert (codec.chat.render(talk), codec.chat.render(talk, tools=tools)) == ("Dx", "T")
    source = checkpoint(tmp_path / "b" / "source", None)
    (source / "chat_template.jinja").write_text("F" + CONTENTS, encoding="utf-8")
    (source / "additional_chat_templates").mkdir()
    (source / "additional_chat_templates" / "rag.jinja").write_text("R", encoding="utf-8")
    codec, _ = passed(source)
    assert (codec.chat.render(talk), codec.chat.render(talk, template="rag")) == ("Fx", "R")
    source = checkpoint(tmp_path / "c" / "source", None)
    (source / "chat_template.json").write_text(json.dumps({"chat_template": "L" + CONTENTS}))
    assert passed(source)[0].chat.render(talk) == "Lx"


def test_named_templates_of_a_gguf_file(tmp_path):
    file = write_gguf(
        tmp_path / "model.gguf",
        byte_level(("<|end|>", CONTROL)),
        kind="gpt2",
        ggml__pre="gpt-2",
        ggml__eos_token_id=256,
        chat_template="D{{ eos_token }}",
        chat_template__tool_use="T",
    )
    chat = chat_format(open_checkpoint(resolve(str(file))).tokenizer)
    assert chat.templates == {"default": "D{{ eos_token }}", "tool_use": "T"}
    assert chat.render([{"role": "user", "content": "x"}]) == "D<|end|>"


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (
            edit("chat.json", "'content'] }}", "'content'] | trim }}"),
            "white space around messages: the ",
        ),
        (edit("chat.json", "<bos>", "<b>"), r"after '<b': here '><\|user\|>"),
        (edit("chat.json", "{% if add", "{{ tools.x.y }}{% if add"), "refused here"),
        (
            edit("chat.json", "<|assistant|>{% endif", "<|assistant|> {% endif"),
            r"after '.*Hello<\|assist",
        ),
        (
            edit("tokenizer.json", '"normalizer":null', '"normalizer":{"type":"Lowercase"}'),
            r"a word: the ids differ from token 0 on, after '': here \[\d+.*in transformers \[\d+",
        ),
        (edit("tokenizer.json", '"special":true', '"special":false'), None),
        (edit("tokenizer.json", '"content":"<|user|>"', '"content":"<|used|>"'), "the ids differ"),
    ],
)
def test_a_difference_is_refused_with_its_place(tmp_path, change, said):
    source = checkpoint(tmp_path / "source")
    if said is None:  # a token that is found in texts is the same token, special or not
        folder, _, reference = bundle(source)
        change(folder)
        codec = TextCodec(folder / "tokenizer.json", folder / "chat.json")
        assert check_text(folder, codec, reference, "mine")["texts"] > 10
        return
    assert re.search(said, refused(source, change))


def test_what_transformers_refuses_must_be_refused(tmp_path):
    source = checkpoint(tmp_path / "source", CONSTRUCTS["alternation"])
    change = edit("chat.json", "{{ raise_exception", "{{ 'x' or raise_exception")
    message = refused(source, change)
    assert "transformers refuses it (roles must alternate), but here it is" in message


@pytest.mark.parametrize("template", ["{% for m in messages %}", "{% nothing %}", "{{ x | none }}"])
def test_a_template_that_cannot_be_compiled(tmp_path, template):
    with pytest.raises(GateError, match="cannot be compiled") as caught:
        bundle(checkpoint(tmp_path / "source", template))
    assert "--no-chat-template" in caught.value.hint


@pytest.mark.parametrize(
    "template",
    [
        "{{ messages[0].content * 10**9 }}",
        "{% for i in range(99999) %}{% for j in range(99999) %}{% endfor %}{% endfor %}",
    ],
)
def test_a_hostile_template_never_reaches_transformers(tmp_path, template, monkeypatch):
    folder, codec, reference = bundle(checkpoint(tmp_path / "source", template))
    monkeypatch.setattr(reference, "apply_chat_template", None)
    with pytest.raises(GateError, match="too many steps or too much memory"):
        check_text(folder, codec, reference, "mine")


@pytest.mark.parametrize(
    "constant",
    [
        "10**(10**8)",
        "'%2000000000d' % 1",
        "'a' | center(1000000000)",
        "'a' * 10**9",
        "[1, 'a' * 10**9]",
    ],
)
def test_constants_that_transformers_would_compute_when_it_compiles(tmp_path, constant):
    source = "{% if messages[0].content == 'never' %}{{ " + constant + " }}{% endif %}" + CONTENTS
    with pytest.raises(GateError, match="the rendering was ended"):
        bundle(checkpoint(tmp_path / "source", source))


def test_the_record_is_repeated_without_the_reference(tmp_path):
    folder, codec, reference = bundle(checkpoint(tmp_path / "source", CONSTRUCTS["dates"]))
    check_text(folder, codec, reference, "mine")
    record = read_record(folder / "text_gate.json")
    assert any(re.search(r"20\d\d-\d\d-\d\d \d\d:\d\d:\d\d", case.text) for case in record.cases)
    edit("chat.json", "%B", "%b %B")(folder)
    changed = TextCodec(folder / "tokenizer.json", folder / "chat.json")
    with pytest.raises(GateError, match="a question: the prompts differ from character"):
        compare(changed, record)


@pytest.mark.parametrize(
    "contents",
    [
        b"",
        b"{}",
        b'{"transformers": "5", "now": "x", "cases": []}',
        b'{"transformers": "5", "now": "2026-01-01T00:00:00", "cases": [{"name": "a", "ids": ["x"]}]}',
    ],
)
def test_a_damaged_record(tmp_path, contents):
    (tmp_path / "text_gate.json").write_bytes(contents)
    with pytest.raises(BundleError, match=r"text_gate\.json"):
        read_record(tmp_path / "text_gate.json")


def test_the_reference_is_that_of_auto_tokenizer(tmp_path):
    """So that the gate compares with what a user of transformers gets."""
    source = checkpoint(tmp_path / "source")
    codec, _ = passed(source)
    theirs = AutoTokenizer.from_pretrained(source)
    talk = [{"role": "user", "content": "Add 12 and 30: {{ bos_token }}"}]
    ids = theirs.apply_chat_template(talk, add_generation_prompt=True, return_dict=False)
    assert codec.encode_chat(talk) == ids

"""The chat format of a bundle: which template is used, with what, and what is refused."""

from __future__ import annotations

import json

import pytest

from cospec.errors import BundleError, PromptError, UsageError
from cospec.runtime.text.chat_format import ChatFormat

USER = {"role": "user", "content": "hi"}
ASSISTANT = {"role": "assistant", "content": "ab"}
TURNS = (
    "{{ bos_token }}{% for m in messages %}<{{ m.role }}>{{ m.content }}</>{% endfor %}"
    "{% if add_generation_prompt %}<assistant>{% endif %}"
)
TOOLS = [{"type": "function", "function": {"name": "f", "parameters": {}}}]


def chat(source: str = TURNS, **templates: str) -> ChatFormat:
    return ChatFormat({"default": source, **templates}, {"bos_token": "<\U0001f600>"})


def test_it_is_stored_and_read_as_it_is(tmp_path):
    stored = ChatFormat({"default": "\n {{ x }}\U0001f600\r\n", "rag": "<&>"}, {"eos_token": "'\""})
    path = tmp_path / "chat.json"
    path.write_text(stored.to_json(), encoding="utf-8", newline="")
    found = ChatFormat.read(path)
    assert (found.templates, found.special_tokens) == (stored.templates, stored.special_tokens)


def test_the_template_of_an_earlier_version(tmp_path):
    path = tmp_path / "chat_template.jinja"
    path.write_text('{%- set bos_token = "<s>" -%}\n' + TURNS, encoding="utf-8")
    assert ChatFormat.read(path).render([USER]) == "<s><user>hi</><assistant>"


@pytest.mark.parametrize(
    "contents",
    [
        b"",
        b"[]",
        b"\xff",
        b"{}",
        b'{"templates": {}}',
        b'{"templates": {"default": 1}, "special_tokens": {}}',
        b'{"templates": [], "special_tokens": {}}',
        b'{"templates": {}, "special_tokens": {}, "x": 1}',
        json.dumps({"templates": {"default": "x" * (5 << 20)}, "special_tokens": {}}).encode(),
    ],
)
def test_a_damaged_file(tmp_path, contents):
    path = tmp_path / "chat.json"
    path.write_bytes(contents)
    with pytest.raises(BundleError, match=r"chat\.json") as caught:
        ChatFormat.read(path)
    assert caught.value.hint == "export the bundle again"


def test_templates_are_chosen_as_in_transformers():
    named = chat("plain", tool_use="tools", rag="rag")
    assert named.render([USER]) == "plain"
    assert named.render([USER], tools=TOOLS) == "tools"
    assert named.render([USER], template="rag", tools=TOOLS) == "rag"
    assert chat("plain").render([USER], tools=TOOLS) == "plain"
    with pytest.raises(UsageError, match="no chat template named 'other'") as caught:
        named.render([USER], template="other")
    assert "default, rag, tool_use" in caught.value.hint
    with pytest.raises(UsageError, match="no chat template named 'default'"):
        ChatFormat({"rag": "x"}, {}).render([USER])


def test_a_template_that_cannot_be_compiled_is_an_error_only_when_it_is_used():
    broken = chat("{% for m in messages %}", rag="fine")
    assert broken.render([USER], template="rag") == "fine"
    with pytest.raises(BundleError, match=r"'default' cannot be compiled: .*endfor") as caught:
        broken.render([USER])
    assert "plain text" in caught.value.hint


def test_the_last_message_of_the_assistant():
    talk = [USER, ASSISTANT]
    before = "<\U0001f600><user>hi</><assistant>ab"
    assert chat().render(talk, continue_final_message=True) == before
    assert chat().render(talk, add_generation_prompt=True) == before + "</><assistant>"
    assert chat().render(talk, add_generation_prompt=False) == before + "</>"
    with pytest.raises(PromptError, match="last message is the assistant's") as caught:
        chat().render(talk)
    assert "continue_final_message" in caught.value.hint
    with pytest.raises(UsageError, match="contradict"):
        chat().render(talk, continue_final_message=True, add_generation_prompt=True)


def test_continuing_another_field():
    source = "{% for m in messages %}{{ m.reasoning_content }}|{{ m.content }}{% endfor %}"
    talk = [USER, {"role": "assistant", "content": "", "reasoning": "hm"}]
    assert chat(source).render(talk, continue_final_message="reasoning") == "|hihm"
    with pytest.raises(PromptError, match="no 'plan' to continue"):
        chat(source).render(talk, continue_final_message="plan")
    with pytest.raises(PromptError, match="does not write the last message as it is"):
        chat("{{ messages[0].content }}").render(talk, continue_final_message=True)


def test_variables_of_the_template():
    source = "{{ enable_thinking }}{{ bos_token }}{{ deep.x[0] }}{{ missing is defined }}"
    arguments = {"enable_thinking": False, "bos_token": "<other>", "deep": {"x": [1.5]}}
    assert chat(source).render([USER], template_args=arguments) == "False<other>1.5False"
    for name in ("messages", "tools", "documents", "add_generation_prompt"):
        with pytest.raises(UsageError, match=f"cannot set {name}"):
            chat(source).render([USER], template_args={name: 1})
    with pytest.raises(PromptError, match="not JSON"):
        chat(source).render([USER], template_args={"x": object()})


@pytest.mark.parametrize("name", ["tools", "documents"])
@pytest.mark.parametrize("value", ["x", ["x"], [1], {"a": 1}, [object()]])
def test_tools_and_documents_are_lists_of_objects(name, value):
    with pytest.raises(PromptError, match=name):
        chat().render([USER], **{name: value})


@pytest.mark.parametrize(
    ("source", "reason"),
    [
        ("{{ raise_exception('roles must alternate') }}", "roles must alternate"),
        ("{{ messages[0].content + 1 }}", "str"),  # a TypeError, not an error of Jinja
        ("{{ messages[5].content.missing }}", "undefined|has no element"),
        ("{{ 1 // (messages | length - 1) }}", "zero"),
        ("{{ tools | tojson | length }}{{ x | tojson }}", "not JSON serializable"),
    ],
)
def test_a_template_that_refuses(source, reason):
    with pytest.raises(PromptError, match=reason) as caught:
        chat(source).render([USER])
    assert "the template of this model decides" in caught.value.hint


def test_errors_repeat_no_more_of_a_text_than_can_be_shown():
    source = "{{ raise_exception(messages[0].content) }}"
    with pytest.raises(PromptError) as caught:
        chat(source).render([{"role": "user", "content": "\x1b[31m\ud800" + "x" * 10_000}])
    assert "\\x1b[31m\\ud800xxx" in caught.value.message
    assert len(caught.value.message) < 600
    with pytest.raises(PromptError) as caught:
        chat().render([{**USER, "\x1b\ud800" * 100: object()}])
    assert len(caught.value.message.encode()) < 300


LISTS = "{% for m in messages %}{% for p in m.content %}{{ p.text }};{% endfor %}{% endfor %}"


@pytest.mark.parametrize(
    ("source", "text", "parts"),
    [
        (TURNS, "<\U0001f600><user>hi</><assistant>", "<\U0001f600><user>a\nb</><assistant>"),
        (LISTS, "hi;", "a;b;"),
        (
            "{% for m in messages %}{% if m.content is string %}{{ m.content }}{% else %}"
            "{{ m.content[0].text }}{% endif %}{% endfor %}",
            "hi",
            "a",
        ),
        ("{{ messages[0].content | tojson }}", '"hi"', '"a\\nb"'),
        ("{{ messages[0].content | trim }}", "hi", "a\nb"),
    ],
)
def test_content_comes_in_the_form_that_the_template_takes(source, text, parts):
    both = [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]
    assert chat(source).render([USER]) == text
    assert chat(source).render([{"role": "user", "content": both}]) == parts


@pytest.mark.parametrize(
    ("source", "written"),
    [
        ("{{ call.arguments | tojson }}", '{"x": "<1>"}'),
        ("{% for k, v in call.arguments.items() %}{{ k }}={{ v }}{% endfor %}", "x=<1>"),
        ("{{ '```' + call.arguments + '```' }}", '```{"x":"<1>"}```'),
        ("{{ call.arguments }}", '{"x":"<1>"}'),
    ],
)
def test_arguments_come_in_the_form_that_the_template_takes(source, written):
    loop = "{% for m in messages %}{% for c in m.tool_calls %}{% set call = c.function %}"
    function = {"name": "f", "arguments": '{"x":"<1>"}'}
    talk = [USER, {"role": "assistant", "tool_calls": [{"function": function}]}, USER]
    assert chat(loop + source + "{% endfor %}{% endfor %}").render(talk) == written

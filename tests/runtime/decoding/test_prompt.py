"""What messages become: template variables, prefills, and the sampling that the author recommends."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner
from msgspec.structs import replace

import cospec
from cospec import Chat, SamplingParams, Session
from cospec.errors import PromptError, UsageError
from cospec.runtime.bundle.manifest import SamplingDefaults
from cospec.runtime.bundle.reader import Bundle
from cospec.runtime.cli.run import main
from cospec.runtime.serve.requests import Defaults, chat_request, completion_request
from cospec.runtime.text.codec import TextCodec

TEMPLATE = (
    "{% for m in messages %}<|{{ m['role'] }}|>{{ m['content'] }}{% if not loop.last %}.{% endif %}"
    "{% endfor %}{% if add_generation_prompt %}<|assistant|>{% endif %}"
    "{% if tone %}[{{ tone }}]{% endif %}{% if short is sameas true %}!{% endif %}"
)
HELLO = [{"role": "user", "content": "12"}]


@pytest.fixture
def session(tiny_bundle: Any, tmp_path: Path) -> Session:
    """A session with a template that has variables."""
    session = cospec.load(tiny_bundle.root)
    path = tmp_path / "chat_template.jinja"
    path.write_text(TEMPLATE, encoding="utf-8")
    session.codec = TextCodec(tiny_bundle.root / "tokenizer.json", path)
    return session


def text_of(session: Session, prompt: Any = HELLO, **options: Any) -> str:
    tokens = session.plan(prompt, **options).tokens
    return "".join(
        session.codec.special_tokens.get(token) or session.codec.decode([token]) for token in tokens
    )


def test_template_variables_reach_the_template(session):
    assert text_of(session) == "<|user|>12<|assistant|>"
    arguments = {"tone": "warm", "short": True}
    assert text_of(session, template_args=arguments).endswith("<|assistant|>[warm]!")
    assert session.generate(HELLO, max_tokens=2, template_args=arguments).tokens
    turn = Chat(session).send("12", max_tokens=2, template_args=arguments)
    assert turn.stream.prompt_tokens == session.plan(HELLO, template_args=arguments).tokens


def test_the_last_message_can_be_continued(session):
    prefilled = [*HELLO, {"role": "assistant", "content": "30"}]
    continued = text_of(session, prefilled, continue_final_message=True)
    assert continued == "<|user|>12.<|assistant|>30"
    begun = text_of(session, prefilled, add_generation_prompt=True)
    assert begun == "<|user|>12.<|assistant|>30<|assistant|>"
    assert text_of(session, add_generation_prompt=False) == "<|user|>12"
    with pytest.raises(PromptError, match="the last message is the assistant's"):
        session.plan(prefilled)
    with pytest.raises(UsageError, match="contradict"):
        session.plan(prefilled, add_generation_prompt=True, continue_final_message=True)


@pytest.mark.parametrize("prompt", ["text", [5, 6]])
@pytest.mark.parametrize(
    "options",
    [
        {"template_args": {"tone": "x"}},
        {"template": "default"},
        {"add_generation_prompt": False},
        {"continue_final_message": True},
    ],
)
def test_options_for_messages_are_refused_for_other_prompts(session, prompt, options):
    (name,) = options
    with pytest.raises(UsageError, match=f"{name} works with messages only"):
        session.plan(prompt, **options)


def test_token_ids_are_a_prompt(session):
    tokens = session.encode("the block")
    assert (
        session.generate(tokens, max_tokens=6).text
        == session.generate("the block", max_tokens=6).text
    )
    with pytest.raises(PromptError, match="is not a list of token ids"):
        session.plan([5, session.manifest.vocab_size])
    with pytest.raises(PromptError, match="is empty"):
        session.plan([])


def test_the_command_line_and_batch_lines_set_template_variables(
    tiny_bundle, tmp_path, monkeypatch
):
    seen = []
    encode_chat = TextCodec.encode_chat

    def recorded(self: TextCodec, messages: Any, **options: Any) -> list[int]:
        seen.append(options)
        return encode_chat(self, messages, **options)

    monkeypatch.setattr(TextCodec, "encode_chat", recorded)
    run = ["--engine-dir", str(tiny_bundle.root), "--max-tokens", "1"]
    words = ["tone=warm", "short=true", "level=3", 'names=["a"]', "empty="]
    arguments = [word for pair in words for word in ("--template-arg", pair)]
    assert CliRunner().invoke(main, [*run, *arguments, "x"]).exit_code == 0
    given = {"tone": "warm", "short": True, "level": 3, "names": ["a"], "empty": ""}
    assert seen[-1]["template_args"] == given
    assert (seen[-1]["add_generation_prompt"], seen[-1]["continue_final_message"]) == (None, False)
    assert CliRunner().invoke(main, [*run, "--no-add-generation-prompt", "x"]).exit_code == 0
    assert seen[-1]["add_generation_prompt"] is False
    assert CliRunner().invoke(main, [*run, "--continue-final-message", "x"]).exit_code == 0
    assert seen[-1]["continue_final_message"] is True
    refused = CliRunner().invoke(main, [*run, "--template-arg", "tone", "x"])
    assert (refused.exit_code, "not of the form NAME=VALUE" in refused.stderr) == (2, True)
    line = {"messages": [*HELLO, {"role": "assistant", "content": "3"}], "max_tokens": 1}
    line |= {"continue_final_message": True, "template_args": {"tone": "x"}}
    (tmp_path / "in.jsonl").write_text(json.dumps(line) + "\n", encoding="utf-8")
    files = ["--batch", str(tmp_path / "in.jsonl"), "--output", str(tmp_path / "out.jsonl")]
    assert CliRunner().invoke(main, [*run, *files]).exit_code == 0
    assert seen[-1]["template_args"] == {"tone": "x"}
    assert seen[-1]["continue_final_message"] is True


def test_http_has_the_names_that_others_use():
    body = {"messages": HELLO, "chat_template_kwargs": {"enable_thinking": False}}
    body |= {"continue_final_message": True, "add_generation_prompt": False, "stop_token_ids": [7]}
    options = chat_request(json.dumps(body).encode(), Defaults("tiny")).options
    assert options.template_args == {"enable_thinking": False}
    assert (options.continue_final_message, options.add_generation_prompt) == (True, False)
    assert options.stop_token_ids == (7,)
    greedy = completion_request(b'{"prompt": "x", "greedy": true}', Defaults("tiny")).options
    assert greedy.greedy


@pytest.fixture
def recommended(session: Session) -> Session:
    """A session of a bundle whose author recommends sampling."""
    sampling = SamplingDefaults(temperature=0.7, top_k=20, top_p=0.8, repetition_penalty=1.05)
    generation = replace(session.manifest.generation, sampling=sampling)
    manifest = replace(session.manifest, generation=generation)
    return Session(manifest, *session.engines, session.codec)


def test_the_authors_sampling_is_the_default_and_a_call_replaces_parts_of_it(recommended):
    wanted = {"temperature": 0.7, "top_k": 20, "top_p": 0.8, "repetition_penalty": 1.05}
    assert recommended.plan("x").options.to_json() == wanted
    assert recommended.new_session().defaults == recommended.defaults
    assert recommended.plan("x", top_k=3).options.to_json() == wanted | {"top_k": 3}
    drawn = recommended.generate("the block", max_tokens=12, seed=3)
    same = SamplingParams(**wanted, seed=3)
    assert drawn.tokens == recommended.generate("the block", max_tokens=12, sampling=same).tokens
    assert drawn.seed == 3
    turn = Chat(recommended).send("x", max_tokens=1, seed=4).completion()
    assert turn.seed == 4


def test_greedy_and_whole_sampling_parameters_leave_the_recommendation_out(session, recommended):
    wanted = session.generate("the block", max_tokens=12)
    assert (wanted.seed, session.plan("x").options.to_json()) == (None, {})
    found = recommended.generate("the block", max_tokens=12, greedy=True)
    assert (found.tokens, found.seed) == (wanted.tokens, None)
    assert recommended.plan("x", greedy=True, min_p=0.5).options.top_k == 0
    assert recommended.generate("the block", max_tokens=12, sampling=SamplingParams()).tokens == (
        wanted.tokens
    )
    tokens = recommended.codec.encode("the block")
    measured = recommended.continue_tokens(tokens, max_tokens=12).completion()
    assert measured.tokens == wanted.tokens, "measurements are greedy"
    with pytest.raises(UsageError, match=r"greedy and temperature 0\.5 contradict each other"):
        recommended.plan("x", greedy=True, temperature=0.5)
    chosen = recommended.defaults.updated({"greedy": True}).updated({"temperature": 0.5})
    assert chosen.to_json() == {"temperature": 0.5}, (
        "a batch line is more specific than its command"
    )


def test_greedy_on_the_command_line(tiny_bundle, monkeypatch):
    bundle = Bundle.open(tiny_bundle.root)
    sampling = SamplingDefaults(temperature=1.0)
    generation = replace(bundle.manifest.generation, sampling=sampling)
    sampled = replace(bundle.manifest, generation=generation)
    init = Session.__init__

    def made(self: Session, manifest: Any, *given: Any, **named: Any) -> None:
        init(self, sampled, *given, **named)

    monkeypatch.setattr(Session, "__init__", made)
    run = ["--engine-dir", str(tiny_bundle.root), "--max-tokens", "8", "--json"]
    drawn = json.loads(CliRunner().invoke(main, [*run, "x"]).stdout)
    assert isinstance(drawn["seed"], int)
    greedy = json.loads(CliRunner().invoke(main, [*run, "--greedy", "x"]).stdout)
    assert "seed" not in greedy

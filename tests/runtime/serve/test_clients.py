"""Clients of others, unchanged, against the server with the trained tiny pair.

`make test-clients` runs all of them in an environment of their own; the suite runs those that are
installed. The model is weak, so tests force what a model would decide: which tool, and which form.
"""

from __future__ import annotations

import asyncio
import json
import os
import subprocess
import sys
from typing import Annotated, Any

import openai
import pydantic
import pytest

pytest.importorskip("llguidance")
QUESTION = "What is 12 + 30?"
MESSAGES = [{"role": "user", "content": QUESTION}]
ADD = {
    "type": "function",
    "function": {
        "name": "add",
        "parameters": {
            "type": "object",
            "properties": {"a": {"type": "integer", "maximum": 99, "minimum": 0}},
            "required": ["a"],
        },
    },
}


class Sum(pydantic.BaseModel):
    """A sum."""

    total: int = pydantic.Field(ge=0, le=999)
    unit: str = pydantic.Field(max_length=8)


Number = Annotated[int, pydantic.Field(ge=0, le=99)]
"""Short enough for the weak model, which writes digits without end."""


@pytest.fixture(scope="module")
def url(serving, taught):
    with serving(sessions=[taught]) as served:
        yield served.url


@pytest.fixture(scope="module")
def answer(taught) -> str:
    """What the model answers to the question."""
    return taught.new_session().generate(MESSAGES).text


def wanted(name: str) -> Any:
    return pytest.importorskip(name, reason=f"needs {name}: make test-clients")


# --- langchain


@pytest.fixture
def langchain(url):
    kind = wanted("langchain_openai").ChatOpenAI
    settings = {"model": "tiny", "base_url": url, "api_key": "none", "max_retries": 0}
    return lambda **more: kind(**settings, max_tokens=120, **more)


@pytest.mark.parametrize("method", ["json_schema", "function_calling"])
@pytest.mark.parametrize("responses", [False, True], ids=["chat", "responses"])
def test_langchain_gives_typed_output(langchain, method, responses):
    model = langchain(use_responses_api=responses).with_structured_output(Sum, method=method)
    assert isinstance(model.invoke(QUESTION), Sum)
    *_, last = model.stream(QUESTION)
    assert isinstance(last, Sum)


def test_langchain_streams_and_reports_usage_and_log_probabilities(langchain, answer):
    chunks = list(langchain(stream_usage=True).stream(QUESTION))
    assert "".join(str(chunk.text) for chunk in chunks) == answer
    assert sum(chunk.usage_metadata["output_tokens"] for chunk in chunks if chunk.usage_metadata)
    first, second = langchain(logprobs=True, top_logprobs=2).batch([QUESTION, "What is 1 + 3?"])
    assert str(first.text) == answer
    for reply in (first, second):
        assert len(reply.response_metadata["logprobs"]["content"][0]["top_logprobs"]) == 2


@pytest.mark.parametrize("streams", [False, True], ids=["whole", "stream"])
@pytest.mark.parametrize("responses", [False, True], ids=["chat", "responses"])
def test_an_agent_of_langchain_calls_a_tool_and_answers(langchain, streams, responses):
    agents, tools = wanted("langchain.agents"), wanted("langchain.tools")
    from langchain.agents.middleware import wrap_model_call

    called = []

    @tools.tool
    def add(a: Number, b: Number) -> int:
        """Add two numbers."""
        called.append((a, b))
        return a + b

    @wrap_model_call
    def call_once(request, handler):
        done = any(message.type == "tool" for message in request.messages)
        return handler(request.override(tool_choice="none" if done else "add"))

    model = langchain(use_responses_api=responses)
    agent = agents.create_agent(model, [add], middleware=[call_once], system_prompt="Use tools.")
    if streams:
        parts = [part for part, _ in agent.stream({"messages": MESSAGES}, stream_mode="messages")]
        assert any(part.type == "tool" for part in parts)
        assert any(getattr(part, "tool_call_chunks", None) for part in parts)
        assert parts[-1].type.startswith("AI")
    else:
        messages = agent.invoke({"messages": MESSAGES})["messages"]
        assert [message.type for message in messages] == ["human", "ai", "tool", "ai"]
        assert messages[2].content == str(sum(called[0]))
    assert len(called) == 1


@pytest.mark.parametrize("strategy", ["ProviderStrategy", "ToolStrategy"])
def test_an_agent_of_langchain_answers_in_a_form(langchain, strategy):
    agents = wanted("langchain.agents")
    forms = wanted("langchain.agents.structured_output")
    agent = agents.create_agent(langchain(), [], response_format=getattr(forms, strategy)(Sum))
    assert isinstance(agent.invoke({"messages": MESSAGES})["structured_response"], Sum)


# --- litellm


@pytest.mark.parametrize("provider", ["openai", "hosted_vllm"])
def test_litellm_chats_streams_and_calls_tools(url, answer, provider):
    litellm = wanted("litellm")
    ask = {"model": f"{provider}/tiny", "api_base": url, "api_key": "none", "messages": MESSAGES}
    assert litellm.completion(**ask).choices[0].message.content == answer
    chunks = litellm.completion(**ask, stream=True, stream_options={"include_usage": True})
    deltas = [chunk.choices[0].delta for chunk in chunks if chunk.choices]
    assert "".join(delta.content or "" for delta in deltas) == answer
    typed = litellm.completion(**ask, response_format=Sum).choices[0].message.content
    assert Sum.model_validate_json(typed)
    name = {"type": "function", "function": {"name": "add"}}
    choice = litellm.completion(**ask, tools=[ADD], tool_choice=name).choices[0]
    assert choice.finish_reason == "tool_calls"
    assert set(json.loads(choice.message.tool_calls[0].function.arguments)) == {"a"}
    with pytest.raises(litellm.BadRequestError, match="top_p"):
        litellm.completion(**ask, top_p=9)
    with pytest.raises(litellm.ContextWindowExceededError):
        litellm.completion(**{**ask, "messages": [{"role": "user", "content": QUESTION * 500}]})


def test_litellm_continues_text_and_uses_the_responses_api(url, answer):
    litellm = wanted("litellm")
    to = {"api_base": url, "api_key": "none"}
    text = litellm.text_completion(
        model="text-completion-openai/tiny", prompt="Q: 1 + 3\nA:", logprobs=2, max_tokens=8, **to
    )
    assert len(text.choices[0].logprobs.tokens) > 1
    response = litellm.responses(model="openai/tiny", input=QUESTION, **to)
    assert response.output[0].content[0].text == answer


# --- instructor


@pytest.mark.parametrize("mode", ["TOOLS", "TOOLS_STRICT", "JSON_SCHEMA", "RESPONSES_TOOLS"])
def test_instructor_gives_typed_output(url, mode):
    instructor = wanted("instructor")
    client = instructor.from_openai(
        openai.OpenAI(base_url=url, api_key="none", max_retries=0),
        mode=getattr(instructor.Mode, mode),
    )
    most = "max_output_tokens" if mode == "RESPONSES_TOOLS" else "max_tokens"
    found = client.chat.completions.create(
        model="tiny", response_model=Sum, messages=MESSAGES, max_retries=0, **{most: 120}
    )
    assert isinstance(found, Sum)


@pytest.mark.parametrize("mode", ["TOOLS", "JSON_SCHEMA"])
def test_instructor_streams_partial_objects(url, mode):
    instructor = wanted("instructor")
    client = instructor.from_openai(
        openai.OpenAI(base_url=url, api_key="none", max_retries=0),
        mode=getattr(instructor.Mode, mode),
    )
    parts = list(
        client.chat.completions.create_partial(
            model="tiny", response_model=Sum, messages=MESSAGES, max_tokens=120
        )
    )
    units = [part.unit for part in parts if part.unit]
    assert parts[-1].total is not None
    assert len(set(units)) > 1, "the text did not grow"


# --- pydantic-ai


@pytest.fixture(params=["chat", "responses"])
def pydantic_model(request, url):
    wanted("pydantic_ai")
    from pydantic_ai.models import openai as models
    from pydantic_ai.providers.openai import OpenAIProvider

    name = "OpenAIChatModel" if request.param == "chat" else "OpenAIResponsesModel"
    return getattr(models, name)("tiny", provider=OpenAIProvider(base_url=url, api_key="none"))


SETTINGS: Any = {"max_tokens": 120}


@pytest.mark.parametrize("output", ["ToolOutput", "NativeOutput"])
def test_pydantic_ai_gives_typed_output(pydantic_model, output):
    import pydantic_ai

    kind = getattr(pydantic_ai, output)(Sum)
    agent = pydantic_ai.Agent(pydantic_model, output_type=kind, model_settings=SETTINGS, retries=0)
    assert isinstance(agent.run_sync(QUESTION).output, Sum)


def test_pydantic_ai_chats_and_streams(pydantic_model, answer):
    import pydantic_ai

    agent = pydantic_ai.Agent(pydantic_model, model_settings=SETTINGS)
    assert agent.run_sync(QUESTION).output == answer

    async def streamed() -> str:
        async with agent.run_stream(QUESTION) as run:
            return str(await run.get_output())

    assert asyncio.run(streamed()) == answer


@pytest.mark.parametrize("streams", [False, True], ids=["whole", "stream"])
def test_an_agent_of_pydantic_ai_calls_a_tool_and_answers_in_a_form(pydantic_model, streams):
    import pydantic_ai

    called = []
    agent = pydantic_ai.Agent(
        pydantic_model, output_type=pydantic_ai.ToolOutput(Sum), model_settings=SETTINGS
    )

    def offered(context: Any, tool: Any) -> Any:
        """Offer the tool until it was called, so that the weak model ends."""
        return None if called else tool

    @agent.tool_plain(prepare=offered)
    def add(a: Number, b: Number) -> int:
        """Add two numbers."""
        called.append((a, b))
        return a + b

    async def streamed() -> Any:
        async with agent.run_stream(QUESTION) as run:
            return await run.get_output()

    output = asyncio.run(streamed()) if streams else agent.run_sync(QUESTION).output
    assert isinstance(output, Sum)


# --- llm


def test_llm_prompts_streams_and_fills_a_schema(url, answer, tmp_path):
    wanted("llm")
    models = [
        {"model_id": "tiny", "model_name": "tiny", "supports_schema": True, "supports_tools": True},
        {"model_id": "text", "model_name": "tiny", "completion": True},
    ]
    # YAML reads JSON.
    listed = json.dumps([{**model, "api_base": url} for model in models])
    (tmp_path / "extra-openai-models.yaml").write_text(listed)

    def llm(*arguments: str) -> str:
        command = [sys.executable, "-m", "llm", *arguments, "--key", "none"]
        environment = {**os.environ, "LLM_USER_PATH": str(tmp_path)}
        done = subprocess.run(command, env=environment, capture_output=True, text=True, input="")
        assert done.returncode == 0, done.stderr
        return done.stdout

    assert llm("-m", "tiny", QUESTION).rstrip("\n") == answer
    assert llm("-m", "tiny", "--no-stream", QUESTION).rstrip("\n") == answer
    assert llm("-m", "text", "Q: What is 12 + 30?\nA:").strip()
    schema = json.dumps(Sum.model_json_schema())
    assert Sum.model_validate_json(llm("-m", "tiny", "--schema", schema, QUESTION))
    assert llm("-m", "tiny", "-T", "llm_version", QUESTION).strip()


# --- lm-evaluation-harness


def test_lm_eval_scores_choices_over_http_as_the_session_does(url, taught, tmp_path, monkeypatch):
    lm_eval = pytest.importorskip("lm_eval", reason="needs lm-eval (extra eval)")
    pytest.importorskip("tenacity", reason="needs tenacity")
    from cospec.models import tiny_pair

    monkeypatch.setenv("HF_DATASETS_OFFLINE", "1")
    items = [
        {"question": f"What is {a} + 7?", "choices": [f"{a}+7={a + 7}", f"{a}+7={a + 8}"]}
        for a in range(10, 15)
    ]
    data, folder = tmp_path / "sums.jsonl", tmp_path / "tasks"
    data.write_text("".join(json.dumps(item) + "\n" for item in items))
    folder.mkdir()
    task = {
        "task": "sums",
        "dataset_path": "json",
        "dataset_kwargs": {"data_files": {"test": str(data)}, "cache_dir": str(tmp_path / "cache")},
        "test_split": "test",
        "output_type": "multiple_choice",
        "doc_to_text": "Q: {{question}}\nA:",
        "doc_to_choice": "{{choices}}",
        "doc_to_target": 0,
        "metric_list": [{"metric": "acc"}],
    }
    (folder / "sums.yaml").write_text(json.dumps(task))
    result = lm_eval.simple_evaluate(
        "local-completions",
        model_args={
            "base_url": f"{url}/completions",
            "model": "tiny",
            "tokenizer": str(tiny_pair.path("target")),
            "tokenizer_backend": "huggingface",
            "max_length": 512,
        },
        tasks=["sums"],
        task_manager=lm_eval.tasks.TaskManager(include_path=str(folder)),
        bootstrap_iters=0,
        verbosity="ERROR",
    )
    samples = sorted(result["samples"]["sums"], key=lambda sample: sample["doc_id"])
    session = taught.new_session()

    def tokens_of(text: str) -> list[int]:
        return list(session.codec.tokenizer.encode(text, add_special_tokens=False).ids)

    for item, sample in zip(items, samples, strict=True):
        prompt = f"Q: {item['question']}\nA:"
        first = len(tokens_of(prompt))
        for choice, (found, _) in zip(item["choices"], sample["filtered_resps"], strict=True):
            scored = session.score(tokens_of(f"{prompt} {choice}"))
            own = sum(each.logprob for each in scored[first - 1 :])
            assert float(found) == pytest.approx(own, abs=1e-3)

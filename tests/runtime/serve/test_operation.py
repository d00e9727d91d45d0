"""What those who run the server rely on: its key, its defaults, its metrics, and curl."""

from __future__ import annotations

import json
import shutil
import subprocess

import httpx2 as httpx
import openai
import pytest
from api_calls import MESSAGES, post

from cospec.runtime.decoding.options import GenerationOptions
from cospec.runtime.serve.requests import Defaults


def test_the_key_is_asked_for_where_there_is_one(serving):
    with serving(api_keys=("s3cret", "other")) as closed:
        for key in ("wrong", "s3cre", "s3crets", "sécret"):
            answer = httpx.get(
                f"{closed.url}/models", headers={"Authorization": f"Bearer {key}".encode()}
            )
            assert answer.status_code == 401
            assert answer.json()["error"]["code"] == "invalid_api_key"
        assert httpx.get(f"{closed.url}/models").status_code == 401
        assert post(closed, "completions", {"prompt": "x"}).status_code == 401
        assert httpx.get(f"{closed.root}/health").status_code == 200
        with closed.client(api_key="s3cret") as client:
            assert client.models.list().data[0].id == "tiny"
        with closed.client(api_key="wrong") as client, pytest.raises(openai.AuthenticationError):
            client.completions.create(model="tiny", prompt="x")
        assert "s3cret" not in repr(closed.service.options)


def test_the_default_temperature_is_the_servers(serving, session):
    with serving(defaults=Defaults("mine", GenerationOptions(temperature=1.0))) as warm:
        drawn = {
            post(warm, "chat/completions", {"messages": MESSAGES}).json()["choices"][0]["message"][
                "content"
            ]
            for _ in range(6)
        }
        body = {"messages": MESSAGES, "temperature": 0}
        answer = post(warm, "chat/completions", body).json()
    assert len(drawn) > 1
    assert answer["model"] == "mine"
    assert answer["choices"][0]["message"]["content"] == session.generate(MESSAGES).text


def test_metrics_count_what_was_done(serving, session):
    own = session.generate(MESSAGES).stats
    with serving() as fresh:
        post(fresh, "chat/completions", {"messages": MESSAGES})
        post(fresh, "completions", {"prompt": 1})
        answer = httpx.get(f"{fresh.root}/metrics")
    assert answer.headers["content-type"].startswith("text/plain")
    found = dict(
        line.rsplit(" ", 1) for line in answer.text.splitlines() if not line.startswith("#")
    )
    labels = 'engine="0",model_name="tiny"'
    for name, value in {
        f"vllm:prompt_tokens_total{{{labels}}}": own.num_prompt_tokens,
        f"vllm:generation_tokens_total{{{labels}}}": own.num_generated_tokens,
        f"vllm:spec_decode_num_drafts_total{{{labels}}}": own.num_drafts,
        f"vllm:spec_decode_num_draft_tokens_total{{{labels}}}": own.num_draft_tokens,
        f"vllm:spec_decode_num_accepted_tokens_total{{{labels}}}": own.num_accepted_tokens,
        f'vllm:spec_decode_num_accepted_tokens_per_pos_total{{{labels},position="0"}}': (
            own.num_accepted_tokens_per_pos[0]
        ),
        f"vllm:num_requests_running{{{labels}}}": 0,
        f"vllm:num_requests_waiting{{{labels}}}": 0,
        f"vllm:e2e_request_latency_seconds_count{{{labels}}}": 1,
        f"cospec:target_passes_total{{{labels}}}": own.num_target_passes,
        f'cospec:requests_refused_total{{{labels},reason="invalid"}}': 1,
        'vllm:request_success_total{engine="0",finished_reason="stop",model_name="tiny"}': 1,
    }.items():
        assert float(found[name]) == value, name


@pytest.mark.skipif(shutil.which("curl") is None, reason="curl is not installed")
def test_curl_gets_an_answer_and_a_stream(served, session):
    own = session.generate(MESSAGES).text

    def curl(**more):
        body = json.dumps({"messages": MESSAGES} | more)
        command = ["curl", "-sSN", "--max-time", "60", f"{served.url}/chat/completions"]
        options = ["-H", "Content-Type: application/json", "-d", body]
        return subprocess.run([*command, *options], capture_output=True, check=True, timeout=90)

    assert json.loads(curl().stdout)["choices"][0]["message"]["content"] == own
    events = curl(stream=True).stdout.decode().split("\n\n")
    assert events[-2:] == ["data: [DONE]", ""]
    chunks = [json.loads(event.removeprefix("data: ")) for event in events[:-2]]
    assert "".join(c["choices"][0]["delta"].get("content", "") for c in chunks) == own

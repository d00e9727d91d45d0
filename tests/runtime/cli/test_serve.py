"""cospec-serve as a command: what it says, and what it refuses before it serves."""

from __future__ import annotations

import importlib.util
from typing import Any

import pytest
from click.testing import CliRunner, Result

from cospec.runtime.cli.serve import main as serve_main
from cospec.runtime.serve import server as server_module


def call(*arguments: object) -> Result:
    return CliRunner().invoke(serve_main, [str(argument) for argument in arguments])


@pytest.fixture
def served(tiny_bundle: Any, monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """Whatever the command would have served, which here ends at once."""
    seen: list[Any] = []

    def serve(service: Any, sockets: Any, *, shutdown_timeout: Any, on_ready: Any) -> None:
        seen.append((service, shutdown_timeout))
        on_ready(lambda: None)
        for each in sockets:
            each.close()

    monkeypatch.setattr(server_module, "serve", serve)
    monkeypatch.delenv("COSPEC_API_KEY", raising=False)
    return seen


def test_it_says_where_it_listens_and_passes_everything_on(served, tiny_bundle):
    result = call(
        "--engine-dir", tiny_bundle.root, "--port", 0, "--slots", 2, "--max-queue", 3,
        "--timeout", 5, "--max-body-bytes", 99, "--default-temperature", 0.5,
        "--num-draft-tokens", 2, "--served-model-name", "mine", "--shutdown-timeout", 7,
    )  # fmt: skip
    assert result.exit_code == 0, result.output
    assert result.stderr.startswith("serving mine on http://127.0.0.1:")
    assert result.stdout == ""
    ((service, shutdown_timeout),) = served
    options = service.options
    assert (options.max_queue, options.timeout, options.max_body_bytes) == (3, 5.0, 99)
    assert (options.defaults.model, options.defaults.options.temperature) == ("mine", 0.5)
    assert (options.defaults.options.num_draft_tokens, options.api_keys, shutdown_timeout) == (
        2,
        (),
        7,
    )
    assert len(service.scheduler._slots) == 2


def test_it_warns_where_others_reach_it_without_a_key(served, tiny_bundle, monkeypatch):
    where = ("--engine-dir", tiny_bundle.root, "--port", 0, "--host", "0.0.0.0")
    assert "warning: everybody who can reach 0.0.0.0 can use this server" in call(*where).stderr
    monkeypatch.setenv("COSPEC_API_KEY", "s3cret")
    result = call(*where)
    assert "warning" not in result.stderr
    assert "s3cret" not in result.output
    assert served[-1][0].options.api_keys == ("s3cret",)


@pytest.mark.parametrize(
    ("arguments", "part"),
    [
        (["--slots", "0"], "--slots is 0"),
        (["--max-queue", "-1"], "--max-queue is -1"),
        (["--timeout", "0"], "--timeout is 0 seconds"),
        (["--max-body-bytes", "0"], "--max-body-bytes is 0"),
        (["--api-key", " "], "API key must be printable"),
        (["--api-key", "schlüssel"], "API key must be printable"),
        (["--default-temperature", "-1"], "temperature is -1"),
        (["--mode", "collab"], "no arbiter"),
        (["--threshold", "0.5"], "works in the mode 'collab' only"),
        (
            ["--num-draft-tokens", "many"],
            "num_draft_tokens is 'many', but must be an integer or auto",
        ),
    ],
)
def test_what_no_server_could_keep_is_refused_at_the_start(served, tiny_bundle, arguments, part):
    result = call("--engine-dir", tiny_bundle.root, "--port", 0, *arguments)
    assert result.exit_code == 2
    assert part in result.stderr
    assert served == []


def test_a_missing_extra_is_named_before_anything_is_loaded(served, tmp_path, monkeypatch):
    found = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name: None if name == "starlette" else found(name)
    )
    result = call("--engine-dir", tmp_path)
    assert result.exit_code == 4
    assert 'pip install "cospec[serve]"' in result.stderr


def test_help_states_the_default_temperature_and_where_the_key_comes_from():
    text = " ".join(call("--help").stdout.split())
    assert "or 0, which is greedy. OpenAI's own default is 1" in text
    assert "COSPEC_API_KEY" in text

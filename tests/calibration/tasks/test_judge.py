import json
import threading
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, HTTPServer

import pytest

from cospec.calibration.tasks import judge
from cospec.calibration.tasks.checkers import check, require_working
from cospec.calibration.tasks.item import CheckerSpec, Task
from cospec.calibration.tasks.judge import JudgeChecker, JudgeServer, parse_rating
from cospec.errors import BackendError, UsageError

ANSWER = {"question": "Why is the sky blue?", "reference": None}


class Stub:
    """An OpenAI-compatible server that plays a script of (status, body) replies, then repeats."""

    def __init__(self, *replies):
        self.replies = list(replies)
        self.requests = []


def says(text):
    return 200, json.dumps({"choices": [{"message": {"content": text}}]})


@contextmanager
def serving(stub):
    class Handler(BaseHTTPRequestHandler):
        def do_POST(self):
            body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            stub.requests.append((self.path, dict(self.headers), body))
            status, text = stub.replies.pop(0) if len(stub.replies) > 1 else stub.replies[0]
            self.send_response(status)
            if 300 <= status < 400:
                self.send_header("Location", f"http://127.0.0.1:{self.server.server_port}/other")
            self.end_headers()
            self.wfile.write(text.encode())

        do_GET = do_POST

        def log_message(self, *args):
            pass

    server = HTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, args=(0.02,))
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}/v1"
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


@pytest.fixture(autouse=True)
def environment(monkeypatch):
    monkeypatch.setattr(judge.time, "sleep", lambda seconds: None)
    for name in ("URL", "MODEL", "API_KEY", "TIMEOUT"):
        monkeypatch.delenv(f"COSPEC_JUDGE_{name}", raising=False)
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    monkeypatch.setenv("COSPEC_JUDGE_MODEL", "judge-1")
    return monkeypatch


def asked(environment, stub, text="Because of scattering.", answer=ANSWER, **options):
    with serving(stub) as url:
        environment.setenv("COSPEC_JUDGE_URL", url + "/")
        return JudgeChecker(**options).check(answer, text)


def test_request(environment):
    environment.setenv("COSPEC_JUDGE_API_KEY", "key-1")
    stub = Stub(says("Good. [[8]]"))
    assert asked(environment, stub, answer={**ANSWER, "reference": "Rayleigh {x}"})
    path, headers, body = stub.requests[0]
    assert path == "/v1/chat/completions"
    assert headers["Authorization"] == "Bearer key-1"
    assert (body["model"], body["temperature"]) == ("judge-1", 0)
    prompt = body["messages"][0]["content"]
    assert all(part in prompt for part in (ANSWER["question"], "Because of", "Rayleigh {x}"))


@pytest.mark.parametrize(
    ("rating", "expected"), [("[[5]]", False), ("[[6]]", True), ("[[6.5]]", True)]
)
def test_threshold(environment, rating, expected):
    assert asked(environment, Stub(says(rating))) is expected
    assert asked(environment, Stub(says(rating)), threshold=7) is False


def test_without_key_nothing_is_sent(environment):
    stub = Stub(says("[[8]]"))
    asked(environment, stub)
    assert "Authorization" not in stub.requests[0][1]
    assert "Reference" not in stub.requests[0][2]["messages"][0]["content"]


def test_passing_failures_are_tried_again(environment):
    stub = Stub((503, "busy"), (429, "slow down"), says("[[9]]"))
    assert asked(environment, stub)
    assert len(stub.requests) == 3


@pytest.mark.parametrize(
    ("reply", "tries", "message"),
    [
        ((500, ""), 3, "HTTP 500"),
        ((401, ""), 1, "HTTP 401"),
        ((307, ""), 1, "HTTP 307"),  # the key does not go elsewhere
        ((302, ""), 1, "HTTP 302"),
        ((200, "<html>"), 3, "not an OpenAI chat completion"),
        ((200, "{}"), 3, "not an OpenAI chat completion"),
        ((200, '{"choices": [{"message": {"content": null}}]}'), 3, "not an OpenAI"),
    ],
)
def test_lasting_failures_are_errors(environment, reply, tries, message):
    stub = Stub(reply)
    with pytest.raises(BackendError, match=message):
        asked(environment, stub)
    assert len(stub.requests) == tries
    assert all(path == "/v1/chat/completions" for path, _, _ in stub.requests)


def test_unreachable_judge(environment):
    with serving(Stub(says(""))) as url:
        pass
    environment.setenv("COSPEC_JUDGE_URL", url)
    with pytest.raises(BackendError, match="COSPEC_JUDGE_URL"):
        JudgeChecker().check(ANSWER, "x")


def test_a_judge_without_a_rating_counts_as_wrong(environment):
    stub = Stub(says("I would rather not."))
    assert asked(environment, stub) is False
    assert len(stub.requests) == 3


def test_any_text_can_be_judged(environment):
    stub = Stub(says("[[8]]"))
    assert asked(environment, stub, text="\ud800\0{}{question}" + "x" * 100_000)
    assert len(stub.requests[0][2]["messages"][0]["content"]) < 25_000


@pytest.mark.parametrize(
    ("reply", "rating"),
    [
        ("Rating: [[7]]", 7),
        ("first [[3]], no: [[ 7.5 ]]", 7.5),
        ("[[8/10]]", 8),
        ("Rating: 7", 7),
        ("**Rating**: 7/10", 7),
        ("[[0]]", None),
        ("[[11]]", None),
        ("[[ten]]", None),
        ("", None),
    ],
)
def test_parse_rating(reply, rating):
    assert parse_rating(reply) == rating


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({}, "no judge is set"),
        ({"URL": "http://x/v1", "MODEL": ""}, "no judge is set"),
        ({"URL": "file:///etc/passwd"}, "no http"),
        ({"URL": "http://x/v1", "TIMEOUT": "soon"}, "no number of seconds"),
        ({"URL": "http://x/v1", "TIMEOUT": "0"}, "no number of seconds"),
    ],
)
def test_settings(environment, changes, message):
    for name, value in changes.items():
        environment.setenv(f"COSPEC_JUDGE_{name}", value)
    task = Task("t", "p", CheckerSpec("judge"), ANSWER)
    with pytest.raises(UsageError, match=message):
        require_working([task])
    with pytest.raises(UsageError, match=message):
        check(task, "x")


def test_the_key_is_not_shown(environment):
    environment.setenv("COSPEC_JUDGE_URL", "http://x/v1")
    environment.setenv("COSPEC_JUDGE_API_KEY", "key-1")
    assert "key-1" not in repr(JudgeServer.from_environment())

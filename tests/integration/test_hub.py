"""Bundles on the hub: pushed, pulled, resumed and refused, against a stand-in that speaks its API."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from hub_stand_in import TOKEN, Hub, running_hub

from cospec.runtime.bundle.reader import Bundle

Run = Callable[..., "subprocess.CompletedProcess[str]"]
REPOSITORY = "somebody/tiny"
QUESTION = "Mia has 58 keys and Sam 55 more than Mia. How many in all?"
WEIGHTS = "target/model.onnx.data"
CHUNK = 1 << 20
"""Bytes that the client writes at a time; its own 10 MB is more than the tiny pair has."""


@pytest.fixture
def hub() -> Iterator[Hub]:
    with running_hub() as hub:
        yield hub


@pytest.fixture
def published(hub: Hub, tiny_pair_bundle: Path) -> Hub:
    """A hub that holds the tiny pair."""
    files = [path for path in tiny_pair_bundle.rglob("*") if path.is_file()]
    contents = {path.relative_to(tiny_pair_bundle).as_posix(): path.read_bytes() for path in files}
    hub.commit(REPOSITORY, {**contents, "notes.bin": b"never downloaded"})
    return hub


@pytest.fixture
def cospec(hub: Hub, tmp_path: Path) -> Run:
    """Run a command of ours as a user of the hub would, with an empty cache."""

    def run(command: str, *words: str, **env: str) -> subprocess.CompletedProcess[str]:
        module = {"run": "runtime.cli.run", "export": "export.cli", "verify": "runtime.cli.verify"}
        program = (
            f"import huggingface_hub.constants as c; c.DOWNLOAD_CHUNK_SIZE = {CHUNK}\n"
            f"from cospec.{module[command]} import main; main()"
        )
        return subprocess.run(
            [sys.executable, "-c", program, *words],
            env={**os.environ, **hub.env(tmp_path / "hf"), "COLUMNS": "200", **env},
            capture_output=True,
            text=True,
            check=False,
            timeout=120,
        )

    return run


def ask(cospec: Run, address: str = f"hf://{REPOSITORY}", **env: str) -> str:
    done = cospec("run", "--engine-dir", address, QUESTION, **env)
    assert done.returncode == 0, done.stderr
    return done.stdout


def downloads(hub: Hub, relative: str) -> list[str]:
    """The ranges in which a file was asked for."""
    return [ranges for method, path, ranges in hub.seen if method == "GET" and relative in path]


def test_a_bundle_is_run_from_the_hub_and_then_without_a_network(published, cospec, tmp_path):
    assert "171" in ask(cospec)
    fetched = {path for method, path, _ in published.seen if method == "GET" and "resolve" in path}
    assert any(path.endswith(WEIGHTS) for path in fetched)
    assert not any("notes.bin" in path for path in fetched), "only what the manifest lists"

    snapshot = next((tmp_path / "hf/hub/models--somebody--tiny/snapshots").iterdir())
    assert (snapshot / WEIGHTS).is_symlink(), "the bundle is used as it lies in the cache"
    before = len(published.seen)
    assert "171" in ask(cospec, HF_HUB_OFFLINE="1")
    assert len(published.seen) == before, "offline mode asks nobody"
    assert "171" in ask(cospec, HF_ENDPOINT="http://127.0.0.1:9"), "the cache serves without a hub"
    assert "171" in ask(cospec)
    assert downloads(published, WEIGHTS) == [""], "nothing is downloaded twice"


def test_a_revision_chooses_the_bundle(published, cospec, tiny_pair_bundle):
    commit = published.heads[REPOSITORY]["main"]
    published.heads[REPOSITORY]["v1"] = commit
    published.commit(REPOSITORY, {WEIGHTS: b"something else"})
    for revision in ("v1", commit):
        done = cospec("verify", "--json", f"hf://{REPOSITORY}@{revision}")
        assert json.loads(done.stdout)["seal"] == Bundle.open(tiny_pair_bundle).manifest.seal
    before = len(published.seen)
    done = cospec("verify", f"hf://{REPOSITORY}")
    assert done.returncode == 3
    assert f"{WEIGHTS} has 14 bytes on the hub" in done.stderr
    assert not any(WEIGHTS in path for _, path, _ in published.seen[before:]), "found out too late"


def test_a_download_whose_connection_breaks_continues_at_that_byte(published, cospec):
    published.cut_after[WEIGHTS] = 3_000_000
    assert "171" in ask(cospec)
    assert downloads(published, WEIGHTS) == ["", f"bytes={2 * CHUNK}-"]


def test_a_download_that_was_given_up_continues_with_the_missing_files(published, cospec):
    published.cut_after[WEIGHTS], published.goes_away = 3_000_000, True
    done = cospec("verify", f"hf://{REPOSITORY}")
    assert done.returncode == 3, done.stderr
    assert "Run the command again" in done.stderr
    offline = cospec("verify", f"hf://{REPOSITORY}", HF_HUB_OFFLINE="1")
    assert offline.returncode == 3, "half of a bundle is no bundle"
    assert "does not hold it whole" in offline.stderr
    published.is_away = False
    published.seen.clear()
    assert "171" in ask(cospec)
    assert downloads(published, WEIGHTS) == [""]
    assert downloads(published, "cospec.json") == [], "what was there is kept"


@pytest.mark.parametrize("relative", ["target/model.onnx", WEIGHTS, "tokenizer.json"])
def test_a_tampered_file_is_refused(published, cospec, relative):
    data = bytearray(published.commits[REPOSITORY][published.heads[REPOSITORY]["main"]][relative])
    data[len(data) // 2] ^= 1
    published.sent_instead[relative] = bytes(data)
    done = cospec("run", "--json", "--engine-dir", f"hf://{REPOSITORY}", QUESTION)
    error = json.loads(done.stdout)["error"]
    assert (done.returncode, error["type"]) == (3, "BundleError")
    assert f"{relative} has other contents than were written" in error["message"]
    assert "hf cache" in error["hint"]


@pytest.mark.parametrize(
    ("address", "says"),
    [
        ("hf://somebody/nothing", "knows no such model"),
        (f"hf://{REPOSITORY}@v9", "has no such revision"),
        ("hf://somebody", "not an address on the hub"),
        ("hf://somebody/tiny/more", "not an address on the hub"),
        ("hf://somebody/tiny@../../etc", "not an address on the hub"),
        ("hf://somebody/empty", "holds no bundle"),
    ],
)
def test_what_is_not_there_is_said_clearly(published, cospec, address, says):
    published.commit("somebody/empty", {"README.md": b"nothing yet"})
    done = cospec("verify", address)
    assert done.returncode == 3
    assert says in done.stderr
    assert "Traceback" not in done.stderr
    assert "->" in done.stderr


def test_a_pushed_bundle_is_pulled_with_its_card(hub, cospec, tiny_pair_bundle):
    words = ("--output", str(tiny_pair_bundle), "--push", REPOSITORY)
    done = cospec("export", *words, HF_TOKEN=TOKEN)
    assert done.returncode == 0, done.stderr
    assert f"cospec-run --engine-dir hf://{REPOSITORY}" in done.stdout
    assert hub.private[REPOSITORY] is True
    card = hub.commits[REPOSITORY][hub.heads[REPOSITORY]["main"]]["README.md"].decode()
    manifest = Bundle.open(tiny_pair_bundle).manifest
    assert manifest.seal in card
    assert 'license: "apache-2.0"' in card
    assert "| target | tiny | LlamaForCausalLM |" in card
    assert f"hf://{REPOSITORY}" in card
    assert "171" in ask(cospec)
    uploads = len([1 for method, path, _ in hub.seen if method == "PUT"])
    assert cospec("export", *words, HF_TOKEN=TOKEN).returncode == 0
    again = len([1 for method, path, _ in hub.seen if method == "PUT"])
    assert again == uploads, "what the hub has is not uploaded again"


def test_an_export_can_push_its_result(hub, cospec, tmp_path):
    output = tmp_path / "exported"
    words = ("--target", "tiny-draft", "--draft", "none", "--json", "--output", str(output))
    done = cospec("export", *words, "--push", REPOSITORY, HF_TOKEN=TOKEN)
    assert done.returncode == 0, done.stderr
    commit = hub.heads[REPOSITORY]["main"]
    assert json.loads(done.stdout)["pushed"].endswith(commit)
    assert "cospec.json" in hub.commits[REPOSITORY][commit]


@pytest.mark.parametrize(
    ("words", "env", "code", "says"),
    [
        ({"--push": "name"}, {}, 2, "the form is org/name"),
        ({"--push": REPOSITORY}, {}, 7, "hf auth login"),
        ({"--push": REPOSITORY}, {"HF_ENDPOINT": "http://127.0.0.1:9"}, 7, "Push it again"),
        ({"--push": REPOSITORY}, {"HF_HUB_OFFLINE": "1"}, 7, "HF_HUB_OFFLINE is set"),
    ],
)
def test_a_push_that_cannot_be_is_an_error(cospec, tiny_pair_bundle, words, env, code, says):
    given = [word for pair in words.items() for word in pair]
    done = cospec("export", "--output", str(tiny_pair_bundle), *given, **env)
    assert done.returncode == code, done.stderr
    assert says in done.stderr
    assert "Traceback" not in done.stderr

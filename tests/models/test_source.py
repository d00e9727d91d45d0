"""Downloads that fail: the hub is never asked here, but for one subprocess that cannot reach it."""

import errno
import os
import socket
import subprocess
import sys
import time

import huggingface_hub
import pytest
from huggingface_hub.errors import GatedRepoError, OfflineModeIsEnabled, RepositoryNotFoundError

from cospec.errors import CheckpointError, ResourceError
from cospec.models.presets import resolve
from cospec.models.source import DOWNLOADED, fetch


def hub_error(kind, status):
    # Its own constructor wants a response of whichever HTTP client huggingface_hub is built on.
    error = kind.__new__(kind)
    Exception.__init__(error, f"{status} from the hub")
    return error


@pytest.fixture
def answering(monkeypatch):
    """A hub that answers the first question."""
    monkeypatch.setattr(huggingface_hub.HfApi, "model_info", lambda self, *a, **k: None)


@pytest.fixture
def failing(monkeypatch, answering):
    def install(error):
        def snapshot_download(*args, **kwargs):
            raise error

        monkeypatch.setattr(huggingface_hub, "snapshot_download", snapshot_download)

    return install


def test_local_sources_are_not_downloaded(tmp_path, failing):
    failing(AssertionError("asked the hub"))
    assert fetch(resolve(str(tmp_path))) == tmp_path


def test_only_harmless_files_are_asked_for(monkeypatch, tmp_path, answering):
    asked = {}

    def snapshot_download(hub_id, **kwargs):
        asked.update(kwargs, hub_id=hub_id)
        return str(tmp_path)

    monkeypatch.setattr(huggingface_hub, "snapshot_download", snapshot_download)
    assert fetch(resolve("org/model")) == tmp_path
    assert asked["hub_id"] == "org/model"
    assert asked["allow_patterns"] == list(DOWNLOADED)
    from huggingface_hub.utils import filter_repo_objects

    files = [
        "config.json",
        "model-00001-of-00002.safetensors",
        "model.safetensors",
        "tokenizer.json",
        "pytorch_model.bin",
        "consolidated.safetensors",
        "modeling_x.py",
        "model.pt",
        "onnx/model.onnx",
    ]
    kept = list(filter_repo_objects(files, allow_patterns=list(DOWNLOADED)))
    assert kept == files[:4]


@pytest.mark.parametrize(
    ("error", "reason"),
    [
        (hub_error(GatedRepoError, 401), "gated"),
        (hub_error(RepositoryNotFoundError, 404), "knows no such model"),
        (OfflineModeIsEnabled("offline"), "HF_HUB_OFFLINE"),
        (ConnectionError(errno.ECONNRESET, "reset by peer"), "cannot be reached"),
        (TimeoutError("timed out"), "cannot be reached"),
    ],
    ids=["gated", "unknown", "offline", "reset", "timeout"],
)
def test_reasons(failing, error, reason):
    failing(error)
    with pytest.raises(CheckpointError, match=reason) as caught:
        fetch(resolve("org/model"))
    text = str(caught.value)
    assert "org/model" in text
    assert "hf download org/model" in text
    assert ("accept its licence" in text) == isinstance(error, GatedRepoError)


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EACCES, errno.EROFS])
def test_disk_trouble(failing, number):
    failing(OSError(number, os.strerror(number), "/cache/x"))
    with pytest.raises(ResourceError, match="HF_HOME"):
        fetch(resolve("org/model"))


def test_interrupt_passes_through(failing):
    failing(KeyboardInterrupt())
    with pytest.raises(KeyboardInterrupt):
        fetch(resolve("org/model"))


def test_cache_makes_up_for_an_unreachable_hub(monkeypatch, tmp_path):
    def model_info(self, *args, **kwargs):
        raise ConnectionError("away")

    def snapshot_download(hub_id, *, local_files_only=False, **kwargs):
        assert local_files_only
        return str(tmp_path)

    monkeypatch.setattr(huggingface_hub.HfApi, "model_info", model_info)
    monkeypatch.setattr(huggingface_hub, "snapshot_download", snapshot_download)
    assert fetch(resolve("org/model")) == tmp_path


@pytest.fixture
def silent_hub():
    """An address that accepts connections and never answers."""
    with socket.socket() as listening:
        listening.bind(("127.0.0.1", 0))
        listening.listen(20)
        yield f"http://127.0.0.1:{listening.getsockname()[1]}"


@pytest.mark.parametrize("hub", ["refusing", "silent"])
def test_no_network_fails_fast_on_one_screen(hub, tmp_path, silent_hub):
    program = (
        "from cospec.models import source\n"
        "from cospec.models.presets import resolve\n"
        "from cospec.errors import CheckpointError\n"
        "source.ANSWER_TIMEOUT_S = 0.5\n"
        "try: source.fetch(resolve('llama-8b'))\n"
        "except CheckpointError as error: print(error)\n"
    )
    endpoint = silent_hub if hub == "silent" else "http://127.0.0.1:9"
    away = {"HF_ENDPOINT": endpoint, "HF_HOME": str(tmp_path), "HF_HUB_OFFLINE": "0"}
    started = time.monotonic()
    done = subprocess.run(
        [sys.executable, "-c", program],
        capture_output=True,
        text=True,
        env={**os.environ, **away},
        timeout=60,
        check=True,
    )
    assert time.monotonic() - started < 30
    text = done.stdout
    assert "llama-8b (meta-llama/Llama-3.1-8B-Instruct)" in text
    assert "gated" in text
    assert "https://huggingface.co/meta-llama/Llama-3.1-8B-Instruct" in text
    assert "--target ./Llama-3.1-8B-Instruct" in text
    assert len(text.splitlines()) < 16
    assert "Traceback" not in text + done.stderr

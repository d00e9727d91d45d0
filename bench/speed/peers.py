"""The runtimes that are compared: what each needs, and the rows that it plays.

Each peer is measured at the settings that were found best for it, and as it comes where that differs.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from ...errors import CospecError, UsageError
from ...runtime.cli.engine_settings import Pool
from ...runtime.engines.onnxruntime import SPIN_MICROSECONDS
from .conversions import GENAI, LLAMA, OPENVINO
from .measure import Row
from .peer_formats import PairFormat
from .prepare import NUM_DRAFT_TOKENS, Pair, Workshop, link_files, run, write_json
from .remote import Process

OURS = "cospec"
DRAFT_LENGTHS = (2, 3, 4, 5)
"""Draft lengths of peers: their best lies among them on every pair that was tried."""

DraftLength = int | Literal["auto"]
OUR_DRAFT_LENGTHS: tuple[DraftLength, ...] = (*range(1, NUM_DRAFT_TOKENS + 1), "auto")


def our_rows(
    bundle: Path,
    weights: PairFormat,
    threads: int,
    lengths: Sequence[DraftLength] = OUR_DRAFT_LENGTHS,
    *,
    pools: Sequence[Pool] = ("own", "shared"),
) -> list[Row]:
    """Return the rows of a bundle: the target alone and each draft length, with each kind of pools."""
    rows = []
    for pool in pools:
        shared = pool == "shared"
        settings = {"bundle": str(bundle), "threads": threads, "shared_pool": shared}
        process = Process(Path(sys.executable), "cospec_worker.py", settings)
        setting = "shared pool" if shared else "own pools"
        rows += _rows(OURS, weights, (0, *lengths), setting, process)
    return rows


def _rows(
    name: str,
    weights: PairFormat,
    lengths: Sequence[DraftLength],
    setting: str,
    process: Process,
) -> list[Row]:
    """Return a row for each draft length; that of the target alone has the target's format."""
    return [
        Row(name, weights.target if k == 0 else str(weights), k, setting, process) for k in lengths
    ]


def transformers_rows(
    workshop: Workshop, pair: Pair, weights: PairFormat, threads: int, capacity: int
) -> list[Row]:
    """`generate` of transformers, in the environment that exported the pair."""
    settings = {role: str(pair.folder / role) for role in ("target", "draft")}
    process = Process(
        Path(sys.executable), "transformers_worker.py", {**settings, "threads": threads}
    )
    return _rows("transformers", weights, (0, *DRAFT_LENGTHS), "", process)


GENAI_WAITING: dict[str, dict[str, str]] = {
    "as it comes": {},
    "no spinning": {"session.intra_op.allow_spinning": "0"},
    "spinning briefly": {"session.intra_op.spin_duration_us": str(SPIN_MICROSECONDS)},
}
"""How its worker threads wait for the next operator; the last is what ours do."""


def genai_rows(
    workshop: Workshop, pair: Pair, weights: PairFormat, threads: int, capacity: int
) -> list[Row]:
    """onnxruntime-genai, with each way for its threads to wait."""
    name = "onnxruntime-genai"
    python = workshop.environment(name)
    rows = []
    for setting in GENAI_WAITING:
        for draft in (False, True):
            folder = _genai_folder(workshop, pair, weights, threads, capacity, setting, draft)
            settings = {"folder": str(folder), "capacity": capacity}
            process = Process(python, "genai_worker.py", settings)
            lengths = DRAFT_LENGTHS if draft else (0,)
            rows += _rows(name, weights, lengths, setting, process)
    return rows


def _genai_folder(
    workshop: Workshop,
    pair: Pair,
    weights: PairFormat,
    threads: int,
    capacity: int,
    waiting: str,
    draft: bool,
) -> Path:
    """Return a folder for genai: the target, with the draft inside where it is to speculate."""
    base = workshop.root / "onnxruntime-genai"
    forms = {"target": GENAI[weights.target], "draft": GENAI[weights.draft]}
    roles = ("target", "draft") if draft else ("target",)
    python = workshop.environment("onnxruntime-genai")

    def built(role: str) -> Path:
        form = forms[role]
        builder: list[str | Path] = [python, "-m", "onnxruntime_genai.models.builder"]
        builder += ["-i", pair.folder / role, "-e", "cpu"]
        return workshop.once(
            base / f"{pair.name}-{form.name}-{role}",
            f"building the {role} for onnxruntime-genai, {form.name}",
            lambda part: run([*builder, "-o", part, *form.options]),
        )

    threading = {"intra_op_num_threads": threads, **GENAI_WAITING[waiting]}

    def assemble(part: Path) -> None:
        link_files(built("target"), part)
        config = _read_json(built("target") / "genai_config.json")
        config["model"]["context_length"] = config["search"]["max_length"] = capacity
        config["model"]["decoder"]["session_options"].update(threading)
        if draft:
            link_files(built("draft"), part / "draft")
            drafts = _read_json(built("draft") / "genai_config.json")["model"]["decoder"]
            drafts["session_options"].update(threading)
            drafts["filename"] = "draft/model.onnx"
            config["model"]["draft"] = drafts
        write_json(part / "genai_config.json", config)

    how = f"{threads}-{waiting.replace(' ', '-')}-{'speculative' if draft else 'target'}"
    held = "+".join(dict.fromkeys(forms[role].name for role in roles))
    folder = base / f"{pair.name}-{held}-{capacity}-{how}"
    return workshop.once(folder, "putting models together for onnxruntime-genai", assemble)


def openvino_rows(
    workshop: Workshop, pair: Pair, weights: PairFormat, threads: int, capacity: int
) -> list[Row]:
    """openvino-genai; in fp32 it is kept from computing in bfloat16 where the CPU has that."""
    name = "openvino-genai"
    python = workshop.environment(name)
    models = {}
    for role, form in (("target", OPENVINO[weights.target]), ("draft", OPENVINO[weights.draft])):
        command: list[str | Path] = [python.parent / "optimum-cli", "export", "openvino"]
        command += ["--model", pair.folder / role, "--task", "text-generation-with-past"]
        models[role] = workshop.once(
            workshop.root / name / f"{pair.name}-{form.name}-{role}",
            f"converting the {role} for openvino-genai, {form.name}",
            lambda part, command=command, form=form: run([*command, *form.options, part]),  # type: ignore[misc]
        )
    rows = []
    for lengths, draft in (((0,), None), (DRAFT_LENGTHS, str(models["draft"]))):
        settings = {
            "target": str(models["target"]),
            "draft": draft,
            "threads": threads,
            "exact": _exact(weights),
        }
        process = Process(python, "openvino_worker.py", settings)
        rows += _rows(name, weights, lengths, "", process)
    return rows


def _exact(weights: PairFormat) -> dict[str, bool]:
    """Say of each role whether it is to compute in fp32 all through."""
    return {"target": weights.target == "fp32", "draft": weights.draft == "fp32"}


def llama_rows(
    workshop: Workshop, pair: Pair, weights: PairFormat, threads: int, capacity: int
) -> list[Row]:
    """llama.cpp, as the wheel xllamacpp has it built."""
    from .llama_file import write_gguf

    name = "llama.cpp"
    kinds = {"target": LLAMA[weights.target], "draft": LLAMA[weights.draft]}
    files = {
        role: str(
            workshop.once(
                workshop.root / name / f"{pair.name}-{role}-{kind}.gguf",
                f"writing the {role} for llama.cpp, {kind}",
                lambda part, role=role, kind=kind: write_gguf(pair.folder / role, part, kind),  # type: ignore[misc]
            )
        )
        for role, kind in kinds.items()
    }
    settings = {**files, "threads": threads, "capacity": capacity, "exact": _exact(weights)}
    process = Process(workshop.environment(name), "llama_worker.py", settings)
    return _rows(name, weights, (0, *DRAFT_LENGTHS), kinds["target"], process)


@dataclass(frozen=True)
class Peer:
    """Another runtime.

    Attributes:
        rows: makes its rows of a pair in a format that it has.
        formats: that it has for either model.
    """

    rows: Callable[[Workshop, Pair, PairFormat, int, int], list[Row]]
    formats: Collection[str]

    def has(self, weights: PairFormat) -> bool:
        """Say whether it has the formats of both models."""
        return weights.target in self.formats and weights.draft in self.formats


PEERS = {
    "transformers": Peer(transformers_rows, ("fp32",)),
    "onnxruntime-genai": Peer(genai_rows, GENAI),
    "openvino-genai": Peer(openvino_rows, OPENVINO),
    "llama.cpp": Peer(llama_rows, LLAMA),
}


def parse_peers(text: str) -> list[str]:
    """Return the peers that are named, separated by commas; `none` names none.

    Raises:
        UsageError: a name that is none of PEERS.
    """
    names = [] if text == "none" else [word.strip() for word in text.split(",") if word.strip()]
    for name in names:
        if name not in PEERS:
            raise UsageError(
                f"unknown peer '{name}'", hint=f"the peers are: {', '.join(PEERS)}, none"
            )
    return names


def parse_lengths(text: str) -> tuple[DraftLength, ...]:
    """Return draft lengths that are separated by commas: numbers from 1, or `auto`.

    Raises:
        UsageError: something else.
    """
    lengths: list[DraftLength] = []
    for word in text.split(","):
        word = word.strip()
        if word == "auto":
            lengths.append("auto")
        elif word.isdecimal() and 1 <= int(word) <= NUM_DRAFT_TOKENS:
            lengths.append(int(word))
        else:
            raise UsageError(
                f"--draft-lengths: '{word}' is neither auto nor from 1 to {NUM_DRAFT_TOKENS}"
            )
    return tuple(lengths)


def peer_rows(
    workshop: Workshop,
    pair: Pair,
    peers: Sequence[str],
    formats: Sequence[PairFormat],
    threads: int,
    capacity: int,
) -> list[Row]:
    """Return the rows of the peers; one that cannot be had becomes a row that says why."""
    rows = []
    for name in peers:
        peer = PEERS[name]
        for weights in filter(peer.has, formats):
            try:
                rows += peer.rows(workshop, pair, weights, threads, capacity)
            except CospecError as error:
                rows.append(Row(name, str(weights), 0, reason=error.message))
    return rows


def _read_json(path: Path) -> Any:
    return json.loads(path.read_text(encoding="utf-8"))

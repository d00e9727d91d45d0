"""The whole export: from two checkpoints to one sealed bundle."""

from __future__ import annotations

import gc
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import click
from msgspec.structs import replace

from ..models.presets import resolve_pair
from ..models.vocabulary import tokenizer_json
from ..runtime.bundle.certificate import write_certificate
from ..runtime.bundle.writer import BundleWriter
from ..runtime.text.codec import TextCodec
from .decoder_export import DecoderRequest, Exported, export_decoder
from .pair import TOKENIZER_FILE, ExportOptions, Pair, arbiter_folder, open_pair, package_versions
from .publish import provenance_of
from .tensorrt_choice import Sizes
from .tensorrt_export import EngineExport
from .text_gate import check_text, write_chat

__all__ = ["ExportOptions", "Steps", "export_bundle", "stages", "write_bundle"]

DecoderExport = Callable[[DecoderRequest, Path, Callable[[str], None]], Exported]


def export_bundle(
    options: ExportOptions,
    output: Path,
    report: Callable[[str], None] = lambda stage: None,
    engines: EngineExport | None = None,
) -> Path:
    """Export draft and target, check both graphs, and write the bundle at `output`.

    The name does not exist before every graph has passed the gate, and nothing is left after a failure.

    Args:
        options: what and how.
        output: the bundle's folder.
        report: called with the name of each stage as it begins; see `stages`.
        engines: the TensorRT part, or None for graphs only.

    Raises:
        CheckpointError: a checkpoint cannot be downloaded, is damaged, unsupported, or does not fit.
        UsageError: an option that the models cannot honour.
        ResourceError: no room, no permission, another writer, or a bundle that is there already.
        GateError: a graph does not compute what its checkpoint computes, a prompt is not the one that
            transformers makes, or TensorRT does not take a graph.
    """
    report("reading the checkpoints")
    return write_bundle(open_pair(options), output, report, engines)


def write_bundle(
    pair: Pair,
    output: Path,
    report: Callable[[str], None],
    engines: EngineExport | None = None,
    decoder: DecoderExport = export_decoder,
    facts: Mapping[str, Any] | None = None,
) -> Path:
    """Do the rest of `export_bundle`, with checkpoints that are open.

    Args:
        pair: from `open_pair`.
        output: the bundle's folder.
        report: as in `export_bundle`.
        engines: the same.
        decoder: exports a graph, or brings one that was exported before.
        facts: further sections of the certificate.
    """
    pair.ensure_fits(output)
    options, arbiter, checkpoints = pair.options, pair.arbiter, pair.checkpoints
    chosen = None
    if engines is not None:
        widest = max(pair.prefill_chunk, options.num_draft_tokens + 1)
        graph = arbiter.graph if arbiter else None
        size = pair.vocabulary.size
        sizes = Sizes(options.precision, pair.capacity, size, widest, graph)
        chosen = engines.choose(dict(checkpoints), sizes)
    lowering = chosen.lowering if chosen else options.lowering
    with BundleWriter(output, force=options.force) as writer:
        report("checking the text")
        chat, text_facts = export_text(writer.staging, pair)
        # Patterns of the package regex leave garbage with finalizers. A Ctrl-C that arrives while
        # Python collects it is lost, so it is collected before the long steps begin.
        gc.collect()
        exported: dict[str, Exported] = {}
        for role in checkpoints:
            tensorrt = chosen.request(engines.device, role) if engines and chosen else None
            request = pair.request(role, lowering, tensorrt)
            exported[role] = decoder(request, writer.path(f"{role}/model.onnx"), report)
        entries = {role: each.entry for role, each in exported.items()}
        manifest = pair.manifest(writer.destination.name, entries)
        arbiter_entry = None if arbiter is None else arbiter.add_to(writer.staging)
        manifest = replace(
            manifest,
            lowering=lowering,
            models=replace(manifest.models, arbiter=arbiter_entry),
            chat_template=chat,
            engines=engines.entry if engines else None,
        )
        certificate: dict[str, Any] = {
            "environment": package_versions(),
            "provenance": {role: provenance_of(each) for role, each in checkpoints.items()},
            "parity": {role: each.parity for role, each in exported.items()},
            "text": text_facts,
            **(facts or {}),
        }
        quantised = {role: each.quantised for role, each in exported.items() if each.quantised}
        if quantised:
            certificate["quantised"] = quantised
        if engines is not None:
            engines.check(writer.staging, manifest, report)
            certificate["engines"] = engines.checks
        if arbiter is not None:
            certificate["quality"] = arbiter.quality_on(writer.sha256_of)
        write_certificate(writer.staging, certificate)
        report("sealing the bundle")
        return writer.commit(manifest)


def stages(options: ExportOptions, *, engines: bool = False) -> int:
    """Return how often `export_bundle` will call `report`, with or without TensorRT `engines`."""
    models = 1 if resolve_pair(options.target, options.draft)[1] is None else 2
    if not engines:
        return 3 + models * 6
    return 3 + models * 7 + (arbiter_folder(options) is not None)


class Steps:
    """Progress of a job of many steps: a bar with the time left on a terminal, elsewhere lines.

    Args:
        total: steps, as far as they are known.
        lines: print a line for each part of the job where there is no terminal.
    """

    def __init__(self, total: int, *, lines: bool = False) -> None:
        from tqdm import tqdm

        self._bar = tqdm(
            total=total,
            disable=not sys.stderr.isatty(),
            bar_format="{desc:<60.60} {bar} {n}/{total} [{elapsed}, {remaining} left]",
        )
        self._part, self._lines = "", lines
        self._runs = False

    def begin(self, part: str, detail: str = "") -> None:
        """Begin a step, which ends the one before it."""
        self.end()
        self._runs = True
        self._bar.set_description_str(f"{part}: {detail}" if detail else part)
        if self._lines and self._bar.disable and part != self._part:
            click.echo(part, err=True)
        self._part = part

    def end(self) -> None:
        """End the step that runs, if one does."""
        if self._runs:
            self._bar.update()
        self._runs = False

    def expect(self, more: int) -> None:
        """Change the number of steps: some are new, or an earlier run took them."""
        if not self._bar.disable:
            self._bar.total += more
            self._bar.refresh()

    def note(self, line: str) -> None:
        """Print a line above the bar."""
        self._bar.write(line, file=sys.stderr)

    def __enter__(self) -> Steps:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        if kind is None:
            self.end()
        self._bar.close()


def export_text(folder: Path, pair: Pair) -> tuple[str | None, dict[str, Any]]:
    """Write what turns text into tokens and pass it through the gate.

    Returns:
        The chat format's file, if there is one, and the certificate's section on text.
    """
    target = pair.checkpoints["target"]
    tokenizer_file = folder / TOKENIZER_FILE
    tokenizer_file.write_text(tokenizer_json(target), encoding="utf-8")
    with_chat = pair.options.chat_template
    chat = write_chat(folder, target.tokenizer, target.name) if with_chat else None
    codec = TextCodec(tokenizer_file, None if chat is None else folder / chat)
    return chat, check_text(folder, codec, target.tokenizer, target.name)

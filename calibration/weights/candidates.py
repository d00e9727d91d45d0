"""Formats of a pair: exported, read with, answered with and timed, and what came of it.

An engine of each role is in memory at a time, and none while a graph is exported. What is finished goes
into the work folder, and is not done again.
"""

from __future__ import annotations

import gc
import shutil
from collections.abc import Callable
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch

from ...errors import BackendError, CheckpointError, GateError, ResourceError
from ...export.decoder_export import DecoderRequest, Exported, export_decoder
from ...export.pair import TOKENIZER_FILE, Pair
from ...export.pipeline import Steps, export_text, write_bundle
from ...export.weights.bit_recipes import read_checkpoint
from ...export.weights.chosen_weights import WeightChoice
from ...models.weights.streamed_model import streamed_model
from ...runtime.decoding.placement import decoder_engine
from ...runtime.decoding.session import Session
from ...runtime.engines.onnxruntime import OrtEngine
from ...runtime.sampling.params import SamplingParams
from ...runtime.text.codec import TextCodec
from ..quality.statistics import mcnemar
from ..tasks.checkers import check
from ..tasks.item import Task
from .fidelity import Reading, read
from .format_speed import PROMPTS, Turn, most_turns, take_turn, time_combinations
from .request import QUANTISING, Formats, Limits, refusal
from .texts import Text
from .work_folder import WorkFolder

STAGES = 6
"""Of the export of a graph."""


class Trial:
    """The formats of a pair, and what is measured of them.

    Args:
        pair: opened; the limit of its options is that of quantising.
        windows: tokens to read, as many in each.
        tasks: to answer; may be empty.
        limits: of the target.
        work: of the job.
        steps: the progress.
    """

    def __init__(
        self,
        pair: Pair,
        windows: list[list[int]],
        tasks: list[Task],
        limits: Limits,
        work: WorkFolder,
        steps: Steps,
    ) -> None:
        self._pair = pair
        self._windows = windows
        self._tasks = tasks
        self._limits = limits
        self._work = work
        self._steps = steps
        self._open: dict[str, tuple[str, OrtEngine]] = {}
        text = work.path / "text"
        text.mkdir(exist_ok=True)
        chat, _ = export_text(text, pair)
        self._codec = TextCodec(text / TOKENIZER_FILE, None if chat is None else text / chat)

    def measure(self, targets: Formats, drafts: Formats) -> dict[str, Any]:
        """Export, measure and time formats; return the figures, with the choice.

        Raises:
            GateError: no format of the target is within the limits, or none of the draft can be
                exported.
        """
        steps, turns = self._steps, most_turns(len(targets.tried), len(drafts.tried))
        each = STAGES + len(self._windows) + len(self._tasks)
        steps.expect(1 + each * len(targets.tried) + STAGES * len(drafts.tried) + turns + 1)
        reference = self._reference()
        found = {weights: self._target(weights, reference) for weights in targets.tried}
        self._close()
        compare_answers(found)
        for weights, figures in found.items():
            figures["refused"] = refusal(figures, self._limits)
            if figures["refused"]:
                self._work.discard(self._key("target", weights))
        good = _accepted("target", found)
        drafting = {weights: self._draft(weights) for weights in drafts.tried}
        usable = _accepted("draft", drafting) if drafting else []
        steps.expect(most_turns(len(good), len(usable)) - turns)
        ranked = time_combinations(good, usable, self._turn)
        return {
            "limits": asdict(self._limits),
            "reference": {"perplexity": reference["perplexity"]},
            "formats": found,
            "drafts": drafting,
            "skipped": {"target": targets.skipped, "draft": drafts.skipped},
            "speed": [combination.to_json() for combination in ranked],
            "chosen": {"target": ranked[0].target, "draft": ranked[0].draft},
        }

    def write(self, output: Path, facts: dict[str, Any]) -> None:
        """Write the bundle of the formats that were chosen; `facts` go into its certificate."""
        self._close()
        pair = self._in(facts["chosen"]["target"], facts["chosen"]["draft"])

        def copied(request: DecoderRequest, path: Path, _: Callable[[str], None]) -> Exported:
            exported = self._exported(request.role, request.weights)
            for file in self._graph(request.role, request.weights).parent.iterdir():
                shutil.copyfile(file, path.with_name(file.name))
            return exported

        self._steps.begin("writing the bundle")
        write_bundle(pair, output, lambda stage: None, decoder=copied, facts={"weights": facts})

    def _in(self, target: WeightChoice, draft: WeightChoice | None) -> Pair:
        """Return the pair in these formats."""
        options = replace(self._pair.options, weights=target, draft_weights=draft)
        return replace(self._pair, options=options)

    def _key(self, role: str, weights: WeightChoice) -> str:
        """Return what identifies a graph: the limit decides on the recipe of one that quantises."""
        limit = self._limits.perplexity_increase
        return f"{role}-{weights}" + (f"-{limit:g}" if weights in QUANTISING else "")

    def _graph(self, role: str, weights: WeightChoice) -> Path:
        return self._work.graph(self._key(role, weights))

    def _exported(self, role: str, weights: WeightChoice) -> Exported:
        """Return a graph that has passed the gate, exported if it was not yet.

        Raises:
            GateError, CheckpointError, ResourceError: there is none.
        """
        pair, part = self._in(weights, weights), f"exporting the {role} in {weights}"

        def export(graph: Path) -> Exported:
            self._close()
            pair.ensure_fits(self._work.path, [role])
            report = partial(self._steps.begin, part)
            return export_decoder(pair.request(role), graph, report)

        return self._work.exported(self._key(role, weights), export)

    def _reference(self) -> dict[str, Any]:
        """Return the perplexity of the checkpoint's own numbers and its most likely tokens."""
        done = self._work.journal.done
        if "reference" not in done:
            self._steps.begin("reading the text with the checkpoint")
            target = self._pair.checkpoints["target"]
            with streamed_model(target, torch.float32) as model:
                size = self._pair.vocabulary.size
                read_by = read_checkpoint(model.module, model.weights, self._windows, size)
            reading = Reading(*read_by)
            record = {"perplexity": reading.perplexity, "chosen": reading.chosen.tolist()}
            self._work.journal.write("reference", record)
        else:
            self._steps.expect(-1)
        record = done["reference"]
        assert isinstance(record, dict)
        return record

    def _draft(self, weights: WeightChoice) -> dict[str, Any]:
        """Return size and recipe of the draft in a format, or why there is no graph."""
        if f"export {self._key('draft', weights)}" in self._work.journal.done:
            self._steps.expect(-STAGES)
        try:
            return self._about("draft", weights)
        except (GateError, CheckpointError, ResourceError) as error:
            return {"error": error.message, "refused": error.message}

    def _about(self, role: str, weights: WeightChoice) -> dict[str, Any]:
        exported = self._exported(role, weights)
        files = self._graph(role, weights).parent.iterdir()
        return {
            "bytes": sum(file.stat().st_size for file in files),
            "recipe": (exported.quantised or {}).get("chosen"),
            "error": None,
            "refused": None,
        }

    def _target(self, weights: WeightChoice, reference: dict[str, Any]) -> dict[str, Any]:
        """Return what is measured of the target in a format."""
        figures = self._measured(f"target {self._key('target', weights)}", weights, reference)
        if figures["error"] is None and self._tasks:
            figures["right"] = self._right(weights)
        return figures

    def _measured(
        self, key: str, weights: WeightChoice, reference: dict[str, Any]
    ) -> dict[str, Any]:
        """Return size, perplexity and agreement of the target in a format."""
        journal = self._work.journal
        if key in journal.done:
            self._steps.expect(-STAGES - len(self._windows))
            return dict(journal.done[key])
        if f"export {self._key('target', weights)}" in journal.done:
            self._steps.expect(-STAGES)
        try:
            figures = self._about("target", weights)
            reading = self._read(weights)
        except (GateError, CheckpointError, ResourceError, BackendError) as error:
            return {"error": error.message}
        figures["perplexity"] = reading.perplexity
        figures["perplexity_increase"] = reading.perplexity / reference["perplexity"] - 1
        figures["agreement"] = reading.agreement(reference["chosen"])
        journal.write(key, figures)
        return dict(figures)

    def _read(self, weights: WeightChoice) -> Reading:
        """Read the windows as a verify pass does, so many tokens at a time."""
        texts = [Text(tuple(window)) for window in self._windows]
        width = max(2, self._pair.options.num_draft_tokens + 1)
        progress = partial(self._steps.begin, f"reading the text with the target in {weights}")
        engine = self._engine("target", weights)
        return read(engine, texts, width, self._pair.prefill_chunk, progress)

    def _right(self, weights: WeightChoice) -> list[bool]:
        """Return which tasks the target alone answers right."""
        done, session = self._work.journal.done, None
        keys = [f"answer {self._key('target', weights)} {i}" for i in range(len(self._tasks))]
        for key, task in zip(keys, self._tasks, strict=True):
            if key in done:
                self._steps.expect(-1)
                continue
            self._steps.begin(f"answering with the target in {weights}", task.id)
            session = session or self._session(weights, None)
            session.forget()  # no answer may depend on the one before it
            answer = session.generate(
                task.prompt,
                max_tokens=task.max_tokens,
                num_draft_tokens=0,
                sampling=SamplingParams(stop=task.stop),
            )
            self._work.journal.write(key, check(task, answer.text))
        return [bool(done[key]) for key in keys]

    def _turn(self, target: WeightChoice, draft: WeightChoice | None, number: int) -> Turn:
        """Time a combination in a round."""
        journal = self._work.journal
        names = [self._key("target", target), *([self._key("draft", draft)] if draft else [])]
        key = f"turn {number} {' '.join(names)}"
        if key in journal.done:
            self._steps.expect(-1)
        else:
            self._steps.begin("timing", " with a draft in ".join(filter(None, (target, draft))))
            session = self._session(target, draft)
            journal.write(key, asdict(take_turn(session, self._prompts(session))))
        return Turn(**journal.done[key])

    def _prompts(self, session: Session) -> list[tuple[int, ...]]:
        """Return the beginnings of tasks, or of the windows."""
        if self._tasks:
            return [tuple(session.encode(task.prompt)) for task in self._tasks[:PROMPTS]]
        return [Text(tuple(window)).prompt for window in self._windows[:PROMPTS]]

    def _session(self, target: WeightChoice, draft: WeightChoice | None) -> Session:
        """Return a session with engines of the formats."""
        entries = {"target": self._exported("target", target).entry}
        if draft is not None:
            entries["draft"] = self._exported("draft", draft).entry
        manifest = self._pair.manifest("trial", entries)
        drafting = None if draft is None else self._engine("draft", draft)
        return Session(manifest, self._engine("target", target), drafting, self._codec)

    def _engine(self, role: str, weights: WeightChoice) -> OrtEngine:
        """Return the engine of a role; one in another format is closed before."""
        if role not in self._open or self._open[role][0] != weights:
            self._open.pop(role, None)
            gc.collect()
            entry = self._exported(role, weights).entry
            manifest = self._pair.manifest("trial", {"target": entry})
            engine = decoder_engine(self._graph(role, weights), manifest, role, entry)
            self._open[role] = (weights, engine)
        return self._open[role][1]

    def _close(self) -> None:
        """Close the engines."""
        self._open.clear()
        gc.collect()


def compare_answers(found: dict[Any, dict[str, Any]]) -> None:
    """Add the share of right answers, and by how much it is lower than the reference's.

    The reference is the format that agrees best with the checkpoint.
    """
    measured = [figures for figures in found.values() if "right" in figures]
    if not measured:
        return
    best = max(measured, key=lambda figures: figures["agreement"])["right"]
    for figures in measured:
        right = figures.pop("right")
        figures["accuracy"] = sum(right) / len(right)
        figures["accuracy_loss"] = (sum(best) - sum(right)) / len(right)
        figures["mcnemar"] = mcnemar(right, best)


def _accepted(role: str, found: dict[WeightChoice, dict[str, Any]]) -> list[WeightChoice]:
    """Return the formats that are not refused.

    Raises:
        GateError: all are.
    """
    good = [weights for weights, figures in found.items() if not figures["refused"]]
    if not good:
        reasons = "; ".join(f"{weights}: {each['refused']}" for weights, each in found.items())
        raise GateError(
            f"no weight format of the {role} is good enough: {reasons}",
            hint="raise --max-perplexity-increase or --max-accuracy-loss, or try other --formats",
        )
    return good

"""Candidates of one source: a bundle in every format, and what is measured of them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from ...errors import BackendError, GateError, ResourceError
from ...export.memory import available_memory
from ...export.weights.chosen_weights import read_file, sample_text
from ...runtime.bundle.files import format_bytes
from ...runtime.bundle.manifest import WeightFormat, folder_bytes
from ...runtime.bundle.reader import Bundle
from ...runtime.bundle.writer import BundleWriter
from ...runtime.decoding.placement import graph_shape
from ...runtime.decoding.session import Session, load
from ...runtime.engines.onnxruntime import OrtEngine, OrtOptions
from ...runtime.text.codec import TextCodec
from ..quality.machine_facts import machine_facts
from ..quality.measurement import run_modes
from ..quality.mode_runner import QualityConfig
from ..quality.modes import Mode
from ..quality.statistics import mcnemar
from ..tasks.item import Task
from .converted_bundle import decoders, write_converted
from .fidelity import Reading, read
from .format_speed import Combination, share_of_different_outputs, time_combinations
from .formats import products_saturate
from .request import WeightsRequest, refusal
from .texts import Text, answered, cut_text


class Trial:
    """Candidates of one source, converted in a scratch folder, and what is measured of them."""

    def __init__(
        self,
        source: Bundle,
        request: WeightsRequest,
        tasks: list[Task],
        scratch: Path,
        say: Callable[[str], None],
    ) -> None:
        self._source = source
        self._request = request
        self._tasks = tasks
        self._scratch = scratch
        self._say = say
        forced = (request.target_format, request.draft_format)
        wanted = [*request.formats, *(weights for weights in forced if weights is not None)]
        self._formats = list(dict.fromkeys(wanted))
        # Without threads of its own a session takes all cores, as it will when the bundle is used.
        self._options = OrtOptions()
        self._open: dict[str, tuple[WeightFormat, OrtEngine]] = {}
        self._has_draft = source.manifest.models.draft is not None

    def bundle(self, weights: WeightFormat) -> Path:
        """Return the bundle with all models in a format."""
        return self._source.root if weights == "fp32" else self._scratch / weights

    def graph(self, role: str, weights: WeightFormat) -> Path:
        """Return the graph of a role in a format."""
        return self.bundle(weights) / decoders(self._source.manifest)[role].graph

    def measure(self) -> dict[str, Any]:
        """Convert all formats and return the figures, with the choice."""
        given = self._given_texts()  # refused now if they cannot be used, not after the conversions
        for weights in self._formats:
            if weights != "fp32":
                self._say(f"converting to {weights}")
                with BundleWriter(self.bundle(weights)) as writer:
                    write_converted(self._source, writer, weights, weights)
        self._ensure_memory()
        texts = given or self._answers()
        figures = self._fidelity(texts)
        self._accuracy(figures)
        self._judge(figures)
        self._say("comparing outputs with and without drafts")
        for weights, found in figures.items():
            if found["error"] is not None:
                continue
            found["strict_differs"] = share_of_different_outputs(
                self._session(weights, weights if self._has_draft else None),
                texts[: self._request.strict_prompts],
            )
        ranked = self._speed(texts, figures)
        return {
            "limits": asdict(self._request.limits),
            "data": {
                "texts": self._text_name(),
                "tasks": self._request.tasks,
                "items": len(self._tasks),
                "scored_tokens": sum(len(text.tokens) - text.scored_from for text in texts),
            },
            "formats": figures,
            "speed": [combination.to_json() for combination in ranked],
            "chosen": {"target": ranked[0].target, "draft": ranked[0].draft},
            "environment": self._environment(),
        }

    def _given_texts(self) -> list[Text]:
        """Return the texts of the file, or CoSpec's own where there are no tasks either."""
        path, manifest = self._request.texts, self._source.manifest
        if path is None and self._tasks:
            return []
        codec = TextCodec(self._source.path(manifest.tokenizer), None)
        content = sample_text() if path is None else read_file(path)
        name = "the default text" if path is None else str(path)
        return cut_text(content, name, codec, manifest, self._request.text_tokens)

    def _text_name(self) -> str | None:
        """Return the name of the texts; None for the source's own answers."""
        if self._request.texts is not None:
            return self._request.texts.name
        return None if self._tasks else "default"

    def _answers(self) -> list[Text]:
        self._say("answering tasks with the source, as text to measure on")
        session = load(self._source.root, options=self._options, verify=False)
        return answered(session, self._tasks, self._request.text_tokens)

    def _fidelity(self, texts: Sequence[Text]) -> dict[WeightFormat, dict[str, Any]]:
        """Return size, perplexity and agreement with the source of the target in each format."""
        chosen = self._source.manifest.generation
        width = max(2, chosen.num_draft_tokens + 1)
        readings: dict[WeightFormat, Reading | BackendError] = {}
        for weights in dict.fromkeys(["fp32", *self._formats]):
            self._say(f"reading texts with {weights}")
            try:
                readings[weights] = read(
                    self._engine("target", weights), texts, width, chosen.prefill_chunk
                )
            except BackendError as error:  # a format may overflow where the source does not
                readings[weights] = error
        reference = readings["fp32"]
        if isinstance(reference, BackendError):
            raise reference
        figures: dict[WeightFormat, dict[str, Any]] = {}
        for weights in self._formats:
            reading = readings[weights]
            found: dict[str, Any] = {"bytes": self._bytes(weights), "error": None}
            figures[weights] = found
            if isinstance(reading, BackendError):
                found["error"] = reading.message
                continue
            found["perplexity"] = reading.perplexity
            found["perplexity_increase"] = reading.perplexity / reference.perplexity - 1
            found["agreement"] = reading.agreement(reference)
        return figures

    def _accuracy(self, figures: dict[WeightFormat, dict[str, Any]]) -> None:
        """Add the share of right answers of the target alone, and by how much it is lower."""
        if not self._tasks:
            return
        right: dict[WeightFormat, list[bool]] = {}
        for weights in dict.fromkeys(["fp32", *figures]):
            if weights in figures and figures[weights]["error"] is not None:
                continue
            self._say(f"answering {len(self._tasks)} tasks with {weights}")
            config = QualityConfig(self.bundle(weights))
            answers = run_modes(config, self._tasks, [Mode("target", "target")])["target"]
            right[weights] = [answer.correct for answer in answers]
        for weights in figures.keys() & right.keys():
            share = sum(right[weights]) / len(self._tasks)
            figures[weights] |= {
                "accuracy": share,
                "accuracy_loss": sum(right["fp32"]) / len(self._tasks) - share,
                "mcnemar": mcnemar(right[weights], right["fp32"]),
            }

    def _judge(self, figures: dict[WeightFormat, dict[str, Any]]) -> None:
        """Say of each format whether it keeps within the limits.

        Raises:
            GateError: none does, or not the one that was asked for.
        """
        for found in figures.values():
            found["refused"] = refusal(found, self._request.limits)
        wanted = self._request.target_format
        judged = figures if wanted is None else {wanted: figures[wanted]}
        if all(found["refused"] for found in judged.values()):
            reasons = "; ".join(
                f"{weights}: {found['refused']}" for weights, found in judged.items()
            )
            raise GateError(
                f"no weight format of the target keeps within the limits: {reasons}",
                hint="raise --max-perplexity-increase or --max-accuracy-loss, or keep fp32",
            )

    def _speed(
        self, texts: Sequence[Text], figures: dict[WeightFormat, dict[str, Any]]
    ) -> list[Combination]:
        """Time the combinations that are left; return them, the fastest first."""
        request = self._request
        targets = [w for w in figures if not figures[w]["refused"]]
        if request.target_format is not None:
            targets = [request.target_format]
        drafts: list[WeightFormat] = []
        if self._has_draft:
            usable = [w for w in figures if figures[w]["error"] is None]
            drafts = usable if request.draft_format is None else [request.draft_format]
        self._say(f"timing {len(targets)} formats of the target, {len(drafts)} of the draft")
        return time_combinations(targets, drafts, self._session, texts)

    def _session(self, target: WeightFormat, draft: WeightFormat | None) -> Session:
        """Return a session with engines of the formats."""
        manifest = self._source.manifest
        codec = TextCodec(self._source.path(manifest.tokenizer), None)
        engine = None if draft is None else self._engine("draft", draft)
        return Session(manifest, self._engine("target", target), engine, codec)

    def _engine(self, role: str, weights: WeightFormat) -> OrtEngine:
        """Return the engine of a role; one in another format is closed before."""
        if role not in self._open or self._open[role][0] != weights:
            self._open.pop(role, None)
            shape = graph_shape(self._source.manifest, decoders(self._source.manifest)[role])
            engine = OrtEngine(self.graph(role, weights), shape, self._options)
            self._open[role] = (weights, engine)
        return self._open[role][1]

    def _bytes(self, weights: WeightFormat) -> dict[str, int]:
        """Return the size of each role's files in a format."""
        return {
            role: sum(file.stat().st_size for file in self.graph(role, weights).parent.iterdir())
            for role in decoders(self._source.manifest)
        }

    def _ensure_memory(self) -> None:
        """Refuse a format that does not fit: the engines of one target and one draft are in memory.

        Raises:
            ResourceError: says how many bytes they take.
        """
        entries = decoders(self._source.manifest).items()
        needed = 0
        for role, entry in entries:
            exported = folder_bytes(self._source.manifest, entry.graph)
            # ONNX Runtime keeps fp32 copies of halved weights, and packs others beside the mapped file.
            needed += max(
                exported if weights in ("fp32", "fp16") else 2 * self._bytes(weights)[role]
                for weights in ("fp32", *self._formats)
            )
        free = available_memory()
        if needed > free:
            raise ResourceError(
                f"the engines of the largest formats take {format_bytes(needed)} of memory; "
                f"{format_bytes(free)} are available",
                hint="quantise at export instead: cospec-export --weights auto",
            )

    def _environment(self) -> dict[str, Any]:
        return {
            "products_saturate": products_saturate(),
            **machine_facts(),
        }

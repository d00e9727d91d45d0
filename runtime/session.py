"""A loaded bundle that generates: the object that applications embed."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import cached_property
from pathlib import Path
from typing import Literal

from .arbitration.protocol import Arbiter
from .arbitration.referee import Referee
from .bundle import Bundle, find_bundle
from .completion import Completion, Piece, Stream
from .drafting.model import ModelDrafter
from .drafting.ngram import NgramDrafter
from .drafting.protocol import Drafter, NoDrafter, no_evidence
from .engines.onnxruntime import OrtOptions
from .engines.protocol import Engine
from .errors import PromptError, UsageError
from .guard import Guard
from .loop import Limits, decode
from .manifest import Manifest
from .placement import Backend, place
from .text import Message, TextCodec

DrafterName = Literal["auto", "model", "ngram", "none"]
Mode = Literal["strict", "collab"]
Prompt = str | Sequence[Message]
DraftLength = int | Literal["auto"] | None
"""Tokens to draft a round: a number, 0 for plain decoding; `auto` for as many as pay for themselves, up
to the bundle's default (see `guard.py`); None for that default."""


class Session:
    """Draft, target and text of one bundle, ready to generate. One generation runs at a time.

    Usually made by `cospec.load`.

    Args:
        manifest: the bundle's manifest.
        target: engine of the target.
        draft: engine of the draft, or None for a bundle without one.
        codec: tokenizer and chat template.
        arbiter: the bundle's arbiter, or None for a bundle without one.
        drafter: `auto` takes the draft model where there is one and n-gram lookup otherwise.

    Raises:
        UsageError: `drafter="model"` on a bundle without a draft.
    """

    def __init__(
        self,
        manifest: Manifest,
        target: Engine,
        draft: Engine | None,
        codec: TextCodec,
        arbiter: Arbiter | None = None,
        drafter: DrafterName = "auto",
    ) -> None:
        self.manifest = manifest
        self.arbiter = arbiter
        self.codec = codec
        self.drafter: DrafterName = _drafter_name(drafter, draft is not None)
        self._running: Stream | None = None
        self._target = target.decoder()
        self._draft = draft.decoder() if draft is not None and self.drafter == "model" else None

    def generate(
        self,
        prompt: Prompt,
        *,
        max_tokens: int | None = None,
        num_draft_tokens: DraftLength = None,
        mode: Mode = "strict",
        threshold: float | None = None,
        arbiter: Arbiter | None = None,
    ) -> Completion:
        """Generate to the end and return the whole output.

        Args:
            prompt: plain text, continued as it is; or chat messages, rendered with the template.
            max_tokens: tokens to generate at most; the bundle's default if None.
            num_draft_tokens: tokens to draft a round; see DraftLength. `auto` goes with `strict` only:
                it depends on measured times, and the output of `collab` depends on the length.
            mode: `strict` yields exactly the target's greedy output; in `collab` the arbiter may keep
                the draft's token where the models disagree.
            threshold: for `collab`: the score above which a draft token stays. 1 is exactly strict, 0
                keeps every draft token that the caps allow; the bundle's own if None.
            arbiter: for `collab`: decides instead of the bundle's own.

        Raises:
            PromptError: the prompt is empty or does not fit the capacity.
            UsageError: an argument is out of range, or messages without a chat template.
            BackendError: the backend failed.
        """
        return self.stream(
            prompt,
            max_tokens=max_tokens,
            num_draft_tokens=num_draft_tokens,
            mode=mode,
            threshold=threshold,
            arbiter=arbiter,
        ).completion()

    def stream(
        self,
        prompt: Prompt,
        *,
        max_tokens: int | None = None,
        num_draft_tokens: DraftLength = None,
        mode: Mode = "strict",
        threshold: float | None = None,
        arbiter: Arbiter | None = None,
    ) -> Stream:
        """Generate piece by piece; arguments and errors as in `generate`."""
        referee = self._referee(mode, threshold, arbiter)
        return self.continue_tokens(
            self.encode(prompt),
            referee,
            max_tokens=max_tokens,
            num_draft_tokens=num_draft_tokens,
        )

    def continue_tokens(
        self,
        tokens: Sequence[int],
        referee: Referee | None = None,
        *,
        max_tokens: int | None = None,
        num_draft_tokens: DraftLength = None,
    ) -> Stream:
        """Generate behind `tokens`, with a referee of the caller's: for those who measure and train."""
        guard = None
        if num_draft_tokens == "auto":
            if referee is not None:
                raise UsageError(
                    "the draft length 'auto' goes with the mode 'strict' only: in 'collab' the output "
                    "depends on the length, and so would depend on the load of the machine",
                    hint="give a number, or leave it to the bundle",
                )
            num_draft_tokens, guard = None, self._guard
        limits = self._limits(max_tokens, num_draft_tokens)
        tokens = list(tokens)
        stream = Stream(tokens)
        stream._pieces = self._pieces(tokens, limits, stream, referee, guard)
        return stream

    def _referee(
        self, mode: Mode, threshold: float | None, arbiter: Arbiter | None
    ) -> Referee | None:
        """Return who decides at mismatches; None in strict mode."""
        if mode == "strict":
            if threshold is not None or arbiter is not None:
                raise UsageError(
                    "a threshold or an arbiter means something in the mode 'collab' only"
                )
            return None
        if mode != "collab":
            raise UsageError(f"unknown mode '{mode}'", hint="the modes are: strict, collab")
        if self.drafter != "model":
            raise no_evidence()
        arbiter = arbiter or self.arbiter
        if arbiter is None:
            raise UsageError(
                "this bundle has no arbiter, so it cannot run in the mode 'collab'",
                hint="train one with cospec-calibrate arbiter, or use the mode 'strict'",
            )
        if threshold is None:
            entry = self.manifest.models.arbiter
            threshold = 0.5 if entry is None else entry.threshold
        if not 0 <= threshold <= 1:
            raise UsageError(f"threshold is {threshold}, but must be from 0 to 1")
        return Referee(arbiter, threshold, self.protected_tokens)

    @cached_property
    def protected_tokens(self) -> frozenset[int]:
        """Tokens that only the target may choose: ends of text and special tokens."""
        eos = self.manifest.generation.eos_token_ids
        return frozenset({*eos, *self.codec.special_token_ids})

    @cached_property
    def _guard(self) -> Guard:
        """What chooses the draft length `auto`; it keeps what it has measured for the next time."""
        return Guard(longest=max(1, self.manifest.generation.num_draft_tokens))

    def _limits(self, max_tokens: int | None, num_draft_tokens: int | None) -> Limits:
        """Fill what was not given from the bundle's defaults."""
        defaults = self.manifest.generation
        return Limits(
            max_tokens=_at_least("max_tokens", max_tokens, defaults.max_tokens, 1),
            eos_token_ids=frozenset(defaults.eos_token_ids),
            num_draft_tokens=_at_least(
                "num_draft_tokens", num_draft_tokens, defaults.num_draft_tokens, 0
            ),
            prefill_chunk=defaults.prefill_chunk,
        )

    def _pieces(
        self,
        tokens: list[int],
        limits: Limits,
        stream: Stream,
        referee: Referee | None,
        guard: Guard | None,
    ) -> Iterator[Piece]:
        self._running = stream
        self._target.truncate(0)
        self._target.select(() if referee is None else referee.arbiter.target_outputs)
        drafter = self._new_drafter(limits, referee)
        if referee is not None:
            stream.stats.num_capped = referee.num_capped
        text = self.codec.stream(stream.prompt_tokens)
        for round_ in decode(self._target, drafter, tokens, limits, referee, guard):
            stream.stats.add(round_)
            stream.finish_reason = round_.finish
            piece = text.push(round_.tokens)
            if round_.finish is not None:
                piece += text.finish()
            yield Piece(piece, round_.tokens, round_.provenance)
            if self._running is not stream and round_.finish is None:
                raise UsageError(
                    "another generation began on this session before this one ended",
                    hint="finish or drop a stream before the next, or load a second session",
                )

    def _new_drafter(self, limits: Limits, referee: Referee | None = None) -> Drafter:
        if limits.num_draft_tokens == 0 or self.drafter == "none":
            return NoDrafter()
        if self._draft is None:
            return NgramDrafter()
        self._draft.truncate(0)
        self._draft.select(() if referee is None else referee.arbiter.draft_outputs)
        return ModelDrafter(self._draft, limits.prefill_chunk, collect=referee is not None)

    def encode(self, prompt: Prompt) -> list[int]:
        """Return the tokens of a prompt.

        Raises:
            PromptError: it is empty or does not fit the capacity.
            UsageError: messages, and the bundle has no chat template.
        """
        if isinstance(prompt, str):
            tokens = self.codec.encode(prompt)
        else:
            tokens = self.codec.encode_chat(prompt)
        if not tokens or not prompt:
            raise PromptError("the prompt is empty", hint="pass at least one character of text")
        capacity = self.manifest.capacity
        if len(tokens) > capacity:
            raise PromptError(
                f"the prompt has {len(tokens)} tokens, this bundle holds {capacity}",
                hint="shorten the prompt, or export again with a larger --capacity",
            )
        return tokens


def load(
    path: str | Path,
    *,
    drafter: DrafterName = "auto",
    backend: Backend = "auto",
    options: OrtOptions | None = None,
    verify: bool = True,
) -> Session:
    """Open the bundle at `path` (or the one bundle below it) and load its engines.

    Args:
        path: a bundle's folder, or a folder that holds exactly one bundle.
        drafter: `auto`, `model`, `ngram` or `none`.
        backend: what the models run on; see `runtime.placement`. The first time a bundle runs on
            TensorRT its engines are built, which takes minutes, and kept in its folder.
        options: how ONNX Runtime executes.
        verify: hash every file first; skip only for a bundle that was verified where it lies.

    Raises:
        BundleError: no bundle, several, or a damaged one.
        BackendError: the backend is missing, or cannot load the graphs or build its engines.
        ResourceError: not enough memory, or no room for engines.
        UsageError: see `Session`; or the bundle's graphs are not for this backend.
    """
    bundle = Bundle.open(find_bundle(path), verify=verify)
    manifest = bundle.manifest
    name = _drafter_name(drafter, manifest.models.draft is not None)
    placed = place(bundle, backend, options, drafts=name == "model")
    template = manifest.chat_template
    codec = TextCodec(
        bundle.path(manifest.tokenizer), None if template is None else bundle.path(template)
    )
    return Session(manifest, placed.target, placed.draft, codec, placed.arbiter, name)


def _drafter_name(wanted: DrafterName, has_draft: bool) -> DrafterName:
    if wanted == "auto":
        return "model" if has_draft else "ngram"
    if wanted == "model" and not has_draft:
        raise UsageError(
            "this bundle has no draft model",
            hint="use the n-gram drafter, or export again with --draft",
        )
    if wanted not in ("model", "ngram", "none"):
        raise UsageError(
            f"unknown drafter '{wanted}'", hint="the drafters are: auto, model, ngram, none"
        )
    return wanted


def _at_least(name: str, value: int | None, default: int, low: int) -> int:
    if value is None:
        return default
    if value < low:
        raise UsageError(f"{name} is {value}, but must be at least {low}")
    return value

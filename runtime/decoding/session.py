"""A loaded bundle that generates: the object that applications embed."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import cached_property
from pathlib import Path
from threading import Lock
from typing import Literal, get_args

from ...errors import PromptError, PromptTooLongError, UsageError
from ..arbitration.protocol import Arbiter
from ..arbitration.referee import Referee
from ..bundle.manifest import Manifest
from ..bundle.reader import Bundle, find_bundle
from ..drafting.combined import CombinedDrafter
from ..drafting.costs import measure_costs
from ..drafting.draft_length import DraftLengthController
from ..drafting.draft_model import ModelDrafter
from ..drafting.ngram import NgramDrafter
from ..drafting.protocol import Drafter, NoDrafter, no_evidence
from ..engines.onnxruntime import OrtOptions
from ..engines.protocol import Engine
from ..sampling.params import SamplingParams
from ..sampling.sampler import Sampler
from ..text.codec import TextCodec
from ..text.messages import Message
from .caches import Caches
from .completion import Completion, Piece, Stream
from .generation import Plan, Scribe, rounds
from .loop import Limits, Observer
from .placement import Backend, place
from .stopping import Interrupt

DrafterName = Literal["auto", "model", "ngram", "combined", "none"]
Mode = Literal["strict", "collab"]
Overflow = Literal["stop", "slide"]
Prompt = str | Sequence[Message]
DraftLength = int | Literal["auto"] | None
"""Tokens to draft a round: a number, 0 for plain decoding; `auto` for as many as pay for themselves
(see `draft_length.py`); None for the bundle's default."""

WITH_MODEL = ("model", "combined")
"""Drafters that use the draft model."""

LONGEST_DRAFT = 8
"""Tokens to draft a round at most under `auto`."""


class Session:
    """Draft, target and text of one bundle, ready to generate. One generation runs at a time.

    Usually made by `cospec.load`. Threads may share a session: rounds never overlap, and a generation
    that another one overtakes ends with an error. For generations side by side, use `new_session`.

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
        self._engines = (target, draft)
        self._running: Stream | None = None
        self._lock = Lock()
        drafts = draft is not None and self.drafter in WITH_MODEL
        self.caches = Caches(
            target.decoder(),
            draft.decoder() if draft is not None and drafts else None,
            manifest.seal,
        )

    def new_session(self) -> Session:
        """Return another session on the same engines, with empty caches of its own."""
        target, draft = self._engines
        return Session(self.manifest, target, draft, self.codec, self.arbiter, self.drafter)

    def generate(
        self,
        prompt: Prompt,
        *,
        max_tokens: int | None = None,
        num_draft_tokens: DraftLength = None,
        sampling: SamplingParams | None = None,
        mode: Mode = "strict",
        threshold: float | None = None,
        arbiter: Arbiter | None = None,
        drafter: Drafter | None = None,
        timeout: float | None = None,
        overflow: Overflow = "stop",
        observer: Observer | None = None,
    ) -> Completion:
        """Generate to the end and return the whole output.

        Args:
            prompt: plain text, continued as it is; or chat messages, rendered with the template. As far
                as it begins like the text before, it is not read again.
            max_tokens: tokens to generate at most; the bundle's default if None.
            num_draft_tokens: tokens to draft a round; see DraftLength. `auto` goes with `strict` only:
                it depends on measured times, and the output of `collab` depends on the length.
            sampling: how tokens are chosen, and stop texts; the most likely tokens if None.
            mode: `strict` yields what the target alone would: its greedy output, or draws from its very
                distribution. In `collab` the arbiter may keep the draft's token where the models
                disagree; under sampling too, where the output no longer follows the target's
                distribution.
            threshold: for `collab`: the score above which a draft token stays. 1 is exactly strict, 0
                keeps every draft token that the caps allow; the bundle's own if None.
            arbiter: for `collab`: decides instead of the bundle's own.
            drafter: proposes instead of the session's own; a new one for each generation.
            timeout: seconds after which the generation ends, with what it has, before its next pass.
            overflow: what happens when the cache is full: `stop`, or `slide`, which forgets the older
                half of the text but for its first tokens, reads the rest anew and goes on.
            observer: sees each round, such as a trace.

        Raises:
            PromptError: the prompt is empty or does not fit the capacity.
            UsageError: an argument is out of range, or messages without a chat template.
            BackendError: the backend failed.
        """
        return self.stream(
            prompt,
            max_tokens=max_tokens,
            num_draft_tokens=num_draft_tokens,
            sampling=sampling,
            mode=mode,
            threshold=threshold,
            arbiter=arbiter,
            drafter=drafter,
            timeout=timeout,
            overflow=overflow,
            observer=observer,
        ).completion()

    def stream(
        self,
        prompt: Prompt,
        *,
        max_tokens: int | None = None,
        num_draft_tokens: DraftLength = None,
        sampling: SamplingParams | None = None,
        mode: Mode = "strict",
        threshold: float | None = None,
        arbiter: Arbiter | None = None,
        drafter: Drafter | None = None,
        timeout: float | None = None,
        overflow: Overflow = "stop",
        observer: Observer | None = None,
    ) -> Stream:
        """Generate piece by piece; arguments and errors as in `generate`."""
        referee = self._referee(mode, threshold, arbiter)
        tokens = self.encode(prompt)
        plan = self._plan(
            tokens,
            max_tokens,
            num_draft_tokens,
            sampling,
            referee,
            timeout,
            overflow,
            observer,
            drafter,
        )
        return self._stream(tokens, plan)

    def continue_tokens(
        self,
        tokens: Sequence[int],
        referee: Referee | None = None,
        *,
        max_tokens: int | None = None,
        num_draft_tokens: DraftLength = None,
        sampling: SamplingParams | None = None,
    ) -> Stream:
        """Generate behind `tokens`, with a referee of the caller's: for those who measure and train.

        All tokens are read anew, so that neither times nor rounding depend on what was read before.
        """
        tokens = list(tokens)
        plan = self._plan(tokens, max_tokens, num_draft_tokens, sampling, referee)
        return self._stream(tokens, plan, anew=True)

    def forget(self) -> None:
        """Empty the caches: the next prompt is read from its first token."""
        with self._lock:
            self._running = None
            self.caches.clear()

    def save(self, path: str | Path) -> None:
        """Keep the caches in a file, so that another process need not read the text again.

        Raises:
            UsageError: the backend cannot do that.
        """
        with self._lock:
            self.caches.save(Path(path))

    def restore(self, path: str | Path) -> None:
        """Go on where `save` was called, in this process or another, with the same bundle.

        Raises:
            BundleError: the file is damaged, or belongs to another bundle.
            UsageError: the backend cannot do that.
        """
        with self._lock:
            self._running = None
            self.caches.restore(Path(path))

    def _plan(
        self,
        tokens: list[int],
        max_tokens: int | None,
        num_draft_tokens: DraftLength,
        params: SamplingParams | None,
        referee: Referee | None,
        timeout: float | None = None,
        overflow: Overflow = "stop",
        observer: Observer | None = None,
        drafter: Drafter | None = None,
    ) -> Plan:
        """Resolve everything that a generation depends on."""
        controller = None
        if num_draft_tokens == "auto":
            if referee is not None:
                raise UsageError(
                    "the draft length 'auto' goes with the mode 'strict' only: in 'collab' the output "
                    "depends on the length, and so would depend on the load of the machine",
                    hint="give a number, or leave it to the bundle",
                )
            num_draft_tokens, controller = LONGEST_DRAFT, self.draft_length_controller
        if overflow not in ("stop", "slide"):
            raise UsageError(f"overflow is '{overflow}'", hint="it is one of: stop, slide")
        params = params or SamplingParams()
        limits = self._limits(max_tokens, num_draft_tokens)
        sampler = None
        if not params.is_plain:
            size = self.manifest.vocab_size
            sampler = Sampler(params, tokens, size, limits.eos_token_ids)
        interrupt = Interrupt(timeout)
        return Plan(
            limits,
            params,
            interrupt,
            overflow == "slide",
            referee,
            controller,
            sampler,
            observer,
            drafter,
        )

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
        if self.drafter not in WITH_MODEL:
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
    def draft_length_controller(self) -> DraftLengthController:
        """What chooses the draft length `auto`; it keeps what it has learned for the next time.

        The first time, it measures passes of each width on empty caches: some dozens of them.
        """
        with self._lock:
            self.caches.clear()
            target, draft = self.caches.target, self.caches.draft
            target.select(())
            if draft is not None:
                draft.select(())
            return DraftLengthController(measure_costs(target, draft, LONGEST_DRAFT))

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

    def _stream(self, tokens: list[int], plan: Plan, *, anew: bool = False) -> Stream:
        stream = Stream(tokens, plan.interrupt, None if plan.sampler is None else plan.sampler.seed)
        stream._pieces = self._pieces(tokens, plan, stream, anew)
        return stream

    def _pieces(self, tokens: list[int], plan: Plan, stream: Stream, anew: bool) -> Iterator[Piece]:
        with self._lock:
            self._running = stream
            if anew:
                self.caches.clear()
            stream.stats.num_cached_tokens = self.caches.begin(tokens)
            going = rounds(plan, self.caches, self._drafter(plan), tokens)
        scribe = Scribe(self.codec.stream(stream.prompt_tokens), plan.params)
        if plan.referee is not None:
            stream.stats.num_capped = plan.referee.num_capped
        while stream.finish_reason is None:
            with self._lock:
                if self._running is not stream:
                    raise UsageError(
                        "another generation began on this session before this one ended",
                        hint="finish or drop a stream before the next, or use new_session",
                    )
                with self.caches.consistent():
                    round_ = next(going)
                text, whole = scribe.write(round_)
                if len(whole.tokens) < len(round_.tokens):
                    self.caches.cut(
                        len(self.caches.tokens) - len(round_.tokens) + len(whole.tokens)
                    )
                if whole.tokens:
                    stream.stats.add(whole)
                stream.finish_reason = whole.finish
            yield Piece(text, whole.tokens, whole.provenance, whole.logprobs)

    def _drafter(self, plan: Plan) -> Drafter:
        """Choose what both decoders return, and who drafts."""
        referee, sampler, observer = plan.referee, plan.sampler, plan.observer
        shared: tuple[str, ...] = () if sampler is None else sampler.outputs
        if observer is not None:
            shared += observer.outputs
        judged = (
            ((), ())
            if referee is None
            else (referee.arbiter.target_outputs, referee.arbiter.draft_outputs)
        )
        self.caches.target.select(shared + judged[0])
        if plan.drafter is not None and plan.limits.num_draft_tokens > 0:
            return plan.drafter
        if plan.limits.num_draft_tokens == 0 or self.drafter == "none":
            return NoDrafter()
        draft = self.caches.draft
        if draft is None:
            return NgramDrafter()
        watched = () if plan.controller is None else ("top_values",)
        draft.select(shared + judged[1] + watched)
        collect = referee is not None or observer is not None
        model = ModelDrafter(
            draft,
            plan.limits.prefill_chunk,
            collect=collect,
            sampler=sampler,
            watch=None if plan.controller is None else plan.controller.drafted,
        )
        if self.drafter == "combined" and not collect:  # an arbiter must see what the draft saw
            return CombinedDrafter(NgramDrafter(), model)
        return model

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
            raise PromptTooLongError(
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
        drafter: `auto`, `model`, `ngram`, `combined` (lookup where the text repeats itself, the model
            elsewhere) or `none`.
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
    placed = place(bundle, backend, options, drafts=name in WITH_MODEL)
    template = manifest.chat_template
    codec = TextCodec(
        bundle.path(manifest.tokenizer), None if template is None else bundle.path(template)
    )
    return Session(manifest, placed.target, placed.draft, codec, placed.arbiter, name)


def _drafter_name(wanted: DrafterName, has_draft: bool) -> DrafterName:
    if wanted == "auto":
        return "model" if has_draft else "ngram"
    if wanted in WITH_MODEL and not has_draft:
        raise UsageError(
            "this bundle has no draft model",
            hint="use the n-gram drafter, or export again with --draft",
        )
    if wanted not in get_args(DrafterName):
        names = ", ".join(get_args(DrafterName))
        raise UsageError(f"unknown drafter '{wanted}'", hint=f"the drafters are: {names}")
    return wanted


def _at_least(name: str, value: int | None, default: int, low: int) -> int:
    if value is None:
        return default
    if value < low:
        raise UsageError(f"{name} is {value}, but must be at least {low}")
    return value

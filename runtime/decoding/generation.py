"""One generation: what is decided before it begins, its rounds, and their text."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

from ...errors import UsageError
from ..arbitration.protocol import Arbiter
from ..arbitration.referee import Referee
from ..bundle.manifest import Manifest
from ..drafting.draft_length import LONGEST_AUTO_DRAFT, DraftLengthController
from ..drafting.protocol import Drafter, DraftingContext, no_evidence
from ..drafting.registry import NamedDrafter, NoDrafter
from ..engines.protocol import PassInterruptedError
from ..sampling.declaration import OptionError
from ..sampling.grammar import GrammarCompiler, GrammarState
from ..sampling.sampler import Sampler
from ..text.codec import TextCodec
from ..text.detokenizer import TextStream
from .caches import Caches
from .loop import Limits, Round, decode
from .options import GenerationOptions
from .stopping import Interrupt, StopTexts

SINKS = 4
"""First tokens that stay when a full cache slides: models lean on them (Xiao et al., 2023)."""


@dataclass(frozen=True)
class Plan:
    """A generation that can begin: the prompt as tokens, and options that were checked.

    A plan serves one generation, of the session that made it or of another on the same engines. Its
    timeout counts from when it was made.

    Attributes:
        tokens: the prompt.
        options: as the caller gave them, with the session's defaults.
        limits: when to stop.
        interrupt: ends the generation early.
        referee: decides at mismatches; None in strict mode.
        sampler: chooses tokens; None for the most likely ones.
        grammar: follows the output, to report whether it is complete; None without a grammar.
        reuses_cache: whether tokens of earlier generations are kept in the cache.
    """

    tokens: tuple[int, ...]
    options: GenerationOptions
    limits: Limits
    interrupt: Interrupt
    referee: Referee | None = None
    sampler: Sampler | None = None
    grammar: GrammarState | None = None
    reuses_cache: bool = True


def plan_generation(
    tokens: Sequence[int],
    options: GenerationOptions,
    manifest: Manifest,
    referee: Referee | None,
    grammars: GrammarCompiler,
    *,
    reuses_cache: bool = True,
) -> Plan:
    """Return the plan of a generation after `tokens`, with the bundle's defaults filled in.

    Raises:
        UsageError: the options do not go together, or name a token that the vocabulary lacks.
    """
    length, defaults = options.num_draft_tokens, manifest.generation
    if length == "auto":
        if referee is not None:
            raise UsageError(
                "the draft length 'auto' goes with the mode 'strict' only: in 'collab' the output "
                "depends on the length, and so would depend on the load of the machine",
                hint="give a number, or leave it to the bundle",
            )
        length = LONGEST_AUTO_DRAFT
    ends = frozenset(defaults.eos_token_ids)
    unknown = [token for token in options.stop_token_ids if token >= manifest.vocab_size]
    if unknown:
        raise OptionError(
            "stop_token_ids",
            f"stop_token_ids has {unknown[0]}, but ids run from 0 to {manifest.vocab_size - 1}",
        )
    limits = Limits(
        max_tokens=defaults.max_tokens if options.max_tokens is None else options.max_tokens,
        eos_token_ids=ends | set(options.stop_token_ids),
        num_draft_tokens=defaults.num_draft_tokens if length is None else length,
        prefill_chunk=defaults.prefill_chunk,
        vocab_size=manifest.vocab_size,
        stop_token_ids=frozenset(options.stop_token_ids) - ends,
    )
    spec = options.grammar_spec
    grammar = None if spec is None else grammars.compile(spec)
    sampler = None
    if grammar is not None or not options.is_plain:
        sampler = Sampler(options, tokens, limits.vocab_size, limits.eos_token_ids, grammar)
    return Plan(
        tuple(tokens),
        options,
        limits,
        Interrupt(options.timeout),
        referee,
        sampler,
        None if grammar is None else grammar.copy(),
        reuses_cache,
    )


def choose_referee(
    options: GenerationOptions,
    arbiter: Arbiter | None,
    manifest: Manifest,
    protected: frozenset[int],
    *,
    has_evidence: bool,
) -> Referee | None:
    """Return what decides at mismatches; None in strict mode.

    Args:
        options: mode and threshold.
        arbiter: of the caller or of the bundle, if there is one.
        manifest: has the bundle's threshold.
        protected: tokens that only the target may choose.
        has_evidence: whether the drafter shows what its model saw.

    Raises:
        UsageError: an arbiter or a threshold in strict mode; or collab without an arbiter or without
            anything that it could judge.
    """
    if options.mode == "strict":
        if options.threshold is not None or options.arbiter is not None:
            raise UsageError("a threshold or an arbiter works in the mode 'collab' only")
        return None
    if not has_evidence:
        raise no_evidence()
    if arbiter is None:
        raise UsageError(
            "this bundle has no arbiter, so it cannot run in the mode 'collab'",
            hint="train one with cospec-calibrate arbiter, or use the mode 'strict'",
        )
    threshold, entry = options.threshold, manifest.models.arbiter
    if threshold is None:
        threshold = 0.5 if entry is None else entry.threshold
    return Referee(arbiter, threshold, protected | set(options.stop_token_ids))


def make_drafter(
    named: NamedDrafter,
    plan: Plan,
    caches: Caches,
    codec: TextCodec,
    controller: DraftLengthController | None,
) -> Drafter:
    """Return the drafter of a generation, after choosing what both decoders return.

    Args:
        named: the session's drafter.
        plan: of the generation; it may have a drafter of its own.
        caches: the decoders.
        codec: tokenizer of the bundle.
        controller: chooses the draft length, or None.
    """
    referee, sampler, observer = plan.referee, plan.sampler, plan.options.observer
    shared: tuple[str, ...] = () if sampler is None else sampler.outputs
    shared += () if observer is None else observer.outputs
    caches.target.select(shared + (() if referee is None else referee.arbiter.target_outputs))
    if plan.limits.num_draft_tokens == 0:
        return NoDrafter()
    if plan.options.drafter is not None:
        return plan.options.drafter
    if caches.draft is not None:
        watched = () if controller is None else ("top_values",)
        seen = () if referee is None else referee.arbiter.draft_outputs
        caches.draft.select(shared + seen + watched)
    return named.make(
        DraftingContext(
            codec,
            caches.draft,
            plan.limits.prefill_chunk,
            sampler,
            keep_evidence=referee is not None or observer is not None,
            watch=None if controller is None else controller.drafted,
        )
    )


def rounds(
    plan: Plan,
    caches: Caches,
    drafter: Drafter,
    tokens: list[int],
    controller: DraftLengthController | None,
) -> Iterator[Round]:
    """Decode after `tokens` to the end; an interruption is a last round without tokens.

    Args:
        plan: of the generation.
        caches: used as far as they hold `tokens`.
        drafter: proposes tokens.
        tokens: the prompt; the output is appended.
        controller: chooses the draft length; None drafts up to the limits.
    """
    left = plan.limits.max_tokens
    slides = True
    try:
        while slides:
            slides = False
            for round_ in decode(
                caches.target,
                drafter,
                tokens,
                replace(plan.limits, max_tokens=left),
                plan.referee,
                controller,
                plan.sampler,
                plan.options.observer,
                plan.interrupt.reason,
            ):
                left -= len(round_.tokens)
                slides = (
                    round_.finish == "capacity" and plan.options.overflow == "slide" and left > 0
                )
                yield replace(round_, finish=None) if slides else round_
            if slides:
                tokens = _slide(tokens, caches, plan.sampler)
    except PassInterruptedError:
        caches.clear()  # what the pass left is unknown
        yield Round([], [], 0, 0, plan.interrupt.reason() or "cancelled")
    finally:
        plan.interrupt.close()


def _slide(tokens: list[int], caches: Caches, sampler: Sampler | None) -> list[int]:
    """Return the text without its older half; the rest is read again, at its new positions."""
    kept = tokens[:SINKS] + tokens[-(caches.target.capacity // 2) :]
    if sampler is not None:
        sampler.drop(len(tokens) - len(kept))
    caches.begin(kept)
    return kept


class OutputText:
    """Turns rounds into text, up to a stop text.

    Args:
        text: decodes the output.
        special: spelling of the tokens that are not part of the text, but may be stop texts.
        options: stop texts, and the number of tokens before they count.
    """

    def __init__(
        self, text: TextStream, special: Mapping[int, str], options: GenerationOptions
    ) -> None:
        self._text = text
        self._stops = StopTexts(options.stop, special)
        self._exempt = options.min_tokens

    def push(self, round_: Round) -> tuple[str, Round]:
        """Return the text that a round adds, and the round as far as it belongs to the output."""
        written = ""
        for i, token in enumerate(round_.tokens):
            new = self._text.push([token])
            if self._exempt > 0:
                self._exempt -= 1
                written += new
                continue
            certain, stopped = self._stops.push(new, token)
            written += certain
            if stopped:
                return written, round_.cut(i + 1, "stop")
        if round_.finish is not None:
            certain, stopped = self._stops.push(self._text.finish())
            written += certain + self._stops.finish()
            if stopped:
                round_ = replace(round_, finish="stop")
        return written, round_

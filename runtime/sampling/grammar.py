"""Grammars that constrain the output: which tokens may come next, and which one must.

llguidance compiles a grammar and computes the masks. It is imported when a grammar is first used.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from threading import Lock
from typing import TYPE_CHECKING, Literal

import numpy as np
from numpy.typing import NDArray

from ...errors import MissingExtraError, UsageError
from .json_schema import followed

if TYPE_CHECKING:
    import llguidance

LONGEST_FORCED = 1 << 15
"""Most tokens that a grammar may force at one place; llguidance gives up on text without end later."""

GrammarKind = Literal["json_schema", "regex", "lark", "gbnf", "choice"]


@dataclass(frozen=True)
class GrammarSpec:
    """What the output must match.

    Attributes:
        kind: `json_schema`, `regex`, `lark` (llguidance's dialect), `gbnf` (llama.cpp's grammars), or
            `choice` (one of several texts).
        value: the schema as JSON text, the expression, the grammar, or the texts.
    """

    kind: GrammarKind
    value: str | Sequence[str]

    @property
    def name(self) -> str:
        """The kind in words."""
        words = {"json_schema": "JSON schema", "gbnf": "GBNF grammar", "lark": "Lark grammar"}
        return words.get(self.kind, self.kind)

    def source(self) -> str:
        """Return the grammar in llguidance's own form.

        Raises:
            UsageError: the value does not fit the kind.
        """
        from llguidance import LLMatcher
        from llguidance.gbnf_to_lark import gbnf_to_lark

        if not isinstance(self.value, str):
            texts = " | ".join(json.dumps(text) for text in dict.fromkeys(self.value))
            return LLMatcher.grammar_from_lark(f"start: {texts}")
        if not self.value.strip():
            raise UsageError(f"the {self.name} is empty")
        if self.kind == "json_schema":
            try:
                schema = json.dumps(followed(json.loads(self.value)))
            except RecursionError:
                raise UsageError("the JSON schema is nested too deeply") from None
            return LLMatcher.grammar_from_json_schema(schema)
        if self.kind == "regex":
            return LLMatcher.grammar_from_regex(self.value)
        if self.kind == "gbnf":
            try:
                return LLMatcher.grammar_from_lark(gbnf_to_lark(self.value))
            except Exception as error:  # the converter raises plain exceptions of many kinds
                raise UsageError(f"this GBNF grammar cannot be read: {error}") from error
        return LLMatcher.grammar_from_lark(self.value)


class GrammarCompiler:
    """Compiles grammars for one tokenizer, which it prepares once.

    Args:
        tokenizer: returns the content of tokenizer.json; called when the first grammar is compiled.
        vocab_size: width of the logits; ids that the tokenizer lacks are never allowed.
        eos_token_ids: tokens that may end the output when the grammar is complete.
    """

    def __init__(
        self, tokenizer: Callable[[], str], vocab_size: int, eos_token_ids: Collection[int]
    ) -> None:
        self._json = tokenizer
        self._vocab_size = vocab_size
        self._eos = sorted(eos_token_ids)
        self._tokenizer: llguidance.LLTokenizer | None = None
        self._lock = Lock()

    def compile(self, spec: GrammarSpec) -> GrammarState:
        """Return the initial state of a grammar.

        Raises:
            UsageError: the grammar is invalid, impossible, or uses what llguidance does not support.
            MissingExtraError: llguidance is not installed.
        """
        try:
            import llguidance
        except ImportError as error:
            raise MissingExtraError("llguidance", "grammar", "a grammar") from error
        if not self._eos:
            raise UsageError(
                "a grammar needs a token that ends the output, and the bundle has none"
            )
        source = spec.source()
        with self._lock:
            if self._tokenizer is None:
                self._tokenizer = llguidance.LLTokenizer(
                    self._json(), n_vocab=self._vocab_size, eos_token=self._eos
                )
        problem = llguidance.LLMatcher.validate_grammar(source, self._tokenizer)
        if problem and not problem.startswith("WARNING"):
            raise _refusal(spec, problem)
        matcher = llguidance.LLMatcher(self._tokenizer, source, log_level=0)
        state = GrammarState(matcher, self._vocab_size, self._eos)
        if matcher.is_error():
            raise _refusal(spec, matcher.get_error())
        if not state.allowed().any():
            raise UsageError("no text matches this grammar", hint="check it for contradictions")
        state.forced()  # a text without end is refused here, before decoding
        return state


class GrammarState:
    """Where the output is in its grammar.

    Committed tokens are final. `ahead` are drafted tokens after them, which may be rejected: the state
    follows them and rolls back. Masks are kept until the next commit, because draft and target ask for
    the same ones.
    """

    def __init__(
        self, matcher: llguidance.LLMatcher, vocab_size: int, eos_token_ids: Sequence[int]
    ) -> None:
        self._matcher = matcher
        self._vocab_size = vocab_size
        self._eos = list(eos_token_ids)
        self._ahead: list[int] = []
        self._masks: dict[tuple[int, ...], NDArray[np.bool_]] = {}
        self._ended = False

    def copy(self) -> GrammarState:
        """Return a state at the same place that goes its own way."""
        self._follow(())
        state = GrammarState(self._matcher.deep_copy(), self._vocab_size, self._eos)
        state._ended = self._ended
        return state

    @property
    def is_complete(self) -> bool:
        """Whether the committed text matches the whole grammar."""
        self._follow(())
        return self._ended or bool(self._matcher.is_accepting())

    def commit(self, tokens: Sequence[int]) -> None:
        """Add tokens of the output."""
        if not tokens:
            return
        self._follow(tokens)
        self._ended = self._ended or any(token in self._eos for token in tokens)
        self._ahead.clear()
        self._masks.clear()

    def allowed(self, ahead: Sequence[int] = ()) -> NDArray[np.bool_]:
        """Return which tokens may follow the committed ones and `ahead`: bool [V]."""
        key = tuple(ahead)
        mask = self._masks.get(key)
        if mask is None:
            mask = self._masks[key] = self._mask(key)
        return mask

    def forced(self, ahead: Sequence[int] = ()) -> list[int]:
        """Return the tokens that spell the text which the grammar forces next; often none."""
        if not self._follow(ahead) or self._matcher.is_stopped():
            return []
        tokens = list(self._matcher.compute_ff_tokens())
        if len(tokens) > LONGEST_FORCED:
            raise UsageError(
                "the grammar forces a text without end",
                hint="look for a required property whose value contains the property again",
            )
        return tokens

    def count_allowed(self, tokens: Sequence[int]) -> int:
        """Return how many of `tokens`, from the first, may follow the committed ones."""
        for i, token in enumerate(tokens):
            mask = self.allowed(tokens[:i])
            if not 0 <= token < len(mask) or not mask[token]:
                return i
        return len(tokens)

    def _mask(self, ahead: tuple[int, ...]) -> NDArray[np.bool_]:
        mask = np.zeros(self._vocab_size, dtype=np.bool_)
        if not self._follow(ahead) or self._matcher.is_stopped():
            mask[self._eos] = True
            return mask
        bits = np.frombuffer(self._matcher.compute_bitmask(), dtype=np.uint8)
        if self._matcher.is_error():
            raise UsageError(f"the grammar is too complex: {self._matcher.get_error()}")
        unpacked = np.unpackbits(bits, bitorder="little")[: self._vocab_size]
        mask[: len(unpacked)] = unpacked
        return mask

    def _follow(self, ahead: Sequence[int]) -> bool:
        """Move to the state after `ahead`; False after the end of the output."""
        if self._ended or any(token in self._eos for token in ahead):
            return False
        common = 0
        for ours, theirs in zip(self._ahead, ahead, strict=False):
            if ours != theirs:
                break
            common += 1
        if common < len(self._ahead):
            self._matcher.rollback(len(self._ahead) - common)
            del self._ahead[common:]
        new = list(ahead[common:])
        if new and not self._matcher.consume_tokens(new):
            problem = self._matcher.get_error().partition("\n")[0]
            raise UsageError(f"the grammar forbids this token: {problem}")
        self._ahead += new
        return True


def _refusal(spec: GrammarSpec, problem: str) -> UsageError:
    """Return the error for a grammar that llguidance refuses; its text names the keyword."""
    lines = [line.strip() for line in problem.splitlines() if line.strip()]
    return UsageError(
        f"this {spec.name} cannot be used: {' '.join(lines)[:300] or 'unknown error'}",
        hint="simplify it, or leave out what is named",
    )

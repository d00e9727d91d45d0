"""A bundle with the `generate` of transformers, so that existing code tries it by changing one line.

    model = cospec.BundleForCausalLM.from_pretrained("models/tiny")
    output = model.generate(**tokenizer("Q: ", return_tensors="pt"), max_new_tokens=64)

Neither transformers nor torch is imported: rows of ids come and go as the caller's own kind of tensor.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from ...errors import PromptError, UsageError
from ..decoding.options import GenerationOptions, Mode
from ..decoding.session import Session, load

SAME_NAMES = ("temperature", "top_k", "top_p", "min_p", "repetition_penalty")
"""Sampling parameters that are called the same here and there."""


class Streamer(Protocol):
    """What receives tokens while they are generated, such as transformers' `TextStreamer`."""

    def put(self, value: Any) -> object:
        """Take the prompt [1, S] first, and then new tokens [N]."""

    def end(self) -> object:
        """The output is complete."""


class BundleForCausalLM:
    """Generates with a bundle from token ids, with transformers' names of arguments.

    Rows are decoded one after the other. In `strict` mode without sampling the output is that of the
    target's own `generate`.

    Args:
        session: the loaded bundle.
        mode: `strict` or `collab`, for every call.

    Attributes:
        device: where callers are to send their tensors: "cpu", whatever the bundle runs on.
    """

    device = "cpu"

    def __init__(self, session: Session, mode: Mode = "strict") -> None:
        self.session = session
        self._mode = mode

    @classmethod
    def from_pretrained(cls, path: str | Path, *, mode: Mode = "strict") -> BundleForCausalLM:
        """Load the bundle at `path`, a folder or hf://org/name; errors as in `cospec.load`."""
        return cls(load(path), mode)

    def eval(self) -> BundleForCausalLM:
        """Return the model itself, which is never trained."""
        return self

    def generate(
        self,
        input_ids: Any,
        attention_mask: Any = None,
        *,
        generation_config: Any = None,
        max_new_tokens: int | None = None,
        max_length: int | None = None,
        do_sample: bool | None = None,
        temperature: float | None = None,
        top_k: int | None = None,
        top_p: float | None = None,
        min_p: float | None = None,
        repetition_penalty: float | None = None,
        eos_token_id: int | Sequence[int] | None = None,
        pad_token_id: int | None = None,
        stop_strings: str | Sequence[str] | None = None,
        streamer: Streamer | None = None,
        seed: int | None = None,
        tokenizer: Any = None,
        use_cache: bool = True,
    ) -> Any:
        """Return `input_ids` with the generated tokens after them, padded on the right.

        Arguments that are None take the value of `generation_config`, and else the bundle's default,
        which is the author's.

        Args:
            input_ids: [B, S] or a list of rows, of integers.
            attention_mask: [B, S]; positions with 0 are padding, on either side.
            generation_config: an object with the same names, such as a `GenerationConfig`.
            max_new_tokens: tokens to generate at most.
            max_length: the same, with the tokens of the row.
            do_sample: False for the most likely tokens.
            temperature: and the next four as in `GenerationOptions`.
            top_k: see there.
            top_p: see there.
            min_p: see there.
            repetition_penalty: see there.
            eos_token_id: ends an output, beside the bundle's own end tokens.
            pad_token_id: fills shorter rows. Default: the bundle's first end token, or 0.
            stop_strings: texts that end an output.
            streamer: receives the tokens of the only row.
            seed: of the draws; None for a random one.
            tokenizer: not used, since a bundle has its own.
            use_cache: not used, since a bundle always has a cache.

        Returns:
            [B, S + N] of the kind of `input_ids`, with its device if it has one.

        Raises:
            UsageError: a value out of range, or a streamer for several rows.
            PromptError: a row is empty or too long, or the mask has another shape.
        """
        given = dict(locals())
        config = {name: getattr(generation_config, name, None) for name in _CONFIGURED}
        asked = {name: config[name] if given[name] is None else given[name] for name in _CONFIGURED}
        rows = _rows(input_ids)
        masks = (
            [[1] * len(row) for row in rows] if attention_mask is None else _rows(attention_mask)
        )
        if [*map(len, masks)] != [*map(len, rows)]:
            raise PromptError("attention_mask has another shape than input_ids")
        if streamer is not None and len(rows) != 1:
            raise UsageError("a streamer takes one row", hint="call generate once for each row")
        outputs = []
        for row, mask in zip(rows, masks, strict=True):
            prompt = [token for token, kept in zip(row, mask, strict=True) if kept]
            options = self._options(asked, len(row), seed)
            outputs.append(row + self._decode(prompt, options, streamer, input_ids))
        padding = asked["pad_token_id"]
        if padding is None:
            padding = next(iter(self.session.manifest.generation.eos_token_ids), 0)
        width = max(map(len, outputs))
        return _like(input_ids, [row + [padding] * (width - len(row)) for row in outputs])

    def _options(self, asked: dict[str, Any], length: int, seed: int | None) -> dict[str, Any]:
        """Return our options of what was asked for, for a row of `length` tokens."""
        limit = asked["max_new_tokens"]
        if limit is None and asked["max_length"] is not None:
            limit = asked["max_length"] - length
        ends, stops = asked["eos_token_id"], asked["stop_strings"]
        options = {name: asked[name] for name in SAME_NAMES}
        if asked["do_sample"] is False:
            options |= {
                "greedy": True,
                "temperature": None,
                "top_k": None,
                "top_p": None,
                "min_p": None,
            }
        elif asked["do_sample"] and not (options["temperature"] or self._samples()):
            options["temperature"] = 1.0
        return options | {
            "max_tokens": limit,
            "stop_token_ids": (ends,) if isinstance(ends, int) else ends and tuple(ends),
            "stop": stops,
            "seed": seed,
            "mode": self._mode,
        }

    def _samples(self) -> bool:
        defaults: GenerationOptions = self.session.defaults
        return defaults.temperature > 0

    def _decode(
        self, prompt: list[int], options: dict[str, Any], streamer: Streamer | None, kind: Any
    ) -> list[int]:
        """Return the new tokens after a prompt."""
        if streamer is None:
            return self.session.generate(prompt, **options).tokens
        streamer.put(_like(kind, [prompt]))
        stream = self.session.stream(prompt, **options)
        for piece in stream:
            if piece.tokens:
                streamer.put(_like(kind, piece.tokens))
        streamer.end()
        return list(stream.completion().tokens)


_CONFIGURED = (
    *("max_new_tokens", "max_length", "do_sample", *SAME_NAMES),
    *("eos_token_id", "pad_token_id", "stop_strings"),
)


def _rows(ids: Any) -> list[list[int]]:
    """Return rows of integers, from a tensor, an array or lists."""
    rows = ids.tolist() if hasattr(ids, "tolist") else list(ids)
    rows = [rows] if rows and not isinstance(rows[0], list) else rows
    if not rows:
        raise PromptError("input_ids has no row")
    return rows


def _like(kind: Any, values: Any) -> Any:
    """Return integers as the kind of tensor that the caller uses; an array for all but tensors."""
    if hasattr(kind, "new_tensor"):
        return kind.new_tensor(values)
    return np.asarray(values, dtype=np.int64)

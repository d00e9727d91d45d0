"""What the kit checks and measures; each function returns what goes into the report."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np

from ...decoding.session import Session
from ...engines.protocol import ChainedDecoder, Decoder
from .power import PowerMeter, Reader

SUMMARY = ("top_values", "top_ids", "entropy", "next_input_logprob", "hidden")
COMPARED = ("top_values", "logsumexp", "hidden")
GARBAGE = 5  # tokens that are fed and rolled back before each step
TOLERANCE = {"float32": 5e-3, "float16": 2e-2}
"""Allowed difference as a share of the largest value. TensorRT computes float32 in TF32, whose
mantissa has 10 bits, so it is no closer than that."""


def golden_steps(num_draft_tokens: int, chunk: int, capacity: int) -> list[int]:
    """Widths that a session uses: chunks, single tokens, every verify width, then again."""
    widest = num_draft_tokens + 1
    cycle = [1, 1, *range(1, widest + 1), *range(widest, 0, -1)]
    wanted = [min(chunk, capacity // 4), min(7, capacity // 8), *cycle, *cycle]
    steps: list[int] = []
    while wanted and sum(steps) + wanted[0] + GARBAGE <= capacity:
        steps.append(wanted.pop(0))
    return steps


def play(decoder: Decoder, widths: Sequence[int], vocab_size: int) -> dict[str, np.ndarray]:
    """Feed random tokens in these widths, with a rolled-back detour before each, and keep all rows."""
    rng = np.random.default_rng(0)
    decoder.truncate(0)
    decoder.select(SUMMARY)
    rows: dict[str, list[np.ndarray]] = {name: [] for name in ("token", *COMPARED)}
    for width in widths:
        length = decoder.length
        decoder.step(np.ones(GARBAGE, np.int64))
        decoder.truncate(length)
        output = decoder.step(rng.integers(0, vocab_size, width))
        for name, found in rows.items():
            found.append(np.array(getattr(output, name)))
    return {name: np.concatenate(found) for name, found in rows.items()}


def compare(
    found: dict[str, np.ndarray], golden: dict[str, np.ndarray], dtype: str
) -> dict[str, Any]:
    """Compare rows with the goldens. Another token counts as a tie where the margin allows it."""
    tolerance = TOLERANCE[dtype]
    errors = {
        name: float(np.abs(found[name] - golden[name]).max() / np.abs(golden[name]).max())
        for name in COMPARED
    }
    differ = found["token"] != golden["token"]
    margins = golden["top_values"][:, 0] - golden["top_values"][:, 1]
    allowed = 2 * tolerance * float(np.abs(golden["top_values"]).max())
    wrong = int((differ & (margins > allowed)).sum())
    passed = wrong == 0 and all(error <= tolerance for error in errors.values())
    return {
        "passed": passed,
        "rows": len(differ),
        "relative_errors": errors,
        "tolerance": tolerance,
        "tokens_that_differ": int(differ.sum()),
        "beyond_a_tie": wrong,
    }


def check_chain(decoder: Decoder, vocab_size: int, count: int) -> dict[str, Any]:
    """Compare a chain of draft steps on the device with the same steps one by one."""
    assert isinstance(decoder, ChainedDecoder)
    rng = np.random.default_rng(1)
    context = rng.integers(0, vocab_size, min(20, decoder.capacity // 2))
    decoder.select(())
    chains = []
    for fresh in (1, 2, 1, 2, 1, 2):  # each kind plain, recorded and launched
        decoder.truncate(0)
        decoder.step(context[: len(context) - fresh])
        chained = decoder.draft(context[len(context) - fresh :], count).token.tolist()
        decoder.truncate(len(context) - fresh)
        tokens, single = context[len(context) - fresh :].tolist(), []
        for _ in range(count):
            single.append(int(decoder.step(tokens).token[-1]))
            tokens = single[-1:]
        chains.append(chained == single)
    return {"passed": all(chains), "chains": len(chains), "equal": sum(chains)}


def check_strict(session: Session, prompts: Sequence[list[int]], max_tokens: int) -> dict[str, Any]:
    """Compare strict with target-only decoding, token by token.

    Passes of different widths round differently, so two candidates closer than that may change places;
    every difference is reported with the margin that the target saw there.
    """
    target = session.caches.target
    largest, differences = 0.0, []
    for index, prompt in enumerate(prompts):
        alone = session.continue_tokens(prompt, max_tokens=max_tokens, num_draft_tokens=0)
        strict = session.continue_tokens(prompt, max_tokens=max_tokens)
        a, b = alone.completion().tokens, strict.completion().tokens
        if a == b:
            continue
        place = next(i for i, pair in enumerate(zip(a, b, strict=False)) if pair[0] != pair[1])
        target.truncate(0)
        target.select(("top_values",))
        context = [*prompt, *a[:place]]
        chunk = session.manifest.generation.prefill_chunk
        for start in range(0, len(context), chunk):
            values = target.step(context[start : start + chunk]).top_values
        assert values is not None
        margin = float(values[-1, 0] - values[-1, 1])
        largest = max(largest, float(np.abs(values).max()))
        differences.append({"prompt": index, "token": place, "margin": margin})
    tolerance = TOLERANCE[session.manifest.models.target.cache_dtype] * 2 * largest
    beyond = [each for each in differences if each["margin"] > tolerance]
    return {
        "passed": not beyond,
        "prompts": len(prompts),
        "equal": len(prompts) - len(differences),
        "differences": differences,
        "beyond_a_tie": len(beyond),
    }


def measure(
    session: Session, prompts: Sequence[list[int]], max_tokens: int, reader: Reader | None
) -> dict[str, Any]:
    """Time target-only, strict and, with an arbiter, collab; a warm-up prompt before each."""
    modes: dict[str, dict[str, Any]] = {"target only": {"num_draft_tokens": 0}, "strict": {}}
    if session.arbiter is not None:
        modes["collab"] = {"mode": "collab"}
    report = {}
    for mode, settings in modes.items():

        def generate(prompt: list[int], settings: dict[str, Any] = settings) -> Any:
            session.forget()  # each prompt is read as a whole
            options = {"max_tokens": max_tokens, "greedy": True, **settings}
            return session.generate(prompt, **options).stats

        for _ in range(3):  # plain, recorded, launched
            generate(prompts[0])
        with PowerMeter(reader) as meter:
            stats = [generate(prompt) for prompt in prompts]
        tokens = sum(each.num_generated_tokens for each in stats)
        watts = meter.watts
        report[mode] = {
            "tokens": tokens,
            "seconds": meter.seconds,
            "tokens_per_second": tokens / meter.seconds,
            "median_ttft_seconds": median(each.ttft for each in stats),
            "median_tpot_seconds": median(each.tpot or 0.0 for each in stats),
            "tokens_per_target_pass": tokens / sum(each.num_target_passes for each in stats),
            "watts": watts,
            "joules_per_token": None if watts is None else watts * meter.seconds / tokens,
        }
    return report


def write_goldens(path: Path, goldens: dict[str, dict[str, np.ndarray]]) -> None:
    """Write goldens of each role as one .npz file."""
    arrays = {f"{role}.{name}": a for role, rows in goldens.items() for name, a in rows.items()}
    np.savez_compressed(path, **arrays)  # type: ignore[arg-type]


def read_goldens(path: Path, role: str) -> dict[str, np.ndarray]:
    """Read what `write_goldens` wrote for a role."""
    with np.load(path, allow_pickle=False) as arrays:
        return {name: arrays[f"{role}.{name}"] for name in ("token", *COMPARED)}

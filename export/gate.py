"""The parity gate: no bundle exists before its graphs have computed what their checkpoint computes.

What the checkpoint computes is in `probes.py`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..errors import BackendError, GateError
from ..runtime.engines.onnxruntime import OrtDecoder, OrtEngine
from ..runtime.engines.protocol import StepOutput
from .decoder import LOWEST, SUMMARY_OUTPUTS
from .probes import Probe

TOLERANCE = {"fp32": 1e-4, "fp16": 2e-2}
"""Allowed difference of a logit, as a share of the largest logit of the reference."""

OUTLIER_TOLERANCE = {"fp32": 1e-4, "fp16": 5e-2}
OUTLIERS = 1 / 20
"""The same for so large a share of the rows. In half precision the first token of a sound model can be
off by more than the rest: it attends to itself alone, and its activations are the largest by far. With
weights in fp8, that row of SmolLM2-135M was off by 0.024, and half of the rows by less than 0.002."""

MEDIAN_TOLERANCE = 0.25
"""The same for the median row where products of quantised weights compute in int8.

That a graph is right is shown in fp32. This limit catches kernels that are broken on the machine that
exports. A single row says nothing: random tokens over a cache of resampled rows put a row of a sound
0.5B model off by 0.6, where on real text its perplexity rises by 0.2 %."""

_GARBAGE = 5


@dataclass(frozen=True)
class GateReport:
    """The result of the gate, for the bundle's certificate.

    Attributes:
        rows: rows of logits that were compared.
        max_relative_error: largest logit difference, as a share of the largest logit.
        tolerance: what was allowed, but for a few rows; see OUTLIERS.
        argmax_differences: rows whose most likely token differs. Only possible where the reference's
            own first two logits are closer than the arithmetic can tell apart.
        longest_position: the last position that was reached.
    """

    rows: int
    max_relative_error: float
    tolerance: float
    argmax_differences: int
    longest_position: int

    def to_json(self) -> dict[str, Any]:
        """Return the report as plain values."""
        return asdict(self)


def check(engine: OrtEngine, probes: Sequence[Probe], precision: str, role: str) -> GateReport:
    """Play `probes` through `engine` and compare every row.

    Raises:
        GateError: names the graph, the step and the size of the difference.
    """
    decoder = engine.decoder((*SUMMARY_OUTPUTS, "hidden", "logits"))
    tolerance = TOLERANCE[precision]
    scale = max(float(np.abs(p.logits[p.logits > LOWEST]).max()) for p in probes)
    worst, ties, rows, outliers = 0.0, 0, 0, 0
    for probe in probes:
        where = f"{role} graph, {probe.name} of {len(probe.tokens)} tokens at {probe.start}"
        output = _play(decoder, probe, where)
        errors = _relative_errors(output, probe, scale, precision, where)
        error = float(errors.max())
        outliers += int((errors > tolerance).sum())
        ties += _argmax_differences(output, probe, error * scale, where)
        _check_summary(output, probe.tokens, where)
        worst, rows = max(worst, error), rows + len(probe.tokens)
    if outliers > OUTLIERS * rows:
        raise GateError(
            f"{role} graph: {outliers} of {rows} rows of logits differ from transformers, by up to "
            f"{worst:.2g} of the largest logit; {tolerance:g} is allowed",
            hint=_HINT,
        )
    end = max(probe.start + len(probe.tokens) for probe in probes)
    return GateReport(rows, worst, tolerance, ties, end - 1)


def check_in_int8(engine: OrtEngine, probes: Sequence[Probe], role: str) -> dict[str, Any]:
    """Feed `probes` to a graph that rounds activations to int8; return how far its rows are off.

    Raises:
        GateError: half of the rows are beyond MEDIAN_TOLERANCE, a number is not finite, or the summary
            does not describe the logits.
    """
    decoder = engine.decoder((*SUMMARY_OUTPUTS, "hidden", "logits"))
    scale = max(float(np.abs(p.logits[p.logits > LOWEST]).max()) for p in probes)
    errors: list[float] = []
    same = 0
    for probe in probes:
        where = f"{role} graph in int8, {probe.name} of {len(probe.tokens)} tokens at {probe.start}"
        output = _play(decoder, probe, where)
        assert output.logits is not None
        if not np.isfinite(output.logits).all():
            raise GateError(f"{where}: the logits are not finite", hint=_HINT)
        _check_summary(output, probe.tokens, where)
        errors += (np.abs(output.logits - probe.logits).max(axis=1) / scale).tolist()
        same += int((output.token == probe.logits.argmax(axis=1)).sum())
    median = float(np.median(errors))
    if median > MEDIAN_TOLERANCE:
        raise GateError(
            f"{role} graph in int8: half of the rows differ from transformers by {median:.2g} of the "
            f"largest logit or more; {MEDIAN_TOLERANCE:g} is allowed",
            hint="in fp32 the graph is right, so ONNX Runtime's kernel is not on this machine; report "
            "it with the CPU, or export with --weights fp32",
        )
    return {
        "rows": len(errors),
        "median_relative_error": median,
        "max_relative_error": max(errors),
        "same_token": same / len(errors),
    }


def _play(decoder: OrtDecoder, probe: Probe, where: str) -> StepOutput:
    """Bring the cache to where `probe` starts, by a detour over garbage if that fits, and feed it."""
    try:
        if probe.cache is not None:
            layers = [(key.numpy(), value.numpy()) for key, value in probe.cache.layers()]
            decoder.write_cache(layers, probe.start)
        elif probe.start + _GARBAGE <= decoder.capacity:
            decoder.step(np.full(_GARBAGE, 1, dtype=np.int64))
            decoder.truncate(probe.start)
        return decoder.step(probe.tokens)
    except BackendError as error:
        raise GateError(f"{where}: {error.message}", hint=error.hint) from error


def _relative_errors(
    output: StepOutput, probe: Probe, scale: float, precision: str, where: str
) -> NDArray[np.float32]:
    """Return the largest difference of each row's logits; refuse what not even a few rows may have."""
    assert output.logits is not None
    assert output.hidden is not None
    if not np.isfinite(output.logits).all():
        raise GateError(f"{where}: the logits are not finite", hint=_HINT)
    limit = OUTLIER_TOLERANCE[precision]
    errors: NDArray[np.float32] = np.abs(output.logits - probe.logits).max(axis=1) / scale
    if errors.max() > limit:
        raise GateError(
            f"{where}: a logit differs from transformers by {errors.max() * scale:.3g}, "
            f"{errors.max():.2g} of the largest logit; {limit:g} is allowed",
            hint=_HINT,
        )
    hidden_scale = float(np.abs(probe.hidden).max())
    hidden_error = float(np.abs(output.hidden - probe.hidden).max()) / hidden_scale
    if not hidden_error <= 10 * TOLERANCE[precision]:  # NaN is no agreement either
        raise GateError(
            f"{where}: the hidden state differs from transformers by {hidden_error:.2g} of its "
            f"largest value; {10 * TOLERANCE[precision]:g} is allowed",
            hint=_HINT,
        )
    return errors


def _argmax_differences(output: StepOutput, probe: Probe, error: float, where: str) -> int:
    """Count rows with another most likely token; only a tie within the error excuses one."""
    best = probe.logits.argmax(axis=1)
    differing = np.flatnonzero(output.token != best)
    for row in differing:
        margin = float(probe.logits[row, best[row]] - probe.logits[row, output.token[row]])
        if margin > 2 * error:
            raise GateError(
                f"{where}: row {row} yields token {output.token[row]} instead of {best[row]}, "
                f"though the reference separates them by {margin:.3g}",
                hint=_HINT,
            )
    return len(differing)


def _check_summary(output: StepOutput, tokens: NDArray[np.int64], where: str) -> None:
    """The in-graph summary must describe the graph's own logits."""
    assert output.logits is not None
    assert output.top_values is not None
    assert output.top_ids is not None
    assert output.logsumexp is not None
    assert output.entropy is not None
    assert output.next_input_logprob is not None
    logits = output.logits.astype(np.float64)
    peak = logits.max(axis=1)
    logsumexp = peak + np.log(np.exp(logits - peak[:, None]).sum(axis=1))
    logprob = logits - logsumexp[:, None]
    fed = logprob[np.arange(len(tokens) - 1), tokens[1:]]
    top = np.take_along_axis(output.logits, output.top_ids, axis=1)
    agree = {
        "token": np.array_equal(output.token, output.logits.argmax(axis=1)),
        "top_ids": np.array_equal(top, output.top_values)
        and np.array_equal(top, -np.sort(-output.logits, axis=1)[:, : top.shape[1]]),
        # In fp32 a sum over 150,000 tokens is right to about 1e-4.
        "logsumexp": np.allclose(output.logsumexp, logsumexp, rtol=1e-5, atol=3e-4),
        "entropy": np.allclose(
            output.entropy, -(np.exp(logprob) * logprob).sum(axis=1), rtol=1e-3, atol=1e-3
        ),
        "next_input_logprob": np.allclose(
            output.next_input_logprob[:-1], fed, rtol=1e-4, atol=1e-3
        ),
    }
    wrong = [name for name, ok in agree.items() if not ok]
    if wrong:
        raise GateError(f"{where}: {', '.join(wrong)} do not describe the logits", hint=_HINT)


_HINT = "nothing was written; report the checkpoint and the versions of torch and transformers"

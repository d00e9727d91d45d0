"""What the parts of a round cost on this machine, measured before the controller has to know.

Waiting for rounds of each width to come along would leave the widths that are not in use unknown, and
the best of them may be among those. Made-up tokens are fed behind what a cache holds and dropped again.
"""

from __future__ import annotations

from statistics import median
from time import perf_counter

from ..engines.protocol import Decoder
from .draft_length import Costs

REPEATS = 4
"""Passes of each width; the first prepares buffers and does not count."""

CONTEXT = 64
"""Tokens in the cache while measuring, or half of a smaller one."""

LOOKUP_SECONDS = 1e-5
"""What a draft token costs that is looked up and not computed."""


def measure_costs(target: Decoder, draft: Decoder | None, longest: int) -> Costs:
    """Time passes of every width; both decoders are empty before and after.

    Args:
        target: its decoder.
        draft: the draft's, or None where tokens are looked up.
        longest: tokens to draft a round at most; less where the capacity is small.

    Raises:
        BackendError: a backend failed.
    """
    context = min(CONTEXT, target.capacity // 2)
    widths = range(1, min(longest + 1, target.capacity - context) + 1)
    verify = [median(each[1:]) for each in time_passes(target, context, widths, REPEATS)]
    target.truncate(0)
    if draft is None:
        return Costs(LOOKUP_SECONDS, verify)
    (steps,) = time_passes(draft, context, range(1, 2), REPEATS)
    draft.truncate(0)
    return Costs(median(steps[1:]), verify)


def time_passes(decoder: Decoder, context: int, widths: range, repeats: int) -> list[list[float]]:
    """Return the seconds of passes of each width, which take turns.

    Args:
        decoder: what it holds is dropped.
        context: tokens in the cache before each pass, and afterwards.
        widths: tokens of the passes.
        repeats: passes of each width.
    """
    decoder.truncate(0)
    decoder.step([0] * context)
    seconds: dict[int, list[float]] = {width: [] for width in widths}
    for _ in range(repeats):
        for width in widths:
            started = perf_counter()
            decoder.step([0] * width)
            seconds[width].append(perf_counter() - started)
            decoder.truncate(context)
    return list(seconds.values())

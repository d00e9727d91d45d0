"""The wordings of worked solutions.

Real text says one thing in many ways, so most mismatches between two language models are
harmless. The tiny tasks imitate that: each step of a solution has several valid wordings, and each
step draws its own. Draft and target prefer different wordings, but both are trained on all of them.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from random import Random

Wordings = tuple[tuple[str, float], ...]
"""Alternatives and their weights, which sum to 1."""

CLOSINGS = ("Answer: ", "The answer is ", "So we get ")
"""Texts before the final answer."""


@dataclass(frozen=True)
class Style:
    """How likely each wording is, piece by piece."""

    opening: Wordings
    linking: Wordings
    equals: Wordings
    operators: Wordings
    separator: Wordings
    beats: Wordings
    running_total: Wordings
    closing: Wordings
    ones_first: float


TARGET = Style(
    opening=(("First ", 0.70), ("", 0.20), ("Start with ", 0.10)),
    linking=(("then ", 0.70), ("", 0.18), ("next ", 0.12)),
    equals=(("=", 0.74), (" gives ", 0.16), (" is ", 0.10)),
    operators=(("symbol", 0.80), ("word", 0.20)),
    separator=((", ", 0.80), ("; ", 0.20)),
    beats=((">", 0.75), (" beats ", 0.25)),
    running_total=(("total ", 0.75), ("so far ", 0.25)),
    closing=((CLOSINGS[0], 0.70), (CLOSINGS[1], 0.18), (CLOSINGS[2], 0.12)),
    ones_first=0.15,
)
DRAFT = Style(
    opening=(("", 0.70), ("First ", 0.18), ("Start with ", 0.12)),
    linking=(("", 0.70), ("then ", 0.18), ("next ", 0.12)),
    equals=((" gives ", 0.72), ("=", 0.18), (" is ", 0.10)),
    operators=(("symbol", 0.80), ("word", 0.20)),
    separator=((", ", 0.80), ("; ", 0.20)),
    beats=((" beats ", 0.75), (">", 0.25)),
    running_total=(("so far ", 0.75), ("total ", 0.25)),
    closing=((CLOSINGS[1], 0.70), (CLOSINGS[0], 0.18), (CLOSINGS[2], 0.12)),
    ones_first=0.15,
)
STYLES: dict[str, Style] = {"target": TARGET, "draft": DRAFT}

_OPERATOR_WORDS = {"+": " plus ", "-": " minus ", "*": " times "}
_OPERATIONS = {"+": int.__add__, "-": int.__sub__, "*": int.__mul__}


def calculate(left: int, operator: str, right: int) -> int:
    """Return the value of one step; operator is "+", "-" or "*"."""
    return _OPERATIONS[operator](left, right)


def choose(wordings: Wordings, rng: Random) -> str:
    """Pick one of the wordings, by weight."""
    return rng.choices([text for text, _ in wordings], [weight for _, weight in wordings])[0]


class Writer:
    """Puts the pieces of one solution together, drawing each wording from a style."""

    def __init__(self, style: Style, rng: Random) -> None:
        self._style = style
        self._rng = rng
        self._pieces: list[str] = []

    def step(self, body: str, linked: bool = True) -> None:
        """Append one step; linked: it may begin with a connective such as "then"."""
        style, rng = self._style, self._rng
        if self._pieces:
            self._pieces.append(choose(style.separator, rng))
        if linked:
            self._pieces.append(choose(style.linking if self._pieces else style.opening, rng))
        self._pieces.append(body)

    def sum(self, left: int, operator: str, right: int) -> int:
        """Append the step `left operator right = value`; returns the value."""
        style, rng = self._style, self._rng
        value = calculate(left, operator, right)
        if choose(style.operators, rng) == "word":
            operator = _OPERATOR_WORDS[operator]
        self.step(f"{left}{operator}{right}{choose(style.equals, rng)}{value}")
        return value

    def running_total(self, value: int) -> None:
        """Append a running total without the sum that gives it, to keep the solution short."""
        self.step(f"{choose(self._style.running_total, self._rng)}{value}", linked=False)

    def comparison(self, larger: int, smaller: int) -> None:
        """Append the step that says which of two numbers is larger."""
        self.step(f"{larger}{choose(self._style.beats, self._rng)}{smaller}")

    def parts(self, parts: list[int]) -> Iterator[int]:
        """Return the parts of a number in the order in which this solution takes them."""
        ones_first = self._rng.random() < self._style.ones_first
        return reversed(parts) if ones_first else iter(parts)

    def finish(self, answer: str) -> str:
        """Return the whole text, with the final answer announced at its end."""
        return f"{''.join(self._pieces)}. {choose(self._style.closing, self._rng)}{answer}"

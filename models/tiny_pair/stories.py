"""The two-step word problems of the tasks."""

from dataclasses import dataclass

NAMES = ("Ann", "Ben", "Eva", "Ida", "Kim", "Leo", "Mia", "Noah", "Omar", "Rosa", "Sam", "Tom")
NOUNS = (
    *("apples", "books", "cards", "coins", "cups", "eggs", "flowers", "keys"),
    *("lemons", "nuts", "pens", "plums", "rings", "shells", "stamps", "toys"),
)


@dataclass(frozen=True)
class Story:
    """A two-step word problem: {x} and {y} are names, {n} a noun, {a} {b} {c} the operands."""

    wordings: tuple[str, ...]
    operators: str
    ranges: tuple[tuple[int, int], ...]
    # Some stories use the first number twice: "Ben has 5 more. How many together?"
    reuses_first: bool = False


_SMALL, _FACTOR, _PAIR = (2, 9), (3, 12), (11, 89)
STORIES = {
    "gain-lose": Story(
        (
            "{x} has {a} {n}. {x} finds {b} and loses {c}. How many {n} now?",
            "{x} had {a} {n}, got {b} more and sold {c}. How many are left?",
        ),
        "+-",
        (_PAIR, _PAIR, _PAIR),
    ),
    "lose-gain": Story(
        (
            "{x} has {a} {n}. {x} loses {b} and finds {c}. How many {n} now?",
            "{x} had {a} {n}, sold {b} and got {c} more. How many {n} now?",
        ),
        "-+",
        (_PAIR, _PAIR, _PAIR),
    ),
    "boxes-more": Story(
        (
            "{x} has {a} boxes of {b} {n} and {c} more. How many {n}?",
            "{a} boxes hold {b} {n} each. {x} finds {c}. How many {n} now?",
        ),
        "*+",
        (_SMALL, _FACTOR, _PAIR),
    ),
    "boxes-less": Story(
        (
            "{x} has {a} boxes of {b} {n} and sold {c}. How many are left?",
            "{a} boxes hold {b} {n} each. {x} loses {c}. How many {n} now?",
        ),
        "*-",
        (_SMALL, _FACTOR, _PAIR),
    ),
    "more-together": Story(
        (
            "{x} has {a} {n}. {y} has {b} more. How many {n} together?",
            "{x} has {a} {n} and {y} {b} more than {x}. How many in all?",
        ),
        "++",
        (_PAIR, _PAIR),
        reuses_first=True,
    ),
    "fewer-together": Story(
        (
            "{x} has {a} {n}. {y} has {b} fewer. How many {n} together?",
            "{x} has {a} {n} and {y} {b} fewer than {x}. How many in all?",
        ),
        "-+",
        (_PAIR, _PAIR),
        reuses_first=True,
    ),
}

from random import Random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cospec.calibration.tasks.checkers import CHECKERS, check, make_checker, problem_with
from cospec.calibration.tasks.item import CheckerSpec, Task
from cospec.calibration.tasks.tiny import tiny_tasks
from cospec.errors import UsageError
from cospec.models.tiny_pair.tasks import distinct, is_correct, solve


def right(name, answer, text, **options):
    return make_checker(CheckerSpec(name, options)).check(answer, text)


def test_tiny_agrees_with_the_tiny_pair():
    """On 500 solutions, each also with a wrong answer; `number` agrees where one number is asked."""
    rng = Random(0)
    problems = distinct("validation", 3, 500)
    tasks = tiny_tasks("validation", 500, 3)
    assert len({task.id for task in tasks}) == 500
    for problem, task in zip(problems, tasks, strict=True):
        assert task.prompt == ({"role": "user", "content": problem.question},)
        text = solve(problem, rng, rng.choice(["target", "draft"]))
        for candidate in (text, text + "1", text.rpartition(". ")[0], ""):
            expected = is_correct(problem, candidate)
            assert check(task, candidate) == expected, candidate
            if " " not in problem.answer and candidate in (text, text + "1"):
                assert right("number", problem.answer, candidate) == expected
        assert check(task, text)


GOLD = {
    "number": "18",
    "choice": "B",
    "text": ["Paris"],
    "math": r"\frac{1}{2}",
    "tiny": "1 2",
}
PIECES = st.sampled_from(
    [
        *(
            "\\boxed{",
            "\\frac{",
            "\\text{",
            "{",
            "}",
            "####",
            "answer",
            "Answer:",
            "is",
            "**",
            "(B)",
        ),
        *(
            "1",
            "0",
            "٣",
            "²",
            "/",
            ",000",
            "-",
            "$",
            "=",
            "e9",
            ".",
            "%",
            "\n",
            " ",
            "\ud800",
            "\0",
        ),
    ]
)


@settings(max_examples=150, deadline=None)
@given(st.one_of(st.text(max_size=80), st.lists(PIECES, max_size=25).map("".join)))
def test_no_text_makes_a_checker_raise(text):
    for name, gold in GOLD.items():
        assert right(name, gold, text) in (True, False)


@pytest.mark.parametrize(
    "text",
    [
        "\\boxed{" * 30_000,
        "answer " * 30_000,
        "answer is " * 30_000,
        ",123" * 50_000,
        "9" * 300_000,
        "(" * 200_000,
        "- " * 100_000,
        "\\frac{1}{" * 20_000,
        "```\n" * 50_000,
        "<think>" * 28_000,
        "</think>" * 25_000,
        "\nQ:" * 60_000,
        "#### 1\n" * 28_000,
        "**answer**\n" * 18_000,
        "neither nor " * 16_000,
        "one-" * 50_000,
    ],
    ids=lambda text: text[:10],
)
def test_long_hostile_texts_are_judged(text):
    for name, gold in GOLD.items():
        assert right(name, gold, text) in (True, False)


@pytest.mark.parametrize(
    ("name", "answer"),
    [
        ("number", "many"),
        ("number", None),
        ("number", True),
        ("number", float("inf")),
        ("number", ["1"]),
        ("choice", "E"),
        ("choice", "AB"),
        ("choice", 1),
        ("text", 5),
        ("text", []),
        ("text", ["the"]),
        ("text", [1]),
        ("math", 5),
        ("math", ""),
        ("python", "assert True"),
        ("python", {}),
        ("python", {"test": ""}),
        ("python", {"test": 1}),
        ("python", {"test": "x", "extra": "y"}),
        ("judge", "good"),
        ("judge", {}),
        ("judge", {"question": "x", "reference": 3}),
        ("tiny", "x"),
        ("tiny", 3),
    ],
)
def test_useless_gold_answers_are_found(name, answer):
    assert problem_with(Task("t", "p", CheckerSpec(name), answer))


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("nmber", {}, "no checker 'nmber'"),
        ("number", {"tolerence": 1}, "no option 'tolerence'.*tolerance"),
        ("math", {"x": 1}, "none"),
        ("number", {"tolerance": "high"}, "'tolerance' is not"),
        ("number", {"tolerance": -1}, "'tolerance' is not"),
        ("choice", {"letters": "abc"}, "'letters' is not"),
        ("text", {"where": "here"}, "'where' is none"),
        ("python", {"seconds": 10**9}, "'seconds' is not"),
        ("python", {"memory_mb": 1}, "'memory_mb' is not"),
        ("judge", {"threshold": 11}, "'threshold' is not"),
        ("judge", {"base_url": "http://elsewhere"}, "no option 'base_url'"),
    ],
)
def test_useless_checkers_are_named(name, options, message):
    with pytest.raises(UsageError, match=message):
        make_checker(CheckerSpec(name, options))


def test_every_checker_is_tested_here_or_beside():
    assert set(CHECKERS) == {*GOLD, "python", "judge"}

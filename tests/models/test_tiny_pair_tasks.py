from dataclasses import replace
from itertools import islice
from random import Random

import pytest

from cospec.models import tiny_pair as tiny
from cospec.models.tiny_pair.styles import STYLES
from cospec.models.tiny_pair.tasks import (
    KINDS,
    Problem,
    distinct,
    draw,
    final_answer,
    is_correct,
    problems,
    prompt,
    solve,
    split_of,
)


@pytest.mark.parametrize("style", sorted(STYLES))
def test_every_solution_is_correct(style):
    rng = Random(0)
    for problem in islice(problems("train", 0), 2000):
        text = solve(problem, rng, style)
        assert is_correct(problem, text), (problem, text)
        assert not is_correct(replace(problem, answer=problem.answer + "1"), text)


@pytest.mark.parametrize("style", sorted(STYLES))
def test_solutions_state_true_sums_only(style):
    rng = Random(1)
    words = (" plus ", "+"), (" minus ", "-"), (" times ", "*"), (" gives ", "="), (" is ", "=")
    seen = 0
    for problem in islice(problems("train", 1, ("word", "chain", "mul")), 600):
        steps, _, _ = solve(problem, rng, style).rpartition(". ")
        for word, symbol in words:
            steps = steps.replace(word, symbol)
        for step in steps.replace(";", ",").split(","):
            if "=" in step:
                left, right = step.split()[-1].split("=")
                assert eval(left) == int(right), (problem, step)  # digits and + - * only
                seen += 1
    assert seen > 1000


def test_styles_overlap_and_prefer_different_words():
    problem = next(problems("train", 0, ("chain",)))
    texts = {name: [solve(problem, Random(i), name) for i in range(300)] for name in STYLES}
    for wording in ("First ", "then ", "=", " gives ", "Answer: ", "The answer is ", "plus"):
        assert all(any(wording in text for text in texts[name]) for name in STYLES)
    first = {name: sum(t.startswith(" First") for t in texts[name]) for name in STYLES}
    assert first["target"] > 150 > 100 > first["draft"] > 0


def test_an_answer_may_switch_style_half_way():
    problem = next(problems("train", 0, ("chain",)))
    texts = [solve(problem, Random(i), "target") for i in range(300)]
    assert any("=" in text and " gives " in text for text in texts)


def test_splits_are_disjoint_and_about_80_10_10():
    rng = Random(0)
    keys = {
        split: {draw(kind, split, rng).key for kind in KINDS for _ in range(400)}
        for split in ("train", "validation", "test")
    }
    assert not keys["train"] & keys["test"]
    assert not keys["train"] & keys["validation"]
    assert not keys["validation"] & keys["test"]
    shares = [
        split_of(Problem("chain", "+-", (i, j, 9), "", "")) for i in range(40) for j in range(40)
    ]
    assert 0.76 < shares.count("train") / len(shares) < 0.84
    assert 0.08 < shares.count("test") / len(shares) < 0.12


def test_split_ignores_the_wording():
    problem = next(problems("test", 0))
    assert split_of(replace(problem, question="something else")) == "test"


def test_distinct_has_two_thousand_test_problems_of_equal_kinds():
    chosen = distinct("test", 0, 2000)
    assert len({problem.key for problem in chosen}) == 2000
    assert [sum(p.kind == kind for p in chosen) for kind in KINDS] == [500] * 4
    assert all(split_of(problem) == "test" for problem in chosen)


def test_distinct_says_when_a_space_is_exhausted():
    with pytest.raises(ValueError, match="'mul' has no more"):
        distinct("test", 0, 1000, ("mul",))


def test_the_seed_decides_everything():
    first, again, other = (list(islice(problems("test", seed), 50)) for seed in (3, 3, 4))
    assert first == again
    assert first != other
    assert [solve(p, Random(5), "draft") for p in first] == [
        solve(p, Random(5), "draft") for p in again
    ]


def test_unknown_kind_says_which_exist():
    with pytest.raises(ValueError, match="word, chain, mul, list"):
        draw("poem", "train", Random(0))


@pytest.mark.parametrize(
    ("text", "answer"),
    [
        (" 12+30=42. Answer: 42", "42"),
        (" 12+30=42. The answer is 42. ", "42"),
        (" So we get 12 34 56", "12 34 56"),
        (" Answer: 1. The answer is 2", "2"),
        ("", None),
        (" Answer:", None),
        (" Answer: none", None),
        (" the answer is 42", None),
        (" 42", None),
        ("\ufffd\x00 Answer: \u0664\u0662", None),
    ],
)
def test_final_answer(text, answer):
    assert final_answer(text) == answer


def test_prompt():
    assert prompt(Problem("mul", "", (), "What?", "")) == "Q: What?\nA:"


def test_path_names_the_roles():
    assert tiny.path("draft").name == "draft"
    with pytest.raises(ValueError, match="draft, target"):
        tiny.path("arbiter")

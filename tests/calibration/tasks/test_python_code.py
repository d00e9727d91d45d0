import time

import pytest

from cospec.calibration.tasks.checkers import check, require_working
from cospec.calibration.tasks.item import CheckerSpec, Task
from cospec.calibration.tasks.python_code import PythonChecker, solution_parts

PREFIX = '''from typing import List

def helper(x):
    return x + 1

def largest(values: List[int]) -> int:
    """Return the largest value plus one."""
'''
ANSWER = {
    "prefix": PREFIX,
    "test": "def check(f):\n    assert f([1, 3, 2]) == 4\n\ncheck(largest)\n",
    "entry_point": "largest",
}
BODY = "    return helper(max(values))\n"
WHOLE = "def largest(values: List[int]) -> int:\n" + BODY
CHECKER = PythonChecker()


@pytest.mark.parametrize(
    "text",
    [
        BODY,
        BODY + "\nprint(largest([1]))\n\ndef other(): pass\n",  # a base model runs on
        BODY + "```\nThat is it.",
        WHOLE,  # without imports and helper: they are in the prefix
        f"Here it is:\n\n```python\n{WHOLE}```\nIt works.",
        f"```python\n{PREFIX}{BODY}```",
        f"```py\n{BODY}```",  # a block that holds the body alone
        f"First thought:\n```\nx = 1\n```\nBetter:\n```python\n{WHOLE}```\nUse:\n```\nlargest([])\n```",
        f"```python\n{WHOLE}",  # cut before the fence closes
        f"  ```python\n{WHOLE}  ```".replace("\n", "\r\n"),
    ],
)
def test_right_solutions(text):
    outcome = CHECKER.run(ANSWER, text)
    assert outcome.ok, outcome


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("    return 0\n", "AssertionError"),
        ("", "AssertionError"),
        ("I cannot do this.", "Error"),
        ("```python\n```", "AssertionError"),
        ("    import sys; sys.exit(0)\n", "SystemExit"),
        ("    import os; os._exit(0)\n", "ended its process"),
        (WHOLE + "\nimport sys; sys.exit(0)\n", "SystemExit"),
        (WHOLE + "\nx = '''", "SyntaxError"),
        ("```python\ndef check(f): pass\n" + WHOLE.replace("max", "min") + "```", "AssertionError"),
        ("\0", "Error"),
        ("\ud800", "Error"),
    ],
)
def test_wrong_solutions(text, reason):
    outcome = CHECKER.run(ANSWER, text)
    assert not outcome.ok
    assert reason in outcome.reason


HELPED = {
    "prefix": "import math\n\ndef poly(xs, x):\n    return sum(c * x**i for i, c in enumerate(xs))\n\n"
    "def find_zero(xs):\n",
    "test": "def check(f):\n    assert abs(poly([1, 2], f([1, 2]))) < 1e-4\ncheck(find_zero)",
    "entry_point": "find_zero",
}


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("    return -xs[0] / xs[1]\n", True),
        ("def find_zero(xs):\n    return -xs[0] / xs[1]\n", True),
        ("    return 0\n", False),
        # The task's helper is not the solution's to define.
        ("def poly(xs, x): return 0\ndef find_zero(xs): return 0\n", False),
        ("    return 0\n\ndef poly(xs, x): return 0\n", False),
    ],
)
def test_helpers_are_those_of_the_task(text, expected):
    assert CHECKER.check(HELPED, text) is expected


TREE = {
    "prefix": "class Node:\n    def __init__(self, v, next=None): self.v, self.next = v, next\n"
    "def last(n):\n",
    "test": "a = Node(1, Node(2))\nassert last(a).v == 2\nassert last(Node(3)).next is None",
    "entry_point": "last",
}


def test_classes_of_the_task_go_to_the_solution_and_back():
    assert CHECKER.check(TREE, "    return last(n.next) if n.next else n\n")
    assert not CHECKER.check(TREE, "    return n\n")


MBPP = {"test": "assert add(1, 2) == 3\nassert add(2, 2) == 4", "entry_point": "add"}


@pytest.mark.parametrize(
    "text",
    [
        "def add(a, b):\n    return a + b\n",
        "[BEGIN]\ndef add(a, b):\n    return a + b\n[DONE]\nmore text",
        "Sure:\n```python\ndef add(a, b):\n    return a + b\n```\n```python\nprint(add(1, 2))\n```",
    ],
)
def test_asserts_after_a_completion(text):
    assert CHECKER.check(MBPP, text)
    assert CHECKER.check({"test": MBPP["test"]}, text)
    assert not CHECKER.check(MBPP, text.replace("a + b", "a - b"))


def test_a_test_that_hangs_is_stopped():
    answer = {"test": "while True: pass"}
    start = time.monotonic()
    outcome = PythonChecker(seconds=0.5).run(answer, "x = 1")
    assert not outcome.ok
    assert "took longer than 0.5 s" in outcome.reason
    assert time.monotonic() - start < 10


@pytest.mark.parametrize(
    "text",
    [
        "(" * 50_000,
        "-" * 90_000 + "1",
        "lambda: " * 12_000,
        "```\n" * 25_000,
        "\ud800",
        "\0",
        " " * 99_999,
    ],
    ids=lambda text: ascii(text[:8]),
)
def test_no_text_raises_or_passes(text):
    outcome = CHECKER.run(MBPP, text)
    assert not outcome.ok
    assert outcome.reason


def test_very_long_answers_are_cut():
    assert len("".join(solution_parts(MBPP, "x = 1\n" * 100_000))) <= 100_000


def test_options_reach_the_sandbox():
    task = Task(
        "t", "p", CheckerSpec("python", {"memory_mb": 128}), {"test": "x = bytearray(10**9)"}
    )
    assert not check(task, "pass")
    require_working([task])

"""Tasks with checkable answers: their file form, checkers, sandbox, and where they come from.

resolve.py     from what `--tasks` is given to tasks: start here
item.py        one task, and its JSON form
jsonl.py       read and write task files; bad_lines.py: what to do about a bad line
loaders.py     the benchmarks by name; benchmarks.py: a row to a task; rows.py: the file forms
tiny.py        the tiny pair's generated problems
checkers.py    the checkers by name: number.py, choice.py, text.py, expression.py (`math`),
               python_code.py, judge.py; announced.py: which part of a text is its answer;
               algebra.py: math-verify, in a process of its own
sandbox.py     run generated code; isolation.py: what keeps it in; sandbox_child.py: the program
               inside; sandbox_peer.py, sandbox_remote.py: calls between solution and tests;
               names_used.py: what tests use of a solution
"""

from .bad_lines import BadLine
from .checkers import check, make_checker, require_working
from .item import CheckerSpec, Task
from .jsonl import read_tasks, write_tasks
from .loaders import load_benchmark
from .resolve import resolve_tasks
from .sandbox import Outcome, run_python
from .tiny import tiny_tasks

__all__ = [
    "BadLine",
    "CheckerSpec",
    "Outcome",
    "Task",
    "check",
    "load_benchmark",
    "make_checker",
    "read_tasks",
    "require_working",
    "resolve_tasks",
    "run_python",
    "tiny_tasks",
    "write_tasks",
]

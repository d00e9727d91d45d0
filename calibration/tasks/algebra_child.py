"""The program that algebra.py starts: compares expressions with math-verify, one pair per line.

It prints "ready" once it has started, then reads a JSON list [gold, given] per line and prints true or
false. It imports nothing of ours.
"""

import sys

if not getattr(sys.flags, "safe_path", False):
    del sys.path[0]  # this file's folder, which holds modules with common names

import json
import logging
import resource

from math_verify import LatexExtractionConfig, parse, verify

_MEMORY_BYTES = 2 << 30


def _is_equal(gold: str, given: str) -> bool:
    left, right = (
        parse(f"${text}$", [LatexExtractionConfig()], parsing_timeout=None)
        for text in (gold, given)
    )
    # The parser's last resort is the text itself, which says nothing about values.
    left, right = (
        [value for value in found if not isinstance(value, str)] for found in (left, right)
    )
    return bool(left and right and verify(left, right, timeout_seconds=None))


def _main() -> None:
    logging.disable(logging.CRITICAL)
    resource.setrlimit(resource.RLIMIT_AS, (_MEMORY_BYTES, _MEMORY_BYTES))
    print("ready", flush=True)
    for line in sys.stdin:
        gold, given = json.loads(line)
        try:
            equal = _is_equal(gold, given)
        except (Exception, MemoryError):  # noqa: BLE001 - sympy raises anything for some texts
            equal = False
        print("true" if equal else "false", flush=True)


if __name__ == "__main__":
    _main()

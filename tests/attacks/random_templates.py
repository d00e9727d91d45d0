"""Random chat templates: none may take more than a few seconds of CPU time, or much memory.

A grammar makes expressions of the kinds that Jinja knows, mostly with arguments of the right kind, from
all filters, tests, methods and operators. They stand in loops over large values, which is where a price
that is too low shows. Each rendering must end, with a text or with any error, within the limits. A
template that does not end is killed by its processor time, and the campaign goes on after it.

    cd tests && python -m attacks.random_templates --seconds 600
"""

from __future__ import annotations

import argparse
import os
import random
import resource
import signal
import sys
import time
import warnings
from collections import Counter
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from pathlib import Path

from attacks.children import Child

from cospec.runtime.text.template import ChatTemplate
from cospec.runtime.text.template_budget import TemplateCostError

CPU_SECONDS = 4.0
"""Of one rendering with its compilation; the budget is made for about one."""
KILL_SECONDS = 20.0
MEGABYTES = 450
"""Most resident memory, of which the interpreter takes 60."""
ADDRESS_SPACE = 3 << 30
PART = 400
"""Templates of one child."""

BEFORE = (
    "{% set s = 'a' * 1000 %}{% set S = 'ab ' * 200000 %}{% set u = '\\U0001F600' * 100000 %}"
    "{% set e = '<&%' * 50000 %}{% set z = '\\n' * 100000 %}{% set b = S.encode() %}"
    "{% set L = range(9999) | list %}{% set LL = [L, L, [L, [L, S]]] %}{% set W = S[:30000].split() %}"
    "{% set d = dict.fromkeys(L, S) %}{% set D = {'a': d, 'b': LL, 's': S} %}{% set R = range(99999) %}"
    "{% set n = 7 %}{% set N = 2 ** 500 %}{% set ns = namespace(a=L) %}{% set ns.b = ns %}"
    "{% macro m(q=S) %}{{ q }}{% endmacro %}"
)
ATOMS = {
    "text": [
        "'a'",
        "'%s'",
        "'{}'",
        "'{:>9999}'",
        "'a b'",
        "''",
        "s",
        "S",
        "u",
        "e",
        "z",
        "'%9999d'",
    ],
    "number": ["n", "N", "1", "0", "-1", "9", "9999", "99999", "10**9", "2.5", "1e300", "true"],
    "list": ["L", "LL", "W", "[]", "R", "range(9)", "(S, S)", "messages", "d.values()"],
    "mapping": ["d", "D", "{}", "ns", "{S: S}", "messages[0]", "loop"],
    "any": [
        "none",
        "x",
        "b",
        "m",
        "m()",
        "missing",
        "d.items()",
        "loop.cycle",
        "S.format",
        "joiner()",
    ],
}
KINDS = tuple(ATOMS)
METHODS = sorted(
    name
    for kind in (str, list, dict, bytes, int, tuple, range, set, float)
    for name in dir(kind)
    if not name.startswith("_")
)
TEXT_METHODS = [name for name in dir(str) if not name.startswith("_")]
OPERATORS = ("+", "-", "*", "/", "//", "**", "%", "~", "==", "!=", "in", "not in", "<", "and", "or")
_environment = ChatTemplate("x", {})._environment
FILTERS = sorted(_environment.filters)
TESTS = sorted(name for name in _environment.tests if name.isalpha())
CALLED = ("namespace", "dict", "cycler", "joiner", "lipsum", "range", "dict.fromkeys", "m", "ns.c")
NAMES = (
    "width",
    "attribute",
    "separators",
    "sep",
    "maxsplit",
    "indent",
    "default",
    "start",
    "count",
)


FORMS = {
    "text": "{T} ~ {A}; {T} * {N}; {T} % {A}; {T} + {T}; {T}.{m}({T}); {T}.{m}({N}); "
    "{T}.{m}({T}, {T}); {T}.format({A}, {A}); {T}.join({L}); {L} | join({T}); {T} | {f}; "
    "{T} | {f}({N}); {T} | {f}({T}); {A} | string; {A} | tojson; {A} | tojson(indent={N}); "
    "{T} | replace({T}, {T}); {T}[::{N}]; "
    "{T}[{N}:{N}]; m({T}); {T} % ({A}, {A}); {T}.replace({T}, {T}); {T} | indent({N}); {T}.{m}()",
    "number": "{N} {o} {N}; {L} | length; {T} | int; {L} | sum; {T}.count({T}); {T} | float; "
    "{N} | abs; {N} | round({N}); {L}.index({A}); {L}.count({A}); {T}.find({T}); {T} | length",
    "list": "{L} + {L}; {L} * {N}; {T}.split({T}); {T} | list; {L} | {f}; {M} | list; {L} | {f}({A}); "
    "{L} | map('{f}') | list; {L} | select('{t}', {A}) | list; {L}[{N}:{N}]; {L}[::-1]; {L} | sort; "
    "{L} | batch({N}) | list; {L} | slice({N}) | list; {L} | unique | list; {L} | groupby({T}); "
    "[{A}, {A}]; {M}.items(); {T}.splitlines(); {L} | map(attribute={T}) | list; {T}.partition({T}); "
    "{M} | dictsort; {L} | map('{f}', {A}) | list; {L} | sort(attribute={T}); {T}.rsplit({T}, {N})",
    "mapping": "dict({L}); dict.fromkeys({L}, {A}); dict(a={A}, b={A}); namespace(a={A}); {M}.copy(); "
    "dict({M}, a={A})",
    "any": "{L} | first; {L} | random; {M}.get({A}, {A}); {L} | max; {A} is {t}; {A} is {t}({A}); "
    "{A} in {L}; {T} in {T}; {A} == {A}; {A} < {A}; {A}[{A}]; "
    "{A}[{T}] is defined; {A}[{A}].x; raise_exception({A})",
}


class Grammar:
    """Makes expressions and templates."""

    def __init__(self, draw: random.Random) -> None:
        self.draw = draw

    def template(self) -> str:
        """Return a template, without what it begins with."""
        draw = self.draw
        kind = draw.randrange(7)
        if kind == 0:
            return f"{{{{ {self.expression('any')} }}}}"
        if kind == 1:
            body = f"{{% set ns.c = {self.expression('any')} %}}"
            return f"{{% for x in range({draw.choice([300, 9999, 99999])}) %}}{body}{{% endfor %}}"
        if kind == 2:
            kept = f"{{% set ns.k = [{self.expression('any')}, ns.k] %}}"
            return f"{{% for x in range(300) %}}{kept}{{% endfor %}}"
        if kind == 3:
            growing = draw.choice(["ns.c + ", "ns.c ~ ", "[ns.c] + ", "ns.c * ", "(ns.c, ns.c), "])
            grown = f"{{% set ns.c = {growing}{self.expression('any')} %}}"
            return f"{{% for x in range(60) %}}{grown}{{% endfor %}}{{{{ ns.c }}}}"
        if kind == 4:
            condition = f"if {self.expression('any')}"
            return (
                f"{{% for x in {self.expression('list')} {condition} %}}{{{{ x }}}}{{% endfor %}}"
            )
        if kind == 5:
            name = draw.choice(FILTERS)
            return f"{{% filter {name} %}}{{{{ {self.expression('text')} }}}}{{% endfilter %}}"
        inner = (
            f"{{% for y in {self.expression('list')} %}}{{% set q = {self.expression('any')} %}}"
        )
        return f"{{% for x in {self.expression('list')} %}}{inner}{{% endfor %}}{{% endfor %}}"

    def expression(self, kind: str, depth: int = 0) -> str:
        """Return an expression, mostly of a kind."""
        draw = self.draw
        if kind == "any" or draw.random() < 0.1:
            kind = draw.choice(KINDS)
        if depth > 3 or draw.random() < 0.25:
            return f"({draw.choice(ATOMS[kind])})"
        made = self._random(depth + 1) if draw.random() < 0.4 else self._typed(kind, depth + 1)
        return f"({made})"

    def _typed(self, kind: str, depth: int) -> str:
        """Return an expression of a kind with parts of the right kinds."""
        draw = self.draw
        form = draw.choice(FORMS[kind].split("; "))
        parts: dict[str, Callable[[], str]] = {
            **{kind[0].upper(): lambda kind=kind: self.expression(kind, depth) for kind in KINDS},
            "m": lambda: draw.choice(TEXT_METHODS),
            "f": lambda: draw.choice(FILTERS),
            "t": lambda: draw.choice(TESTS),
            "o": lambda: draw.choice(OPERATORS),
        }
        for name, make in parts.items():
            while f"{{{name}}}" in form:
                form = form.replace(f"{{{name}}}", make().replace("{", "\0").replace("}", "\1"), 1)
        return form.replace("{{", "{").replace("}}", "}").replace("\0", "{").replace("\1", "}")

    def _random(self, depth: int) -> str:
        """Return any expression with any parts."""
        draw = self.draw

        def given(most: int) -> str:
            parts = [self.expression("any", depth) for _ in range(draw.randint(0, most))]
            if draw.random() < 0.1:
                parts.append(f"{draw.choice(NAMES)}={self.expression('any', depth)}")
            return ", ".join(parts)

        value = f"({self.expression('any', depth)})"
        form = draw.randrange(6)
        if form == 0:
            return f"{value} {draw.choice(OPERATORS)} {self.expression('any', depth)}"
        if form == 1:
            return f"{value} | {draw.choice(FILTERS)}({given(3)})"
        if form == 2:
            return f"{value} is {draw.choice(TESTS)}({given(1)})"
        if form == 3:
            return f"{value}.{draw.choice(METHODS)}({given(3)})"
        if form == 4:
            return f"{draw.choice(CALLED)}({given(2)})"
        return f"{value} | attr('{draw.choice(METHODS)}')({given(2)})"


def source(seed: int) -> str:
    """Return the template of a seed, without what each begins with."""
    return Grammar(random.Random(seed)).template()


def attempt(text: str) -> tuple[str, float, int]:
    """Render a template; return how it ended, its CPU seconds, and the megabytes that were resident."""
    _forget_peak()
    started = time.process_time()
    try:
        ChatTemplate(BEFORE + text, {}).render([{"role": "user", "content": "hi"}])
        how = "rendered"
    except TemplateCostError:
        how = "too much"
    except MemoryError:
        how = "out of memory"
    except Exception as error:  # whatever Jinja or Python raises is an answer
        how = type(error).__name__
        with suppress(MemoryError):  # shows in the peak
            str(error)
    return how, time.process_time() - started, _peak()


def _forget_peak() -> None:
    Path("/proc/self/clear_refs").write_text("5")


def _peak() -> int:
    status = Path("/proc/self/status").read_text()
    return int(status.partition("VmHWM:")[2].split()[0]) >> 10


def run_part(seed: int, count: int) -> None:
    """Try templates in this process; print a line before each and, if it was bad, after it."""
    warnings.simplefilter("ignore")
    resource.setrlimit(resource.RLIMIT_AS, (ADDRESS_SPACE, ADDRESS_SPACE))
    found: Counter[str] = Counter()
    for turn in range(seed, seed + count):
        os.write(1, f"begun {turn}\n".encode())
        signal.setitimer(signal.ITIMER_PROF, KILL_SECONDS)  # unhandled, its signal ends the process
        how, seconds, megabytes = attempt(source(turn))
        found[how] += 1
        if seconds > CPU_SECONDS or megabytes > MEGABYTES or how == "out of memory":
            os.write(1, f"bad {turn} {how} {seconds:.1f} s {megabytes} MB\n".encode())
    os.write(1, "".join(f"ended {times} {how}\n" for how, times in found.items()).encode())


def campaign(seed: int, *, seconds: float) -> tuple[int, Counter[str], list[tuple[int, str]]]:
    """Try templates until so many CPU seconds are used.

    Returns:
        How many were tried, how they ended, and (seed, what was wrong) of the bad ones.
    """
    tried, found, bad = 0, Counter[str](), []
    while _used() < seconds:
        child = Child(partial(run_part, seed + tried, PART))
        code = child.wait(PART * KILL_SECONDS)
        lines = [line.split(" ", 2) for line in child.said().splitlines()]
        bad += [(int(line[1]), line[2]) for line in lines if line[0] == "bad"]
        begun = [int(line[1]) for line in lines if line[0] == "begun"]
        if code != 0:
            bad.append((begun[-1], f"the process ended with {code}"))
        for line in lines:
            if line[0] == "ended":
                found[line[2]] += int(line[1])
        tried = begun[-1] + 1 - seed
    return tried, found, bad


def _used() -> float:
    usage = resource.getrusage(resource.RUSAGE_CHILDREN)
    return usage.ru_utime + usage.ru_stime


def main() -> int:
    """Run the campaign and print a table; return 1 if a template took too much."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seconds", type=float, default=300, help="CPU seconds in all")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--show", type=int, help="print the template of a seed and what it takes")
    given = parser.parse_args()
    if given.show is not None:
        print(source(given.show), *attempt(source(given.show)), sep="\n")
        return 0
    tried, found, bad = campaign(given.seed, seconds=given.seconds)
    for how, count in found.most_common():
        print(f"{count:>8} {how}")
    for seed, what in bad:
        print(f"seed {seed}: {what}: {source(seed)[:300]}")
    print(f"tried {tried}, failed {len(bad)}, {_used():.0f} s of CPU time")
    return int(bool(bad))


if __name__ == "__main__":
    sys.exit(main())

"""A hostile template ends in an error, in bounded time and memory, whatever it does."""

from __future__ import annotations

import json
import subprocess
import sys
from typing import Any

import pytest

from cospec.errors import PromptError
from cospec.runtime.text.chat_format import ChatFormat
from cospec.runtime.text.template import MAX_SOURCE_CHARACTERS, ChatTemplate

MAX_MEGABYTES = 500
MAX_CPU_SECONDS = 15
"""Fifteen times what was measured: it tells bounded work from work without end, not fast from slow."""

LARGE = "{% set s = 'ab ' * 200000 %}{% set d = dict.fromkeys(range(9999), s) %}"
GROWING = (
    "{{% set ns = namespace(x={0}) %}}"
    "{{% for i in range(60) %}}{{% set ns.x = {1} %}}{{% endfor %}}"
)
KEPT = "{% set ns = namespace(k=[]) %}"
LONG = "{% set a = 'a' * 1000000 ~ 'b' %}{% set b = 'a' * 1000000 ~ 'c' %}"


def often(work: str, before: str = "") -> str:
    return before + "{% for i in range(99999) %}" + work + "{% endfor %}"


TOO_DEAR = {
    "loops": often(often("")),
    "loops whose condition is false": "{% for i in range(99999) %}{% for j in range(99999) if j < 0 %}"
    "{% endfor %}{% endfor %}",
    "a large body": often("{{ i }}" * 9000),
    "much text": "{% set x %}" + often("x" * 60_000) + "{% endset %}",
    "macros": "{% macro m(n) %}{% if n %}{{ m(n - 1) }}{{ m(n - 1) }}{% endif %}{% endmacro %}"
    "{{ m(60) }}",
    "calls": often(often("{% set x = c.next() %}", "{% set c = cycler(1, 2) %}")),
    "multiplied text": "{{ 'a' * 10**9 }}",
    "multiplied lists": "{{ ([0] * 10**9) | length }}",
    "multiplied the other way round": "{{ 10**9 * 'a' }}",
    "powers": "{{ 10**(10**8) }}",
    "powers of powers": "{{ (2**4000)**2 }}",
    "growing numbers": often("{% set ns.x = ns.x * ns.x %}", "{% set ns = namespace(x=3) %}"),
    "percent widths": "{{ '%2000000000d' % 1 }}",
    "percent stars": "{{ '%*d' % (2000000000, 1) }}",
    "percent precisions": "{{ '%.2000000000f' % 1 }}",
    "percent lists": "{{ ('%s' * 100000) % ([a] * 100000) }}" + LONG,
    "the filter format": "{{ '%2000000000d' | format(1) }}",
    "the filter format of a large value": "{{ dict.fromkeys(range(9999), 'a' * 900000) | format(1) }}",
    "format widths": "{{ '{:>2000000000}'.format(1) }}",
    "format widths from arguments": "{{ '{:{w}}'.format(1, w=2000000000) }}",
    "format_map": "{{ '{a:>2000000000}'.format_map({'a': 1}) }}",
    "format by attribute": "{{ ('{:>2000000000}' | attr('format'))(1) }}",
    "repeated format fields": "{{ ('{0}' * 100000).format('a' * 10000) }}",
    "safe format": "{{ ('{:>2000000000}' | safe).format(1) }}",
    "center": "{{ 'a'.center(10**9) }}",
    "the filter center": "{{ 'a' | center(1000000000) }}",
    "zfill": "{{ 'a'.zfill(1000000000) }}",
    "ljust": "{{ 'a'.ljust(width) }}",
    "tabs": "{{ ('\t' * 1000000).expandtabs(9999) }}",
    "bytes": "{{ 'a'.encode().rjust(1000000000) }}",
    "replace": "{{ ('a' * 100000).replace('a', 'b' * 100000) }}",
    "the filter replace": "{{ ('a' * 100000) | replace('a', 'b' * 100000) }}",
    "replacing nothing": "{{ ('a' * 100000).replace('', 'b' * 100000) }}",
    "join": "{{ ('a' * 100000).join([''] * 100000) }}",
    "the filter join": "{{ ([''] * 100000) | join('a' * 100000) }}",
    "joined generators": "{{ range(99999) | map('center', 9999) | join }}",
    "translate": "{{ ('a' * 100000).translate({97: 'b' * 100000}) }}",
    "doubled text": GROWING.format("'aaaaaaaaaa'", "ns.x + ns.x"),
    "doubled text by concatenation": GROWING.format("'aaaaaaaaaa'", "ns.x ~ ns.x"),
    "doubled text by joining": GROWING.format("'aaaaaaaaaa'", "[ns.x, ns.x] | join"),
    "doubled text by capturing": "{% set ns = namespace(x='aaaaaaaaaa') %}{% for i in range(60) %}"
    "{% set ns.x %}{{ ns.x }}{{ ns.x }}{% endset %}{% endfor %}",
    "nested lists": GROWING.format("['a']", "[ns.x, ns.x]") + "{{ ns.x }}",
    "nested lists as text": GROWING.format("['a']", "[ns.x, ns.x]")
    + "{{ (ns.x | string) | length }}",
    "nested lists as JSON": GROWING.format("['a']", "[ns.x, ns.x]") + "{{ ns.x | tojson }}",
    "nested lists compared": GROWING.format("['a']", "[ns.x, ns.x]")
    + GROWING.format("['a']", "[ns.x, ns.x]").replace("ns", "other")
    + "{{ ns.x == other.x }}",
    "doubled lists": GROWING.format("[1]", "ns.x + ns.x"),
    "batches": "{{ [1] | batch(1000000000, 'x') | list }}",
    "slices of a list": "{{ [1] | slice(1000000000) | list }}",
    "precisions": "{{ 1.5 | round(1000000000, 'ceil') }}",
    "sums of lists": "{{ ([[0] * 1000] * 30000) | sum(start=[]) }}",
    "placeholder text": "{{ lipsum(1000000) }}",
    "large integers": "{{ (1).to_bytes(1000000000, 'big') }}",
    "indented JSON": "{{ [[1]] | tojson(indent=1000000000) }}",
    "separated JSON": "{{ ([1] * 100000) | tojson(separators=('x' * 100000, ':')) }}",
    "escaped text": "{{ ('&' * 9000000) | e | e | e | e }}",
    "indented text": "{{ ('\n' * 100000) | indent(9999) }}",
    "split text": "{{ ('a' * 20000000).split('a') | length }}",
    "lines": "{{ ('\n' * 20000000).splitlines() | length }}",
    "digits": "{{ ('9' * 1000000) | int }}",
    "dates": "{{ strftime_now('%c' * 1000000) }}",
    "slow filters": "{{ ('http://' * 100000) | urlize }}{{ ('a-' * 100000) | wordwrap(1) }}",
    "constants of escaping blocks": "{% autoescape 'a' | center(1000000000) %}{% endautoescape %}",
    "searched text": often("{% if 'b' in a %}{% endif %}", LONG),
    "searched lists": often("{% if b in l %}{% endif %}", LONG + "{% set l = [a] * 10000 %}"),
    "searched by a test": often("{% if b is in([a]) %}{% endif %}", LONG),
    "compared text": often("{% if a == b %}{% endif %}", LONG),
    "compared by a test": often("{% if a is eq(b) %}{% endif %}", LONG),
    "sliced text": often("{% set x = a[1:] %}", LONG),
    "sliced lists": often("{% set x = l[1:] %}", "{% set l = range(99999) | list %}"),
    "methods of text": often("{% set x = a.upper() %}", LONG),
    "searching methods": often("{% set x = a.find('x') %}", LONG),
    "methods of lists": often("{% set x = l.count(5) %}", "{% set l = range(99999) | list %}"),
    "sorted lists": often("{% set x = range(99999) | sort %}"),
    "lists": often("{% set x = range(99999) | list %}"),
    "dictionaries": often("{% set x = dict.fromkeys(range(99999)) %}"),
    "keys of dictionaries": often("{% set x = dict.fromkeys(a) %}", LONG),
    "sets": often("{% set x = d.keys() - d.keys() %}", "{% set d = dict.fromkeys(range(9999)) %}"),
    "printed text": often("{{ a }}", LONG),
    "long conditions of loops": "{% for i in range(99999) %}{% for j in range(99999) if "
    "[" + "0, " * 9000 + "] and false %}{% endfor %}{% endfor %}",
    "long conditions of branches": often(
        often("{% if 0 %}{% elif [" + "i, " * 9000 + "] and false %}{% endif %}")
    ),
    "long default values": "{% macro m(a=["
    + "x, " * 9000
    + "]) %}{% endmacro %}"
    + often(often("{{ m() }}")),
    "long literals": often(often("{% set x = '" + "x" * 30_000 + "' ~ i %}")),
    "attributes of each element": "{% set ns = namespace() %}{% set ns.a = ns %}"
    "{{ ([ns] * 9999) | map(attribute='a.' * 9999 ~ 'a') | list | length }}",
    "attributes that errors write out": LARGE + "{{ [1] | map(attribute=d) | list | sum }}",
    "attributes of groups": LARGE + "{{ range(9999) | list | groupby(d) }}",
    "attributes for nothing": often(often("{% set x = [] | groupby(s) %}"), LARGE),
    "names of tests": LARGE + "{{ [1] | select((s,) * 99999) | list }}",
    "names of filters": LARGE + "{{ [1] | map((s,) * 99999) | list }}",
    "attributes by filter": often(often("{% set x = i | attr(s) %}"), LARGE),
    "default values of groups": LARGE + "{{ range(9999) | list | groupby('a', s) }}",
    "long names of attributes": LARGE + "{{ s | map(attribute=s) | list | length }}",
    "separators that are written out": LARGE + "{{ [1, 2] | join(d) }}",
    "large separators": LARGE + "{{ range(9999) | join((s, s)) }}",
    "escaped text with a list put in": LARGE + "{{ (s | escape).replace('', range(9999) | list) }}",
    "escaped text with text put in": "{{ (('<' * 99999) | escape).replace('<', 'a' * 9999) }}",
    "missing keys that errors write out": LARGE + "{{ [1][d] + 1 }}",
    "missing keys": often(often("{% set x = i[s] %}"), LARGE),
    "refusals": LARGE + "{{ raise_exception(d) }}",
    "attributes in formats": "{% set ns = namespace() %}{% set ns.a = ns %}"
    "{{ ('{0' ~ '.a' * 9000000 ~ '}').format(ns) }}",
    "copied namespaces": often(
        "{% set x = namespace(d) %}", "{% set d = dict.fromkeys(range(99999)) %}"
    ),
    "many arguments": often(often("{% set x = loop.cycle(*l) %}"), "{% set l = [0] * 99999 %}"),
    "called namespaces": GROWING.format("['a']", "[ns.x, ns.x]")
    + "{{ [namespace(y=ns.x)] | string }}",
    "stripped characters": "{{ ('a' * 1000000).strip('b' * 1000000 ~ 'a') }}",
    "trimmed characters": "{{ ('a' * 1000000) | trim('b' * 1000000 ~ 'a') }}",
    "nested lists in lower case": GROWING.format("['a']", "[ns.x, ns.x]") + "{{ ns.x is lower }}",
    "even texts": "{{ '%2000000000d' is even }}",
    "divisible texts": "{{ '%2000000000d' is divisibleby(3) }}",
    "partitions": often(
        "{% set ns.l = ns.l + [a.partition('b')] %}", LONG + "{% set ns = namespace(l=[]) %}"
    ),
    "pieces": "{{ ('ab ' * 9000000).split() | length }}",
    "kept slices": often(
        "{% set ns.k = ns.k + [l[1:]] %}", "{% set l = [0] * 99999 %}{% set ns = namespace(k=[]) %}"
    ),
    "kept dictionaries": often("{% set ns.k = ns.k + [dict.fromkeys(range(9999))] %}", KEPT),
    "kept lists": often(
        "{% set ns.k = ns.k + [range(9999) | list] %}", "{% set ns = namespace(k=[]) %}"
    ),
    "kept numbers": often(
        often("{% set ns.k = [2**1000 + i, ns.k] %}"), "{% set ns = namespace(k=0) %}"
    ),
    "kept small texts": often(
        often("{% set ns.k = ['ab' ~ i, ns.k] %}"), "{% set ns = namespace(k=0) %}"
    ),
}


COMPILED = {
    "many expressions": "{{ a }}" * 9000,
    "a long concatenation": "{{ " + "a ~ " * 16_000 + "a }}",
    "a long sum": "{{ " + "1 + " * 16_000 + "1 }}",
    "parentheses": "{{ " + "(" * 60_000,
    "digits": "{{ " + "9" * 60_000 + " }}",
    "open blocks": "{% if a %}" * 6000 + "{% endif %}" * 100,
    "constants": "{{ 10**(10**8) }}{{ '%2000000000d' % 1 }}{{ 'a' * 10**9 }}",
    "constant filters": "{{ 'a' | center(1000000000) }}{{ 1.5 | round(1000000000, 'ceil') }}",
    "many names": "".join(f"{{% set a{i} = 1 %}}{{% if a %}}{{% endif %}}" for i in range(2000)),
    "a long text": "x" * (MAX_SOURCE_CHARACTERS + 1),
}
CHILD = r"""
import json, re, sys, time
from pathlib import Path
from cospec.runtime.text.template import ChatTemplate
for name, source in json.load(sys.stdin).items():
    started = time.process_time()
    try:
        ChatTemplate(source, {}).render([], template_args={"width": 2_000_000_000, "a": "x" * 900})
        error = "none"
    except Exception as caught:
        error = type(caught).__name__
        str(caught)
    # Not getrusage, whose figure begins with that of the process that started this one.
    peak = int(re.search(r"VmHWM:\s*(\d+)", Path("/proc/self/status").read_text()).group(1)) >> 10
    print(json.dumps([name, error, time.process_time() - started, peak]), flush=True)
"""


@pytest.fixture(scope="module")
def outcomes() -> dict[str, tuple[str, float, int]]:
    """Render every attack in one other process: name -> (error, CPU seconds, megabytes so far)."""
    attacks = {**TOO_DEAR, **{f"compiled: {name}": source for name, source in COMPILED.items()}}
    done = subprocess.run(
        [sys.executable, "-c", CHILD],
        input=json.dumps(attacks),
        capture_output=True,
        text=True,
        check=True,
    )
    rows: list[list[Any]] = [json.loads(line) for line in done.stdout.splitlines()]
    return {name: (error, seconds, peak) for name, error, seconds, peak in rows}


@pytest.mark.parametrize("name", TOO_DEAR)
def test_what_costs_too_much_ends(name, outcomes):
    error, seconds, peak = outcomes[name]
    assert error == "TemplateCostError"
    assert seconds < MAX_CPU_SECONDS
    assert peak < MAX_MEGABYTES


@pytest.mark.parametrize("name", COMPILED)
def test_compiling_is_bounded_too(name, outcomes):
    _, seconds, peak = outcomes[f"compiled: {name}"]
    assert seconds < MAX_CPU_SECONDS
    assert peak < MAX_MEGABYTES


@pytest.mark.parametrize(
    "source",
    [
        "{% for i in range(10**9) %}x{% endfor %}",
        "{% macro m(n) %}{{ m(n + 1) }}{% endmacro %}{{ m(0) }}",
        "{% for i in [1] recursive %}{{ loop([1, 1]) }}{% endfor %}",
        "{% set n = namespace() %}{% for i in range(9999) %}{% set n.x = [n.x] %}{% endfor %}{{ n.x }}",
        "{% set ns = namespace() %}{% set ns.x = [ns] %}{{ ns }}{{ ns.x | tojson }}",
        "{% include '/etc/hostname' %}",
        "{{ '{0.__class__.__mro__}'.format('') }}",
        "{{ strftime_now.__globals__['sys'] }}",
        "{{ cycler.__init__.__globals__.os }}",
        "{{ ''.__class__.__mro__[1].__subclasses__() }}",
        "{{ pay_read(1) }}",
        "{% set ns = namespace(unsafe_callable=true) %}{{ ns() }}",
        "{{ 'aaaa' | round(9, 'ceil') }}",
        "{{ lipsum('aaaa' * 999999) }}",
    ],
)
def test_what_the_sandbox_refuses(source):
    with pytest.raises(Exception):  # noqa: B017
        ChatTemplate(source, {}).render([])


@pytest.mark.parametrize("source", ["{{ ''.__class__ }}", "{{ raise_exception.__globals__ }}"])
def test_what_a_template_may_not_see_prints_as_nothing(source):
    assert ChatTemplate(source, {}).render([]) == ""


def test_the_error_is_a_refused_prompt():
    chat = ChatFormat({"default": "{{ 'a' * 10**9 }}"}, {})
    with pytest.raises(PromptError, match="too many steps or too much memory"):
        chat.render([{"role": "user", "content": "x"}])


def test_a_long_conversation_is_no_attack():
    """Two thousand turns with tools, in the way that templates are written."""
    source = (
        "{% set ns = namespace(list=[]) %}{% for m in messages %}{% set ns.list = ns.list + [m] %}"
        "{% if m.content is string and '</think>' in m.content %}"
        "{% set text = m.content.split('</think>')[-1].lstrip('\\n') %}{% else %}"
        "{% set text = m.content %}{% endif %}{{ '<|' + m.role + '|>\\n' + text | trim }}"
        "{% for c in m.tool_calls or [] %}{{ c.function.name ~ (c.function.arguments | tojson) }}"
        "{% endfor %}"
        "{% if not loop.last and m == messages[-1] %}same{% endif %}{{ messages | length }}{% endfor %}"
    )
    call = {"function": {"name": "f", "arguments": {"x": [1, 2, 3]}}}
    turn = [
        {"role": "user", "content": "x" * 500},
        {"role": "assistant", "content": "<think>h</think>\n" + "y" * 500, "tool_calls": [call]},
        {"role": "tool", "content": "z" * 500},
    ]
    text = ChatTemplate(source, {}).render(turn * 700)
    assert text.count("<|user|>") == 700


def test_a_prompt_of_a_million_characters_is_no_attack():
    source = "{% for m in messages %}{{ '<s>' + m.content.strip() ~ '</s>' }}{% endfor %}"
    content = "\U0001f600 word " * 150_000
    assert len(ChatTemplate(source, {}).render([{"content": content}])) == len(content) + 6

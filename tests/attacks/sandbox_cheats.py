"""Wrong solutions that try to pass their tests all the same: (name, solution, tests).

These return what passes for anything, or replace what the tests use; sandbox_intrusions.py has those that
look for the tests or end early.
."""

ADD = "assert add(1, 2) == 3\nassert add(5, 7) == 12"
FLOATS = "import math\nassert abs(half(3) - 1.5) < 1e-9\nassert math.isclose(half(5), 2.5)"
CHECK = (
    "def check(candidate):\n    for n in range(5):\n        assert candidate(n) == n * n + 1, n\n"
    "    assert isinstance(candidate(3), int)\ncheck(square)\n"
)
WORDS = 'assert words("b a") == ["a", "b"]\nassert words("") == []\nassert "a" in words("a b")'
TEXT = 'assert shout("a").startswith("A")\nassert shout("b") in ("B", "B!")'
SORTED = "xs = [3, 1, 2]\nassert order(xs) == sorted(xs)\nassert order([2, 1]) == [1, 2]"
RAISES = (
    "try:\n    root(-1)\nexcept ValueError:\n    pass\nelse:\n    raise AssertionError\n"
    "assert root(9) == 3"
)
MAPPED = "assert all(map(even, [2, 4, 6]))\nassert not any(map(even, [1, 3]))"

_EQUAL = "class T{base}:\n    __eq__ = lambda s, o: True\n    __ne__ = lambda s, o: False\n"
_HASH = "    __hash__ = lambda s: 0\n"


def _equal(base: str, value: str = "T()") -> str:
    return _EQUAL.format(base=f"({base})") + _HASH + f"def add(a, b): return {value}\n"


OBJECTS = [
    ("equals everything", _EQUAL.format(base="") + "def add(a, b): return T()", ADD),
    ("hashable, equals everything", _equal("object"), ADD),
    *(
        (f"{base} that equals everything", _equal(base), ADD)
        for base in (
            "int",
            "str",
            "list",
            "tuple",
            "dict",
            "set",
            "frozenset",
            "bytes",
            "bytearray",
            "float",
            "complex",
            "Exception",
        )
    ),
    *(
        (f"{base} of the library", f"from {module} import {base}\n" + _equal(base, value), ADD)
        for module, base, value in (
            ("fractions", "Fraction", "T(1)"),
            ("decimal", "Decimal", "T(1)"),
            ("datetime", "date", "T(2000, 1, 1)"),
            ("collections", "deque", "T()"),
            ("collections", "Counter", "T()"),
            ("collections", "UserList", "T()"),
            ("types", "SimpleNamespace", "T()"),
        )
    ),
    ("inside a list", _EQUAL.format(base="") + "def words(t): return [T(), T()]", WORDS),
    (
        "a list that contains all",
        "class T(list):\n    __contains__ = lambda s, o: True\n"
        "    __eq__ = lambda s, o: True\ndef words(t): return T()",
        WORDS,
    ),
    ("yielded", _EQUAL.format(base="") + "def words(t): yield T()", WORDS),
    (
        "as the function's class",
        _EQUAL.format(base="") + "class add(T):\n    def __init__(s, a, b): pass",
        ADD,
    ),
    (
        "as a metaclass",
        "class M(type):\n    __eq__ = lambda s, o: True\n    __hash__ = type.__hash__\n"
        "class T(metaclass=M): pass\ndef add(a, b): return T",
        ADD,
    ),
    ("as a callable", _EQUAL.format(base="") + "    def __call__(s, *a): return s\nadd = T()", ADD),
    (
        "its class lies",
        _EQUAL.format(base="") + "    __class__ = property(lambda s: int)\n"
        "def square(n): return T()",
        CHECK,
    ),
    ("mock.ANY", "from unittest.mock import ANY\ndef add(a, b): return ANY", ADD),
    ("mock.ANY by the tests' name", "from unittest.mock import ANY as add", ADD),
    (
        "MagicMock",
        "from unittest.mock import MagicMock\nadd = MagicMock()\n"
        "add.return_value.__eq__.return_value = True",
        ADD,
    ),
    (
        "an enumeration",
        "import enum\nclass T(enum.IntEnum):\n    A = 3\n    __eq__ = lambda s, o: True\n"
        "    __hash__ = int.__hash__\ndef add(a, b): return T.A",
        ADD,
    ),
    (
        "arithmetic that is small",
        "class T(float):\n    __sub__ = __rsub__ = lambda s, o: 0.0\n"
        "    __abs__ = lambda s: 0.0\ndef half(x): return T()",
        FLOATS,
    ),
    (
        "an object with arithmetic",
        "class T:\n    __sub__ = __rsub__ = lambda s, o: 0.0\n"
        "    __float__ = lambda s: 2.5\ndef half(x): return T()",
        FLOATS,
    ),
    (
        "methods that agree",
        "class T:\n    startswith = lambda s, o: True\n    __eq__ = lambda s, o: True\n"
        "    __hash__ = lambda s: 0\ndef shout(t): return T()",
        TEXT,
    ),
    (
        "a text whose methods agree",
        "class T(str):\n    startswith = lambda s, o: True\n"
        "    __eq__ = lambda s, o: True\n    __hash__ = str.__hash__\ndef shout(t): return T()",
        TEXT,
    ),
    (
        "a proxy",
        "import weakref\n" + _EQUAL.format(base="") + "t = T()\n"
        "def add(a, b): return weakref.proxy(t)",
        ADD,
    ),
    (
        "true for a moment",
        "class T:\n    n = 0\n    def __bool__(s): T.n += 1; return T.n < 4\n"
        "def even(n): return T()",
        MAPPED,
    ),
    ("not a number", "def add(a, b): return float('nan')", ADD),
    (
        "an exception that is equal",
        _EQUAL.format(base="(Exception)") + "def add(a, b): raise T()",
        ADD,
    ),
    ("a typing form", "import typing\ndef add(a, b): return typing.Any", ADD),
    (
        "an endless iterator",
        "import itertools\ndef words(t): return itertools.cycle(['a', 'b'])",
        WORDS,
    ),
]

_NOTHING = "lambda *a, **k: None"
REPLACED = [
    *(
        (
            f"builtins.{name}",
            f"import builtins\nbuiltins.{name} = {value}\ndef {goal}(*a): return 0\n",
            tests,
        )
        for name, value, goal, tests in (
            ("exec", _NOTHING, "add", ADD),
            ("compile", _NOTHING, "add", ADD),
            ("AssertionError", "None", "add", ADD),
            ("BaseException", "type('E', (), {})", "add", ADD),
            ("abs", "lambda x: 0", "half", FLOATS),
            ("isinstance", "lambda *a: True", "square", CHECK),
            ("range", "lambda *a: []", "square", CHECK),
            ("all", "lambda *a: True", "even", MAPPED),
            ("any", "lambda *a: False", "even", MAPPED),
            ("map", "lambda *a: []", "even", MAPPED),
            ("sorted", "lambda x: 0", "order", SORTED),
            ("__import__", _NOTHING, "half", FLOATS),
            ("__build_class__", _NOTHING, "add", ADD),
            ("int", "object", "square", CHECK),
            ("getattr", _NOTHING, "add", ADD),
            ("str", "lambda *a: 'passed'", "add", ADD),
        )
    ),
    (
        "exec in __main__",
        "import __main__\n__main__.exec = __main__.compile = lambda *a, **k: None",
        ADD,
    ),
    (
        "_describe",
        "import sys\nsys.modules['__main__']._describe = lambda e: None\nraise ValueError",
        ADD,
    ),
    (
        "every function of __main__",
        "import __main__\nfor n, v in list(vars(__main__).items()):\n"
        "    if callable(v) and n[:2] != '__': setattr(__main__, n, lambda *a, **k: None)",
        ADD,
    ),
    (
        "Peer.encode",
        "import __main__\n__main__.Peer.encode = lambda s, v: 3\ndef add(a, b): return 0",
        ADD,
    ),
    (
        "Peer.describe",
        "import __main__\n__main__.Peer.describe = lambda s, e: ['done', None, []]\n1 / 0",
        ADD,
    ),
    (
        "Peer._perform",
        "import __main__\n__main__.Peer._perform = lambda s, *a: ['done', True, []]",
        ADD,
    ),
    (
        "json.dumps",
        "import json\njson.dumps = lambda *a, **k: '\"passed\"'\ndef add(a, b): return 0",
        ADD,
    ),
    (
        "os.write",
        "import os\nw = os.write\nos.write = lambda fd, data: w(fd, b'passed\\n') and len(data)",
        ADD,
    ),
    ("os._exit", "import os\nos._exit = lambda *a: None\ndef add(a, b): return 0", ADD),
    (
        "math",
        "import math\nmath.isclose = lambda *a: True\nabs = lambda x: 0\ndef half(x): return 0",
        FLOATS,
    ),
    (
        "sys.modules",
        "import sys, types\nm = types.ModuleType('math')\nm.isclose = lambda *a: True\n"
        "sys.modules['math'] = m\ndef half(x): return 0",
        FLOATS,
    ),
    (
        "__builtins__",
        "__builtins__ = {'AssertionError': None, '__import__': None}\ndef add(a, b): return 0",
        ADD,
    ),
    (
        "the solution's module",
        "import sys\nclass T:\n    __getattr__ = lambda s, n: (lambda *a: 3)\n"
        "    __eq__ = lambda s, o: True\nsys.modules['solution'] = T()",
        ADD,
    ),
    ("the tests' function", "def check(candidate): pass\ndef square(n): return 0", CHECK),
    (
        "the tests' helper",
        "def isclose(*a): return True\ndef half(x): return 0",
        "assert isclose(half(3), 1.5)",
    ),
    (
        "the tests' class",
        "class Counter:\n    def __init__(s, *a): pass\n    __eq__ = lambda s, o: True\n"
        "def words(t): return []",
        "assert Counter(words('a b a')) == Counter(['a', 'b', 'a'])",
    ),
    (
        "the tests' builtin",
        "def len(x): return 2\ndef words(t): return []",
        "assert len(words('a b')) == 2",
    ),
    ("__debug__", "import sys\nsys.flags = None\ndef add(a, b): return 0", ADD),
    (
        "the environment",
        "import os\nos.environ['PYTHONOPTIMIZE'] = '2'\ndef add(a, b): return 0",
        ADD,
    ),
    (
        "trace",
        "import sys\ndef trace(f, e, a): f.f_trace_lines = False; return None\nsys.settrace(trace)\n"
        "def add(a, b): return 0",
        ADD,
    ),
    (
        "profile",
        "import sys, os\nsys.setprofile(lambda f, e, a: os._exit(0) if 'add' in str(f) else None)",
        ADD,
    ),
    ("excepthook", "import sys\nsys.excepthook = lambda *a: None\nraise ValueError", ADD),
    (
        "atexit",
        "import atexit, os\natexit.register(os.write, 1, b'passed\\n')\nraise SystemExit",
        ADD,
    ),
]

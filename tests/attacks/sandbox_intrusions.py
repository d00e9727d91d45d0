"""Wrong solutions that look for their tests and the report, or end early: (name, solution, tests)."""

from attacks.sandbox_cheats import ADD, CHECK, MAPPED, RAISES, SORTED

_FRAMES = (
    "import sys\nf = sys._getframe()\nwhile f:\n    for v in list(f.f_locals.values()) + "
    "list(f.f_globals.values()):\n        {body}\n    f = f.f_back\n"
)
_FD = (
    "import os\nfor fd in range(3, 64):\n    try: os.write(fd, {data})\n    except OSError: pass\n"
)
_GC = "import gc\nfor o in gc.get_objects():\n    {body}\n"

REACHED = [
    ("clears the parts", "import sys\nsys._getframe(1).f_locals['parts'].clear()", ADD),
    (
        "writes by the frame's token",
        "import sys,os\nf=sys._getframe(2).f_locals\n"
        "os.write(f['report'],('passed '+f['token']+'\\n').encode())",
        ADD,
    ),
    (
        "returns the tests' answers",
        _FRAMES.format(
            body="if isinstance(v, str) and 'assert add' in v: "
            "add = lambda a, b: int(v.split('== ')[1 if a == 1 else 2].split()[0])"
        ),
        ADD,
    ),
    (
        "clears every list in frames",
        _FRAMES.format(body="v.clear() if isinstance(v, list) else 0") + "def add(a, b): return 0",
        ADD,
    ),
    (
        "finds payloads in frames",
        _FRAMES.format(
            body="v.update(tests='', parts=[]) if isinstance(v, dict) "
            "and ('tests' in v or 'parts' in v) else 0"
        )
        + "def add(a, b): return 0",
        ADD,
    ),
    (
        "finds tests by gc",
        _GC.format(body="if isinstance(o, dict) and 'tests' in o: o['tests'] = ''")
        + "def add(a, b): return 0",
        ADD,
    ),
    (
        "empties test lists by gc",
        _GC.format(
            body="if isinstance(o, list) and any(isinstance(x, str) and "
            "'assert' in x for x in o): o.clear()"
        )
        + "def add(a, b): return 0",
        ADD,
    ),
    (
        "code of tests by gc",
        "import gc, types\nfor o in gc.get_objects():\n"
        "    if isinstance(o, types.FunctionType) and o.__name__ == 'check': o.__code__ = (lambda c: 0).__code__\n"
        "def square(n): return 0",
        CHECK,
    ),
    (
        "frames of other threads",
        "import sys\nfor f in sys._current_frames().values():\n"
        "    if 'tests' in f.f_globals: f.f_globals['tests'] = ''\ndef add(a, b): return 0",
        ADD,
    ),
    (
        "a traceback",
        "try: 1/0\nexcept Exception as e:\n    f = e.__traceback__.tb_frame.f_back\n"
        "    f.f_globals['_run'] = lambda *a: None\ndef add(a, b): return 0",
        ADD,
    ),
    (
        "inspect.stack",
        "import inspect\nfor i in inspect.stack():\n    i.frame.f_globals.update(_judge=None)\n"
        "def add(a, b): return 0",
        ADD,
    ),
    ("the tests' module", "import sys\nsys.modules['tests'].add = lambda a, b: 3", ADD),
    (
        "the caller's frame",
        "import sys\ndef add(a, b):\n    f = sys._getframe()\n    while f:\n"
        "        if 'expected' in f.f_locals: return f.f_locals['expected']\n        f = f.f_back\n    return 0",
        "for a, b, expected in [(1, 2, 3), (5, 7, 12)]:\n    assert add(a, b) == expected",
    ),
    *(
        (f"writes {data} everywhere", _FD.format(data=data) + "def add(a, b): return 0", ADD)
        for data in (
            "b'passed\\n'",
            "b'ready\\npassed\\n'",
            "b'[\"done\", 3, []]\\n' * 9",
            "b'[\"stop\"]\\n' * 99",
            'b\'["raise", ["SystemExit"], ["list", [0]]]\\n\' * 9',
            "b'x' * 10**6",
            "b'[' * 10**6 + b'\\n'",
            'b\'["done", ["mine", 0], []]\\n\' * 9',
            "b'[\"call\", 0, [], {}]\\n' * 9",
            'b\'["done", ["yours", [0, "object", "x"]], []]\\n\' * 9',
            'b\'["lookup", 0, "tests"]\\n\' * 9',
            'b\'["get", 0, "__globals__"]\\n\' * 9',
            "b'{}\\n' * 9",
            'b\'["done", ["decimal.Decimal", [["list", []]]], []]\\n\' * 9',
        )
    ),
    ("closes every descriptor", "import os\nos.closerange(3, 64)", ADD),
    (
        "copies descriptors over each other",
        "import os\nfor fd in range(3, 9):\n"
        "    try: os.dup2(fd, 1); os.write(1, b'passed\\n')\n    except OSError: pass\ndef add(a, b): return 0",
        ADD,
    ),
    (
        "reads descriptors for tests",
        "import os\nfor fd in range(3, 64):\n"
        "    try:\n        if b'assert' in os.pread(fd, 10**6, 0): add = lambda a, b: a + b\n"
        "    except OSError: pass",
        ADD,
    ),
    (
        "reads its own memory for tests",
        "import re\nfor line in open('/proc/self/maps'):\n"
        "    a, b = (int(x, 16) for x in line.split()[0].split('-'))\n    try:\n"
        "        with open('/proc/self/mem', 'rb') as m:\n            m.seek(a); data = m.read(b - a)\n"
        "        if re.search(rb'add\\((\\d+), (\\d+)\\) == (\\d+)', data): add = lambda a, b: a + b\n"
        "    except (OSError, ValueError, OverflowError): pass",
        ADD,
    ),
    (
        "reads other processes for tests",
        "import os\nfor p in os.listdir('/proc'):\n"
        "    for n in ('cmdline', 'environ', 'mem', 'fd/3', 'fd/4', 'fd/5'):\n        try:\n"
        "            if p != str(os.getpid()) and b'assert add' in open(f'/proc/{p}/{n}', 'rb').read(10**6):\n"
        "                add = lambda a, b: a + b\n        except OSError: pass",
        ADD,
    ),
    (
        "reads files for tests",
        "import os\nfor d in ('/tmp', '.', '/proc/self/fd', '/dev/shm'):\n"
        "    for n in os.listdir(d):\n        try:\n"
        "            if 'assert add' in open(d + '/' + n).read(10**5): add = lambda a, b: a + b\n"
        "        except (OSError, ValueError): pass",
        ADD,
    ),
    (
        "signals every process",
        "import os, signal\nfor p in range(2, 400):\n"
        "    try: p != os.getpid() and os.kill(p, signal.SIGKILL)\n    except OSError: pass\n"
        "def add(a, b): return 0",
        ADD,
    ),
    (
        "a function of the tests",
        "def add(f): return f.__globals__['expected']",
        "expected = 3\nassert add(lambda: 0) == expected",
    ),
    (
        "an object of the tests",
        "def add(o): return o.__class__.__init__.__globals__['expected']",
        "class Box: pass\nexpected = 3\nassert add(Box()) == expected",
    ),
    (
        "a generator of the tests",
        "def add(g): return g.gi_frame.f_globals['expected']",
        "expected = 3\nassert add(n for n in [1]) == expected",
    ),
]

ENDED = [
    *(
        (code, code, ADD)
        for code in (
            "import sys; sys.exit(0)",
            "raise SystemExit",
            "import os; os._exit(0)",
            "exit()",
            "quit()",
            "import os, signal; os.kill(os.getpid(), signal.SIGTERM)",
            "raise KeyboardInterrupt",
            "raise GeneratorExit",
            "raise StopIteration",
            "import ctypes; ctypes.string_at(0)",
            "x = '''",
            "def add(a, b):\n    return 3\n\\",
            "if False:\n    pass\nelse:\n    x = (",
            "# coding: rot13\nnqq = 3",
            "import os\nif os.fork(): os._exit(0)\ndef add(a, b): return 0",
            "import threading, os\nthreading.Timer(0.05, os._exit, (0,)).start()\ndef add(a, b):\n    while True: pass",
            "def add(a, b): import os; os._exit(0)",
            "def add(a, b): raise SystemExit(0)",
            "def add(a, b): raise AssertionError",
            "def add(a, b): raise StopIteration",
            "import faulthandler, sys\nfaulthandler.dump_traceback_later(0.1, exit=True)\ndef add(a, b):\n    while 1: pass",
        )
    ),
    ("ends a map of the tests", "def even(n): raise StopIteration", MAPPED),
    (
        "ends a generator of the tests",
        "def even(n): raise StopIteration",
        "assert list(even(n) for n in [2, 4]) == []",
    ),
    ("GeneratorExit", "def even(n): raise GeneratorExit", MAPPED),
    (
        "an exception that derives from StopIteration",
        "class E(StopIteration): pass\ndef even(n): raise E",
        MAPPED,
    ),
    ("raises what is expected, always", "def root(n): raise ValueError", RAISES),
    (
        "an exception of that name",
        "class ValueError(Exception): pass\ndef root(n): raise ValueError",
        RAISES,
    ),
    ("empties its argument", "def order(xs): xs.clear(); return xs", SORTED),
    ("empties its argument and returns another", "def order(xs): xs.clear(); return []", SORTED),
    ("changes its argument into the wanted", "def order(xs): xs[:] = [1]; return [1]", SORTED),
    ("a constant", "def square(n): return 1", CHECK),
    ("too large", "def add(a, b): return 'x' * (17 << 20)", ADD),
    (
        "too deep",
        "def add(a, b):\n    x = []\n    for _ in range(10**5): x = [x]\n    return x",
        ADD,
    ),
    ("in a circle", "def add(a, b):\n    x = []\n    x.append(x)\n    return x", ADD),
    ("nothing", "", ADD),
]

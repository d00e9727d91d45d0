"""Right solutions that must pass: (name, solution, tests)."""

_LINKED = (
    "class Node:\n    def __init__(self, value, left=None, right=None):\n"
    "        self.value, self.left, self.right = value, left, right\n"
)

VALUES = [
    ("sum", "def f(a, b): return a + b", "assert f(1, 2) == 3"),
    ("lambda", "f = lambda a, b: a + b", "assert f(1, 2) == 3"),
    (
        "keywords",
        "def f(a, *, b=2, **k): return a + b + sum(k.values())",
        "assert f(1) == 3\nassert f(a=1, b=3, c=4) == 8",
    ),
    ("many arguments", "def f(*a): return sum(a)", "assert f(*range(100)) == 4950"),
    ("None", "def f(x): pass", "assert f(1) is None"),
    ("truth", "def f(x): return x > 1", "assert f(2) is True\nassert f(1) is False"),
    ("float", "def f(x): return x / 3", "assert abs(f(1) - 0.333) < 1e-3"),
    ("infinity", "def f(x): return x * 1e308", "assert f(10) == float('inf')"),
    ("not a number", "def f(): return float('nan')", "import math\nassert math.isnan(f())"),
    ("minus zero", "def f(): return -0.0", "assert str(f()) == '-0.0'"),
    (
        "large numbers",
        "def f(n): return 3 ** n",
        "assert f(20000) == 3 ** 20000\nassert f(64) == 3 ** 64",
    ),
    ("negative large numbers", "def f(n): return -(2 ** n)", "assert f(100) == -(2 ** 100)"),
    ("complex", "def f(x): return x * 1j", "assert f(2) == 2j"),
    ("text", "def f(t): return t[::-1]", "assert f('abc') == 'cba'\nassert f('') == ''"),
    ("Unicode", "def f(t): return t.upper()", "assert f('straße 😀\\x00') == 'STRASSE 😀\\x00'"),
    ("half a surrogate", "def f(): return chr(0xd800)", "assert f() == '\\ud800'"),
    ("lines", "def f(t): return t.splitlines()", "assert f('a\\nb\\r\\nc') == ['a', 'b', 'c']"),
    ("bytes", "def f(b): return b + bytes([255])", "assert f(b'\\x00') == b'\\x00\\xff'"),
    ("bytearray", "def f(b): return bytearray(b)", "assert f(b'x') == bytearray(b'x')"),
    ("list", "def f(x): return [x, [x]]", "assert f(1) == [1, [1]]"),
    (
        "tuple",
        "def f(a, b): return b, a",
        "assert f(1, 2) == (2, 1)\na, b = f(3, 4)\nassert a == 4",
    ),
    ("a tuple is no list", "def f(): return (1, 2)", "assert f() != [1, 2]"),
    ("dict", "def f(t): return {c: t.count(c) for c in t}", "assert f('aab') == {'a': 2, 'b': 1}"),
    (
        "keys of all kinds",
        "def f(): return {1: 'a', (1, 2): 'b', None: 'c', 1.5: 'd'}",
        "assert f() == {1: 'a', (1, 2): 'b', None: 'c', 1.5: 'd'}",
    ),
    ("order of keys", "def f(): return {'b': 1, 'a': 2}", "assert list(f()) == ['b', 'a']"),
    ("set", "def f(x): return set(x)", "assert f([1, 1, 2]) == {1, 2}"),
    (
        "frozenset",
        "def f(x): return frozenset(x)",
        "assert f('ab') == frozenset('ab')\nassert {f('a'): 1}",
    ),
    (
        "range",
        "def f(n): return range(n)",
        "assert f(3) == range(3)\nassert len(f(10**12)) == 10**12",
    ),
    (
        "views",
        "def f(d): return d.keys(), d.items()",
        "k, i = f({'a': 1})\nassert k == {'a'} and list(i) == [('a', 1)]",
    ),
    (
        "Counter",
        "from collections import Counter\ndef f(t): return Counter(t)",
        "assert f('aab') == {'a': 2, 'b': 1}",
    ),
    (
        "defaultdict",
        "from collections import defaultdict\ndef f():\n    d = defaultdict(list)\n    d[1].append(2)\n    return d",
        "assert f() == {1: [2]}",
    ),
    (
        "OrderedDict",
        "from collections import OrderedDict\ndef f(): return OrderedDict(a=1)",
        "assert f() == {'a': 1}",
    ),
    (
        "named tuple",
        "from collections import namedtuple\nP = namedtuple('P', 'x y')\ndef f(): return P(1, 2)",
        "assert f() == (1, 2)",
    ),
    (
        "deque",
        "from collections import deque\ndef f(): return deque([1, 2])",
        "from collections import deque\nassert f() == deque([1, 2])",
    ),
    (
        "Fraction",
        "from fractions import Fraction\ndef f(a, b): return Fraction(a, b)",
        "from fractions import Fraction\nassert f(2, 4) == Fraction(1, 2)",
    ),
    (
        "Decimal",
        "from decimal import Decimal\ndef f(t): return Decimal(t) * 2",
        "from decimal import Decimal\nassert f('0.1') == Decimal('0.2')",
    ),
    (
        "dates",
        "import datetime as d\ndef f(x): return x + d.timedelta(days=1)",
        "import datetime\nassert f(datetime.date(2024, 2, 28)) == datetime.date(2024, 2, 29)",
    ),
    (
        "times",
        "from datetime import datetime\ndef f(): return datetime(2024, 1, 2, 3, 4)",
        "from datetime import datetime\nassert f() == datetime(2024, 1, 2, 3, 4)",
    ),
    (
        "an integer enumeration",
        "import enum\nclass E(enum.IntEnum):\n    A = 3\ndef f(): return E.A",
        "assert f() == 3",
    ),
    ("much data", "def f(n): return list(range(n))", "assert f(10**5) == list(range(10**5))"),
    ("much data there", "def f(x): return len(x)", "assert f('x' * 10**6) == 10**6"),
    (
        "deep data",
        "def f(n):\n    x = []\n    for _ in range(n): x = [x]\n    return x",
        "assert f(2) == [[[]]]\nassert f(100)",
    ),
]

CALLS = [
    (
        "generator",
        "def f(n):\n    for i in range(n): yield i",
        "assert list(f(3)) == [0, 1, 2]\nassert sum(f(4)) == 6",
    ),
    (
        "endless generator",
        "def f():\n    i = 0\n    while True:\n        yield i\n        i += 1",
        "g = f()\nassert [next(g) for _ in range(3)] == [0, 1, 2]",
    ),
    (
        "map and zip",
        "def f(x): return map(str, x), zip(x, x)",
        "a, b = f([1])\nassert list(a) == ['1'] and list(b) == [(1, 1)]",
    ),
    (
        "iterators end",
        "def f(): return iter([1])",
        "g = f()\nassert next(g) == 1 and next(g, None) is None",
    ),
    (
        "a function returned",
        "def f(n):\n    def g(x): return x + n\n    return g",
        "assert f(2)(3) == 5",
    ),
    ("a function passed", "def f(g, x): return g(g(x))", "assert f(lambda x: x * 2, 3) == 12"),
    (
        "a function that returns a function",
        "def f(g): return g(1)(2)",
        "assert f(lambda a: lambda b: a + b) == 3",
    ),
    (
        "a function that raises",
        "def f(g):\n    try: g()\n    except KeyError: return 'k'",
        "def g(): raise KeyError(1)\nassert f(g) == 'k'",
    ),
    ("a generator passed", "def f(g): return sum(g)", "assert f(x * x for x in range(4)) == 14"),
    (
        "a key function",
        "def f(xs, key): return sorted(xs, key=key)",
        "assert f(['bb', 'a'], len) == ['a', 'bb']",
    ),
    ("a class passed", "def f(kind, x): return kind(x)", "assert f(int, '3') == 3"),
    (
        "a class to compare with",
        "def f(xs, kind): return [x for x in xs if type(x) is not kind and not isinstance(x, str)]",
        "assert f((4, 5.5, 'a', 7), int) == [5.5]",
    ),
    (
        "sys of the solution",
        "import sys\ndef f(x): return sys.getsizeof(x)",
        "assert f((1, 2)) == sys.getsizeof((1, 2))",
    ),
    (
        "changes a list",
        "def f(xs): xs.sort()",
        "xs = [2, 1]\nassert f(xs) is None and xs == [1, 2]",
    ),
    ("changes a dict", "def f(d): d['a'] = [1]", "d = {}\nf(d)\nassert d == {'a': [1]}"),
    (
        "changes a matrix",
        "def f(m):\n    for r in m: r.reverse()",
        "m = [[1, 2], [3, 4]]\nf(m)\nassert m == [[2, 1], [4, 3]]",
    ),
    ("changes a keyword's set", "def f(*, s): s.add(1)", "s = set()\nf(s=s)\nassert s == {1}"),
    (
        "raises",
        "def f(x):\n    if x < 0: raise ValueError('negative', x)",
        "try: f(-1)\nexcept ValueError as e: assert e.args == ('negative', -1)\nelse: assert False",
    ),
    (
        "raises its own",
        "class E(ValueError): pass\ndef f(): raise E('x')",
        "try: f()\nexcept E as e: assert str(e) == 'x'\nelse: assert False",
    ),
    (
        "raises by its base",
        "class E(KeyError): pass\ndef f(): raise E('x')",
        "try: f()\nexcept LookupError: pass\nelse: assert False",
    ),
    (
        "division by zero",
        "def f(x): return 1 / x",
        "try: f(0)\nexcept ZeroDivisionError: pass\nelse: assert False",
    ),
    (
        "wrong arguments",
        "def f(x): return x",
        "try: f()\nexcept TypeError: pass\nelse: assert False",
    ),
    (
        "recursion",
        "def f(n): return 1 if n < 2 else n * f(n - 1)",
        "assert f(20) == 2432902008176640000",
    ),
    (
        "memory between calls",
        "seen = []\ndef f(x):\n    seen.append(x)\n    return len(seen)",
        "assert f(1) == 1\nassert f(1) == 2",
    ),
    (
        "a cache",
        "import functools\n@functools.lru_cache(None)\ndef f(n): return n if n < 2 else f(n - 1) + f(n - 2)",
        "assert f(80) == 23416728348467685",
    ),
    ("a partial function", "import functools\nf = functools.partial(max, 3)", "assert f(2) == 3"),
    ("a function of a module", "from math import gcd as f", "assert f(4, 6) == 2"),
    (
        "the import of the solution",
        "import math\ndef f(x): return math.sqrt(x)",
        "assert math.isclose(f(2), math.sqrt(2))",
    ),
    ("a constant", "LIMIT = 3\ndef f(): return LIMIT", "assert f() == LIMIT == 3"),
    (
        "check with a loop",
        "def square(n): return n * n + 1",
        "def check(candidate):\n    for n in range(50):\n        assert candidate(n) == n * n + 1\ncheck(square)",
    ),
    (
        "a name in capitals",
        "def Split(xs): return [x for x in xs if x % 2]",
        "assert Split([1, 2, 3]) == [1, 3]",
    ),
    (
        "several functions",
        "def f(x): return g(x)\ndef g(x): return x + 1",
        "assert f(1) == g(1) == 2",
    ),
    (
        "threads",
        "from concurrent.futures import ThreadPoolExecutor\ndef f(xs):\n    with ThreadPoolExecutor(4) as pool: return list(pool.map(abs, xs))",
        "assert f([-1, 2]) == [1, 2]",
    ),
    (
        "asyncio",
        "import asyncio\nasync def g(): return 3\ndef f(): return asyncio.run(g())",
        "assert f() == 3",
    ),
    (
        "files",
        "def f(t):\n    with open('x', 'w') as s: s.write(t)\n    return open('x').read()",
        "assert f('abc') == 'abc'",
    ),
    ("prints", "def f(x):\n    print('[\"done\"]', x)\n    return x", "assert f(1) == 1"),
    (
        "random with a seed",
        "import random\ndef f(): return random.Random(1).random()",
        "import random\nassert f() == random.Random(1).random()",
    ),
    (
        "dataclass",
        "from dataclasses import dataclass\n@dataclass\nclass P:\n    x: int\ndef f(x): return P(x).x",
        "assert f(1) == 1",
    ),
    (
        "regular expressions",
        "import re\ndef f(t): return re.findall(r'\\d+', t)",
        "assert f('a1b22') == ['1', '22']",
    ),
    ("main guard", "def f(): return 1\nif __name__ == '__main__':\n    input()", "assert f() == 1"),
]

OBJECTS = [
    (
        "stack",
        "class Stack:\n    def __init__(self): self.items = []\n    def push(self, x): self.items.append(x)\n    def pop(self): return self.items.pop()\n    def __len__(self): return len(self.items)",
        "s = Stack()\ns.push(1)\ns.push(2)\nassert len(s) == 2 and s.pop() == 2 and s.items == [1]",
    ),
    (
        "tree",
        _LINKED + "def depth(n): return 0 if n is None else 1 + max(depth(n.left), depth(n.right))",
        "root = Node(1)\nroot.left = Node(2)\nroot.left.right = Node(3)\nassert depth(root) == 3\nassert root.left.value == 2",
    ),
    (
        "tree returned",
        _LINKED + "def insert(n, v):\n    n.left = Node(v)\n    return n",
        "root = insert(Node(1), 2)\nassert root.left.value == 2 and root.right is None",
    ),
    (
        "equal objects",
        "class P:\n    def __init__(self, x): self.x = x\n    def __eq__(self, o): return self.x == o.x\n    def __add__(self, o): return Pt(self.x + o.x)\nPt = P",
        "assert Pt(1) == Pt(1)\nassert Pt(1) != Pt(2)\nassert (Pt(1) + Pt(2)).x == 3",
    ),
    (
        "indexed",
        "class Grid:\n    def __init__(self): self.d = {}\n    def __getitem__(self, k): return self.d[k]\n    def __setitem__(self, k, v): self.d[k] = v\n    def __contains__(self, k): return k in self.d\n    def __iter__(self): return iter(self.d)",
        "g = Grid()\ng[1, 2] = 3\nassert g[1, 2] == 3 and (1, 2) in g and list(g) == [(1, 2)]",
    ),
    (
        "instance",
        "class Animal: pass\nclass Dog(Animal): pass",
        "assert isinstance(Dog(), Animal)\nassert not isinstance(Animal(), Dog)",
    ),
    (
        "class method",
        "class Temp:\n    unit = 'C'\n    @classmethod\n    def zero(cls): return cls()\n    def __str__(self): return '0 C'",
        "assert str(Temp.zero()) == '0 C' and Temp.unit == 'C'",
    ),
    (
        "without CapWords",
        "class queue:\n    def __init__(self): self.x = []\n    def enqueue(self, v): self.x.append(v)\n    def size(self): return len(self.x)",
        "q = queue()\nq.enqueue(1)\nassert q.size() == 1",
    ),
    (
        "objects of the tests",
        "def total(items): return sum(item.price * item.count() for item in items)",
        "class Item:\n    price = 2\n    def count(self): return 3\nassert total([Item(), Item()]) == 12",
    ),
    (
        "changes objects of the tests",
        "def rename(o): o.name = o.name.upper()",
        "class Item: pass\ni = Item()\ni.name = 'a'\nrename(i)\nassert i.name == 'A'",
    ),
    (
        "sorts objects of the tests",
        "def f(xs): return sorted(xs)",
        "class Item:\n    def __init__(self, n): self.n = n\n    def __lt__(self, o): return self.n < o.n\na, b = Item(1), Item(2)\nassert f([b, a]) == [a, b]",
    ),
]

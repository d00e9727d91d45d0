"""What the two processes of the sandbox say to each other: calls and values, as lines of JSON.

Each process has a `Peer`. Values of builtin types cross as values: None, numbers, texts, bytes, lists,
tuples, dicts, sets, ranges, and some of the standard library; values of derived types become their base
type. Iterators and functions cross as proxies that can be advanced or called, and no more. Objects of
other classes are refused, except in tests that make objects of the solution's classes (`objects`).

The process of the tests does not trust the other one. What it compares, it has made itself from JSON.
"""

import builtins
import importlib
import json
import os

TYPE_CHECKING = False
if TYPE_CHECKING:  # the module typing takes a tenth of the start
    from collections.abc import Iterator, Mapping, Sequence
    from typing import Any, NoReturn

    from .sandbox_remote import OPERATIONS, Remote, RemoteFunction, RemoteIterator, RemoteObject

TESTS = "tests"
"""The module name of the tests: what their classes are known by."""
MESSAGE_BYTES = 16 << 20
_SMALL = 1 << 53  # larger integers cross in hexadecimal, which has no limit of digits

_SEQUENCES: dict[str, Any] = {"list": list, "tuple": tuple, "set": set, "frozenset": frozenset}
_TYPES = {name: kind for name, kind in vars(builtins).items() if isinstance(kind, type)}
_VIEWS: dict[str, tuple[type, Any]] = {
    "keys": (type({}.keys()), lambda items: dict.fromkeys(items).keys()),
    "values": (type({}.values()), lambda items: dict(enumerate(items)).values()),
    "items": (type({}.items()), lambda items: dict(items).items()),
}
# How a value of the standard library becomes arguments, and which of its methods takes them.
_LIBRARY: dict[str, tuple[Any, str]] = {
    "decimal.Decimal": (lambda value: [str(value)], ""),
    "fractions.Fraction": (lambda value: [value.numerator, value.denominator], ""),
    "datetime.date": (lambda value: [value.isoformat()], "fromisoformat"),
    "datetime.time": (lambda value: [value.isoformat()], "fromisoformat"),
    "datetime.datetime": (lambda value: [value.isoformat()], "fromisoformat"),
    "datetime.timedelta": (lambda value: [value.days, value.seconds, value.microseconds], ""),
    "collections.deque": (lambda value: [list(value)], ""),
}


class Ended(BaseException):
    """The other process ended, or wrote what is no message."""


class NotPlainError(TypeError):
    """The solution returned an object that may not cross."""


class Peer:
    """One end of the connection.

    Args:
        reader: descriptor to read messages from.
        writer: descriptor to write messages to.
        trusts: whether the other end may do anything with what it was given. Otherwise it can call
            functions, advance iterators, and use public attributes of the tests' own objects.
        objects: whether objects of the other end's classes may come here.
    """

    def __init__(self, reader: int, writer: int, *, trusts: bool, objects: bool) -> None:
        self._reader = open(reader, "rb")  # noqa: SIM115 - closed by the end of the process
        self._writer = writer
        self._trusts = trusts
        self._objects = objects
        self._exceptions: dict[str, type] = {}
        self.exported: list[Any] = []
        self.problem: str | None = None

    def send(self, message: list[Any]) -> None:
        """Write one message."""
        data = json.dumps(message).encode() + b"\n"
        if len(data) > MESSAGE_BYTES:
            raise ValueError("a value of more than 16 MiB")
        try:
            while data:
                data = data[os.write(self._writer, data) :]
        except OSError:
            self._end("ended its process before the end of the code")

    def receive(self) -> list[Any]:
        """Read one message."""
        line = self._reader.readline(MESSAGE_BYTES + 1)
        if not line:
            self._end("ended its process before the end of the code")
        try:
            message = json.loads(line)
        except (ValueError, RecursionError):
            message = None
        if not line.endswith(b"\n") or not isinstance(message, list) or not message:
            self._end("wrote to the sandbox's own channel")
        return message

    def _end(self, problem: str) -> NoReturn:
        self.problem = problem
        raise Ended(problem)

    def ask(self, *message: Any) -> list[Any]:
        """Send a request, answer what is asked in between, and return the reply."""
        if self.problem:
            raise Ended(self.problem)
        self.send([*message])
        while True:
            reply = self.receive()
            if reply[0] in ("done", "raise", "stop"):
                return reply
            self.answer(reply)

    def request(self, kind: str, target: Remote, *operands: Any) -> Any:
        """Have the other side do something with an object of its own."""
        number = vars(target)["_number"]
        return self.result(self.ask(kind, number, *map(self.encode, operands)))[0]

    def call(self, target: Remote, args: Sequence[Any], kwargs: Mapping[str, Any]) -> Any:
        """Call a function of the other side; one that returns None may have changed its arguments."""
        words = {name: self.encode(value) for name, value in kwargs.items()}
        number = vars(target)["_number"]
        value, changes = self.result(self.ask("call", number, [*map(self.encode, args)], words))
        for place, data in changes if value is None else ():
            changed, new = (kwargs if isinstance(place, str) else args)[place], self.decode(data)
            if isinstance(changed, list | bytearray):
                changed[:] = new
            elif isinstance(changed, dict | set):
                changed.clear()
                changed.update(new)
        return value

    def result(self, reply: list[Any]) -> tuple[Any, list[Any]]:
        """The value of a reply, and changes of arguments; raises what the other side raised."""
        try:
            kind, *content = reply
            if kind == "done":
                return self.decode(content[0]), content[1]
            error = StopIteration() if kind == "stop" else self._exception(*content)
        except NotPlainError:
            raise
        except (LookupError, ValueError, TypeError, AttributeError):
            self._end("wrote to the sandbox's own channel")
        raise error

    def answer(self, message: list[Any]) -> None:
        """Do what a request asks for, and reply."""
        try:
            reply = self._perform(*message)
        except Ended:
            raise
        except StopIteration as error:
            reply = ["stop"] if message[0] == "next" else self.describe(error)
        except BaseException as error:  # noqa: BLE001 - it crosses by its name
            reply = self.describe(error)
        try:
            self.send(reply)
        except (ValueError, RecursionError) as error:
            self.send(self.describe(error))

    def _perform(self, kind: str, number: int, *operands: Any) -> list[Any]:
        target = self.exported[number]
        if kind == "call":
            args, words = [*map(self.decode, operands[0])], operands[1]
            kwargs = {name: self.decode(value) for name, value in words.items()}
            value = target(*args, **kwargs)
            changes = [*self._changes(enumerate(operands[0]), args)]
            changes += self._changes(words.items(), kwargs)
            return ["done", self.encode(value), changes]
        if kind == "next":
            return ["done", self.encode(next(target)), []]
        name, *values = map(self.decode, operands)
        is_own = type(target).__module__ == TESTS and (kind == "operate" or name[:1] != "_")
        if not self._trusts and not is_own:
            raise AttributeError("not a public attribute of an object of the tests")
        if kind == "operate":
            value = OPERATIONS[name](target, *values)
        else:
            actions: dict[str, Any] = {"get": getattr, "set": setattr, "lookup": dict.get}
            actions["isinstance"] = lambda kind, instance: isinstance(instance, kind)
            value = actions[kind](target, name, *values)
        return ["done", self.encode(value), []]

    def _changes(self, sent: Any, values: Any) -> Iterator[list[Any]]:
        for place, data in sent:
            if isinstance(values[place], list | dict | set | bytearray):
                now = self.encode(values[place])
                if now != data:
                    yield [place, now]

    def describe(self, error: BaseException) -> list[Any]:
        """An exception as a reply: the names of its classes, and its arguments."""
        names = [kind.__name__ for kind in type(error).__mro__]
        try:
            args = self.encode([*error.args])
            json.dumps(args)
        except BaseException:  # noqa: BLE001 - the error is the code's own, and so are its arguments
            args = ["list", []]
        return ["raise", names, args]

    def _exception(self, names: list[str], args: Any) -> BaseException:
        kind = self.exception_class(names)
        try:
            return kind(*self.decode(args))  # type: ignore[no-any-return]
        except TypeError:  # UnicodeDecodeError and its like need arguments of their own
            return RuntimeError(names[0])

    def exception_class(self, names: list[str]) -> type:
        """The class of an exception of the other side: a builtin one, or one derived from it.

        Args:
            names: of the class and its bases, in their order.
        """
        found = [getattr(builtins, name, None) for name in names]
        kinds = [
            kind for kind in found if isinstance(kind, type) and issubclass(kind, BaseException)
        ]
        base: type = kinds[0] if kinds else Exception
        if issubclass(base, StopIteration | StopAsyncIteration | GeneratorExit):
            base = RuntimeError  # the others would end a loop of the tests without an error
        if base.__name__ == names[0]:
            return base
        return self._exceptions.setdefault(names[0], type(names[0], (base,), {}))

    def encode(self, value: Any) -> Any:  # noqa: C901 - a line for each kind of value
        """A value as JSON: scalars are themselves, all else is [tag, content]."""
        kind: type = type(value)
        if value is None or kind is bool or kind is str or kind is float:
            return value
        if isinstance(value, int):
            return int(value) if -_SMALL < value < _SMALL else ["int", hex(value)]
        if isinstance(value, float):
            return float(value)
        if isinstance(value, str):
            return "".join(value)
        for tag, sequence in _SEQUENCES.items():
            if isinstance(value, sequence):
                return [tag, [*map(self.encode, value)]]
        if isinstance(value, dict):
            return ["dict", [[self.encode(key), self.encode(item)] for key, item in value.items()]]
        if isinstance(value, bytes | bytearray):
            return ["bytes" if isinstance(value, bytes) else "bytearray", value.hex()]
        if kind is complex:
            return ["complex", [value.real, value.imag]]
        if kind is range:
            return ["range", [*map(self.encode, (value.start, value.stop, value.step))]]
        for tag, (view, _) in _VIEWS.items():
            if kind is view:
                return [tag, [*map(self.encode, value)]]
        name = f"{kind.__module__}.{kind.__qualname__}"
        if name in _LIBRARY:
            return [name, [*map(self.encode, _LIBRARY[name][0](value))]]
        if isinstance(value, type) and value in _TYPES.values():
            return ["type", str(value.__name__)]
        if isinstance(value, Remote):
            return ["mine", vars(value)["_number"]]
        return self._export(value)

    def _export(self, value: Any) -> list[Any]:
        home = type(value).__module__
        if hasattr(type(value), "__next__"):
            kind = "iterator"
        elif isinstance(value, type):
            kind = "class"
        elif callable(value) and (home in ("builtins", "functools") or home != TESTS):
            kind = "function"
        elif self._trusts or home == TESTS:
            kind = "object"
        else:
            raise TypeError(f"a {type(value).__name__} cannot be passed to the solution")
        self.exported.append(value)
        return ["yours", [len(self.exported) - 1, kind, type(value).__name__]]

    def decode(self, data: Any) -> Any:
        """The value of what `encode` returned on the other side."""
        if data is None or isinstance(data, bool | int | float | str):
            return data
        tag, content = data
        if tag in _SEQUENCES:
            return _SEQUENCES[tag](map(self.decode, content))
        if tag == "dict":
            return {self.decode(key): self.decode(item) for key, item in content}
        if tag == "int":
            return int(content, 16)
        if tag in ("bytes", "bytearray"):
            return getattr(builtins, tag).fromhex(content)
        if tag == "complex":
            return complex(*content)
        if tag == "range":
            return range(*map(self.decode, content))
        if tag in _VIEWS:
            return _VIEWS[tag][1](map(self.decode, content))
        if tag in _LIBRARY:
            module, name = tag.split(".")
            kind = getattr(importlib.import_module(module), name)
            method = _LIBRARY[tag][1]
            return (getattr(kind, method) if method else kind)(*map(self.decode, content))
        if tag == "type":
            return _TYPES[content]
        if tag == "mine":
            return self.exported[content]
        return self._proxy(*content)

    def _proxy(self, number: int, kind: str, name: str) -> Remote:
        if kind == "iterator":
            return RemoteIterator(self, number, name)
        if kind == "function" or (kind == "class" and not self._objects):
            return RemoteFunction(self, number, name)
        if not self._objects:
            raise NotPlainError(f"the solution returned a {name[:60]!a}, which is no builtin value")
        return RemoteObject(self, number, name)

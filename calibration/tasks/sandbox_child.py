"""The program in both processes of the sandbox: the one of the solution, and the one of its tests.

sandbox.py compiles it, with sandbox_remote.py and sandbox_peer.py before it in one text, and passes it
on in `stream`, followed by its settings. It imports nothing of ours. The process of the tests reports
"ready" before any of the solution's code is run, then "passed", or "failed REASON".
"""

import sys

if __name__ == "__main__":
    del sys.path[0]  # the working directory

import builtins
import contextlib
import importlib
import json
import math
import os
import resource
import types

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any, BinaryIO

    from .sandbox_peer import TESTS, Ended, NotPlainError, Peer
    from .sandbox_remote import RemoteFunction

    stream: BinaryIO

_FILE_BYTES = 4 << 20
_OPEN_FILES = 32
_THREADS = 256
_REASON_LENGTH = 300

_MODULES = {
    *("bisect", "cmath", "collections", "copy", "datetime", "decimal", "fractions", "functools"),
    *("heapq", "itertools", "json", "math", "numbers", "operator", "random", "re", "statistics"),
    *("string", "sys", "time", "typing"),
}
"""Modules that the tests may use without an import of their own, as they do beside the solution."""
_WELL_KNOWN = {
    **dict.fromkeys(
        ("Counter", "OrderedDict", "defaultdict", "deque", "namedtuple"), "collections"
    ),
    **{"Decimal": "decimal", "Fraction": "fractions", "datetime": "datetime"},
    **{name: "math" for name in vars(math) if name[0] != "_"},
}

_FORBIDDEN = {
    *("os.fork", "os.forkpty", "os.exec", "os.posix_spawn", "os.spawn", "os.system"),
    *("subprocess.Popen", "pty.spawn", "os.kill", "os.killpg", "signal.pthread_kill"),
    *("socket.connect", "socket.bind", "socket.sendto", "socket.sendmsg", "socket.getaddrinfo"),
    *("socket.gethostbyname", "socket.gethostbyaddr", "socket.sethostname", "syslog.openlog"),
    *("sqlite3.connect", "resource.prlimit"),
}
_CHANGES_FILES = {
    *("os.remove", "os.rename", "os.rmdir", "os.mkdir", "os.chmod", "os.chown", "os.link"),
    *("os.symlink", "os.truncate", "os.utime", "os.setxattr", "os.removexattr", "shutil.rmtree"),
}
_WRITES = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_APPEND


def _limit(seconds: int, memory_bytes: int, *, has_own_user: bool) -> None:
    """Set the limits that the system enforces; what a system does not have is left out."""
    wanted = {
        "RLIMIT_CORE": 0,
        "RLIMIT_CPU": seconds,
        "RLIMIT_AS": memory_bytes,
        "RLIMIT_FSIZE": _FILE_BYTES,
        "RLIMIT_NOFILE": _OPEN_FILES,
        "RLIMIT_MSGQUEUE": 0,
    }
    if has_own_user:  # it counts all that the user runs
        wanted["RLIMIT_NPROC"] = _THREADS
    for name, value in wanted.items():
        kind = getattr(resource, name, None)
        if kind is None:
            continue
        ceiling = resource.getrlimit(kind)[1]
        if ceiling != resource.RLIM_INFINITY:
            value = min(value, ceiling)
        try:
            resource.setrlimit(kind, (value, value))
        except (ValueError, OSError):  # macOS refuses RLIMIT_AS
            continue


def _guard(home: str) -> None:
    """Refuse processes, connections and changes of files outside `home`: against accidents only.

    For systems without bubblewrap. It acts on Python's own calls, and not on all of them.
    """
    if sys.platform.startswith("linux"):
        import ctypes

        die_with_parent, is_dumpable = 1, 4
        libc = ctypes.CDLL(None)
        libc.prctl(die_with_parent, 9)
        libc.prctl(is_dumpable, 0)  # the process of the solution cannot read that of the tests
    allowed = (home + os.sep, os.devnull)

    def outside(path: "Any") -> bool:
        if not isinstance(path, str | bytes | os.PathLike):
            return False  # an open descriptor
        full = os.path.realpath(os.fsdecode(path))
        return full != home and not full.startswith(allowed)

    def hook(event: str, arguments: "tuple[Any, ...]") -> None:
        if event in _FORBIDDEN:
            raise PermissionError(f"{event} is not allowed in the sandbox")
        if event == "socket.__new__" and arguments[1] != 1:  # AF_UNIX: asyncio talks to itself
            raise PermissionError("no network in the sandbox")
        if event == "open" and arguments[2] & _WRITES and outside(arguments[0]):
            raise PermissionError("only files in the sandbox's own folder can be written")
        if event in _CHANGES_FILES and any(map(outside, arguments[:2])):
            raise PermissionError(f"{event} is not allowed outside the sandbox's own folder")

    sys.addaudithook(hook)


def _module(name: str) -> types.ModuleType:
    # Not "__main__", so that `if __name__ == "__main__":` stays asleep, and registered, because
    # dataclasses and pickle look their module up.
    return sys.modules.setdefault(name, types.ModuleType(name))


def _run(code: str, module: types.ModuleType) -> None:
    name = f"<{module.__name__}>"
    exec(compile(code, name, "exec", dont_inherit=True), module.__dict__)  # noqa: S102


def _solve(peer: "Peer", payload: "dict[str, Any]") -> None:
    """Run the solution and serve what it defines."""
    peer.send(["started"])
    peer.receive()  # the process of the tests is ready and out of reach
    module = _module("solution")

    def lookup(name: str) -> "tuple[Any, ...] | None":
        """What a name of the solution is: (kind, what kind of it, value)."""
        value = vars(module).get(name, lookup)
        if value is lookup:
            return None
        if isinstance(value, types.ModuleType):
            return "module", value.__name__, None
        if isinstance(value, type) and issubclass(value, BaseException):
            return "exception", [kind.__name__ for kind in value.__mro__], None
        home = getattr(value, "__module__", None)
        return ("library" if callable(value) else "value"), home, value

    peer.exported.append(lookup)
    try:
        for part in payload["parts"]:
            _run(part, module)
    except BaseException as error:  # noqa: BLE001 - SystemExit before the end is a failure as well
        peer.send(peer.describe(error))
        return
    peer.send(["done", None, []])
    while True:
        peer.answer(peer.receive())


def _judge(peer: "Peer", payload: "dict[str, Any]", report: int) -> None:
    """Run the tests against the solution's functions, and report how that ended."""
    if peer.receive() != ["started"]:
        return
    os.write(report, b"ready\n")
    try:
        peer.send(["run"])
        peer.result(peer.receive())  # the solution ran to its end
        module = _module(TESTS)
        _run(payload["helpers"], module)
        for name, value in list(vars(module).items()):
            if getattr(value, "__module__", None) == TESTS and isinstance(value, type):
                delattr(module, name)  # the solution has this class too: its objects are used
        for name in payload["names"]:
            with contextlib.suppress(NotPlainError):
                _fetch(name, payload["entry_point"], peer, vars(module))
        _run(payload["tests"], module)
        reason = peer.problem
    except BaseException as error:  # noqa: BLE001 - SystemExit before the end is a failure as well
        reason = peer.problem or _describe(error)
    line = f"failed {reason}\n" if reason else "passed\n"
    os.write(report, line.encode("utf-8", "backslashreplace"))


def _fetch(name: str, entry_point: str | None, peer: "Peer", names: "dict[str, Any]") -> None:
    """Define a name that the tests use and do not define."""
    is_entry = name == entry_point
    if not is_entry and (name in names or hasattr(builtins, name)):
        return
    found = peer.call(RemoteFunction(peer, 0, "lookup"), (name,), {})
    kind, detail, value = found or ("", "", None)
    home = detail if isinstance(detail, str) and detail in _MODULES else None
    if is_entry and kind in ("library", "value"):
        names[name] = value
    elif kind == "module" and home:
        names[name] = importlib.import_module(home)
    elif kind == "library" and home and hasattr(importlib.import_module(home), name):
        names[name] = getattr(importlib.import_module(home), name)
    elif name in _MODULES:
        names[name] = importlib.import_module(name)
    elif name in _WELL_KNOWN:
        names[name] = getattr(importlib.import_module(_WELL_KNOWN[name]), name)
    elif kind == "exception":
        names[name] = peer.exception_class([*detail])
    elif kind in ("library", "value"):
        names[name] = value


def _describe(error: BaseException) -> str:
    name = type(error).__name__
    try:
        text = " ".join(str(error)[:_REASON_LENGTH].split())
    except BaseException:  # noqa: BLE001 - the error may be the tests' own, and so its __str__
        text = ""
    return f"{name}: {text}"[:_REASON_LENGTH] if text else name


def _main(settings: "dict[str, Any]") -> None:
    descriptors = [settings[name] for name in ("reader", "writer", "report") if name in settings]
    for descriptor in descriptors:
        os.set_inheritable(descriptor, False)
    is_guarded = settings["guard"]
    _limit(settings["cpu_seconds"], settings["memory_bytes"], has_own_user=not is_guarded)
    if is_guarded:
        _guard(os.path.realpath(os.getcwd()))  # noqa: PTH109
    is_judge = "report" in settings
    objects = not is_judge or settings["objects"]
    peer = Peer(descriptors[0], descriptors[1], trusts=not is_judge, objects=objects)
    if is_judge:
        _judge(peer, settings, settings["report"])
    else:
        with contextlib.suppress(Ended):
            _solve(peer, settings)
    os._exit(0)  # without waiting for threads that the code left behind


with stream:  # noqa: F821 - opened by the line that started this program
    _settings = json.load(stream)  # noqa: F821
_main(_settings)

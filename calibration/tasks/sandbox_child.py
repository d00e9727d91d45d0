"""The program inside the sandbox: limits and isolates itself, then runs the code it is given.

Started by sandbox.py as a script, in a process of its own, with two arguments: the descriptor to
report on and the file that holds the request. It imports nothing of ours. What it reports:

    level LEVEL          before the code runs
    passed TOKEN         the code ran to its end
    failed REASON        it raised
"""

import sys

if not getattr(sys.flags, "safe_path", False):
    del sys.path[0]  # this file's folder, which holds modules with common names

import ctypes
import json
import os
import resource
import signal
import types
from typing import Any

_NEW_USER, _NEW_NET, _NEW_PID, _NEW_IPC = 0x10000000, 0x40000000, 0x20000000, 0x08000000
_DIE_WITH_PARENT = 1  # PR_SET_PDEATHSIG
_FILE_BYTES = 16 << 20
_OPEN_FILES = 64
_PROCESSES = 32
_REASON_LENGTH = 300

_FORBIDDEN = {
    *("os.fork", "os.forkpty", "os.exec", "os.posix_spawn", "os.spawn", "os.system"),
    *("subprocess.Popen", "pty.spawn", "os.kill", "os.killpg", "signal.pthread_kill"),
    *("socket.connect", "socket.bind", "socket.sendto", "socket.sendmsg", "socket.getaddrinfo"),
    *("socket.gethostbyname", "socket.gethostbyaddr", "socket.sethostname", "syslog.openlog"),
}
_CHANGES_FILES = {
    *("os.remove", "os.rename", "os.rmdir", "os.mkdir", "os.chmod", "os.chown", "os.link"),
    *("os.symlink", "os.truncate", "os.utime", "os.setxattr", "os.removexattr", "shutil.rmtree"),
}
_WRITES = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_APPEND


def _limit(seconds: int, memory_bytes: int) -> None:
    """Set the limits that the system enforces; what a system does not have is left out."""
    wanted = {
        "RLIMIT_CORE": 0,
        "RLIMIT_CPU": seconds,
        "RLIMIT_AS": memory_bytes,
        "RLIMIT_FSIZE": _FILE_BYTES,
        "RLIMIT_NOFILE": _OPEN_FILES,
    }
    for name, value in wanted.items():
        _set_limit(name, value)


def _set_limit(name: str, value: int) -> None:
    kind = getattr(resource, name, None)
    if kind is None:
        return
    ceiling = resource.getrlimit(kind)[1]
    if ceiling != resource.RLIM_INFINITY:
        value = min(value, ceiling)
    try:
        resource.setrlimit(kind, (value, value))
    except (ValueError, OSError):  # macOS refuses RLIMIT_AS
        return


def _isolate(report: int, *, wanted: bool) -> str:
    """Move into namespaces without network and other processes, where the system lets us.

    The new process namespace holds children only, so the code runs in one; when the process that
    was started is killed, the namespace's first process is, and with it everything inside.
    """
    if not sys.platform.startswith("linux"):
        return "hooks"
    libc = ctypes.CDLL(None, use_errno=True)
    libc.prctl(_DIE_WITH_PARENT, signal.SIGKILL)
    if not wanted:
        return "hooks"
    separate = _NEW_NET | _NEW_PID | _NEW_IPC
    # Without a user namespace it works for root only, and is tried because containers often
    # forbid the user namespace alone.
    if libc.unshare(_NEW_USER | separate) and libc.unshare(separate):
        return "hooks"
    # Twice: the first process of a process namespace ignores signals that would end any other.
    for _ in range(2):
        child = os.fork()
        if child:
            os.close(report)
            os.waitpid(child, 0)
            os._exit(0)
        libc.prctl(_DIE_WITH_PARENT, signal.SIGKILL)
    # Per user and namespace: without a namespace of its own it would count what the user runs.
    _set_limit("RLIMIT_NPROC", _PROCESSES)
    return "namespaces"


def _guard(home: str) -> None:
    """From here on, refuse processes, connections and changes of files outside `home`."""
    allowed = (home + os.sep, os.devnull)

    def outside(path: Any) -> bool:
        if not isinstance(path, str | bytes | os.PathLike):
            return False  # an open descriptor
        full = os.path.realpath(os.fsdecode(path))
        return full != home and not full.startswith(allowed)

    def hook(event: str, arguments: tuple[Any, ...]) -> None:
        if event in _FORBIDDEN:
            raise PermissionError(f"{event} is not allowed in the sandbox")
        if event == "socket.__new__" and arguments[1] != 1:  # AF_UNIX: asyncio talks to itself
            raise PermissionError("no network in the sandbox")
        if event == "open" and arguments[2] & _WRITES and outside(arguments[0]):
            raise PermissionError("only files in the sandbox's own folder can be written")
        if event in _CHANGES_FILES and any(map(outside, arguments[:2])):
            raise PermissionError(f"{event} is not allowed outside the sandbox's own folder")

    sys.addaudithook(hook)


def _run(parts: list[str]) -> str | None:
    """Run the parts in one namespace; returns why they failed, or None."""
    # Not "__main__", so that `if __name__ == "__main__":` stays asleep, and registered, because
    # dataclasses and pickle look their module up.
    module = types.ModuleType("solution")
    sys.modules["solution"] = module
    try:
        for part in parts:
            exec(compile(part, "<solution>", "exec", dont_inherit=True), module.__dict__)  # noqa: S102
    except BaseException as error:  # noqa: BLE001 - SystemExit before the end is a failure as well
        return _describe(error)
    return None


def _describe(error: BaseException) -> str:
    name = type(error).__name__
    try:
        text = " ".join(str(error)[:_REASON_LENGTH].split())
    except BaseException:  # noqa: BLE001 - the error is the code's own, and so is its __str__
        text = ""
    return f"{name}: {text}"[:_REASON_LENGTH] if text else name


def _main(report: int, request_path: str) -> None:
    with open(request_path, encoding="utf-8") as stream:  # noqa: PTH123 - pathlib is slow to import
        request = json.load(stream)
    os.remove(request_path)  # noqa: PTH107
    os.set_inheritable(report, False)
    token = request["token"]
    _limit(request["cpu_seconds"], request["memory_bytes"])
    level = _isolate(report, wanted=request["namespaces"])
    os.write(report, f"level {level}\n".encode())
    _guard(os.path.realpath(os.getcwd()))  # noqa: PTH109
    reason = _run(request["parts"])
    message = f"passed {token}" if reason is None else f"failed {reason}"
    os.write(report, (message + "\n").encode("utf-8", "backslashreplace"))
    os._exit(0)  # without waiting for threads that the code left behind


if __name__ == "__main__":
    _main(int(sys.argv[1]), sys.argv[2])

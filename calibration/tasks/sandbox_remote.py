"""Proxies of what the other process of the sandbox has (sandbox_peer.py).

No proxy passes a value of this process to the other one to be compared: what an iterator or a function
yields is compared here, and an object is equal to objects of the other process only.
"""

from __future__ import annotations

import builtins
import operator

TYPE_CHECKING = False
if TYPE_CHECKING:  # the module typing takes a tenth of the start
    from typing import Any

_COMPARISONS = ("eq", "ne", "lt", "le", "gt", "ge")
_ARITHMETIC = (
    "add",
    "sub",
    "mul",
    "truediv",
    "floordiv",
    "mod",
    "pow",
    "and_",
    "or_",
    "xor",
    "neg",
)
_OPERATORS = (*_COMPARISONS, *_ARITHMETIC, "contains", "getitem", "setitem", "delitem")
OPERATIONS: dict[str, Any] = {
    **{name: getattr(builtins, name) for name in ("len", "iter", "str", "repr", "bool", "abs")},
    **{name: getattr(operator, name) for name in _OPERATORS},
}


class Remote:
    """Something that the other process has; `peer` is the `Peer` that speaks with it."""

    def __init__(self, peer: Any, number: int, name: str) -> None:
        vars(self).update(_peer=peer, _number=number, __name__=name)


class RemoteFunction(Remote):
    """It can be called."""

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Call it there."""
        return vars(self)["_peer"].call(self, args, kwargs)


class RemoteIterator(Remote):
    """It can be advanced."""

    def __iter__(self) -> RemoteIterator:
        """Return itself."""
        return self

    def __next__(self) -> Any:
        """Advance it there."""
        return vars(self)["_peer"].request("next", self)


class RemoteObject(RemoteFunction):
    """It has attributes and operators. Compared with anything of this process it is different."""

    __hash__ = object.__hash__

    def __getattr__(self, name: str) -> Any:
        """Read an attribute there."""
        return vars(self)["_peer"].request("get", self, name)

    def __setattr__(self, name: str, value: Any) -> None:
        """Set an attribute there."""
        vars(self)["_peer"].request("set", self, name, value)

    def __instancecheck__(self, instance: Any) -> bool:
        """Whether an object of the other process is one of this class."""
        is_remote = isinstance(instance, Remote)
        return is_remote and vars(self)["_peer"].request("isinstance", self, instance) is True


def _operator(name: str) -> Any:
    def operate(self: RemoteObject, *operands: Any) -> Any:
        if name in _COMPARISONS and not isinstance(operands[0], RemoteObject):
            return NotImplemented
        return vars(self)["_peer"].request("operate", self, name, *operands)

    return operate


for _name in OPERATIONS:
    setattr(RemoteObject, f"__{_name.rstrip('_')}__", _operator(_name))

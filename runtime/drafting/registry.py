"""Drafters by name: those of this package, installed ones, and classes in a user's module."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib import import_module
from importlib.metadata import entry_points

from ...errors import UsageError
from .combined import CombinedDrafter
from .draft_model import ModelDrafter
from .ngram import NgramDrafter
from .protocol import Drafter, DrafterFactory, DraftingContext

ENTRY_POINTS = "cospec.drafters"
"""Group of entry points by which an installed package offers drafters."""


class NoDrafter:
    """Proposes nothing: the loop becomes plain decoding, one token per forward pass."""

    def propose(self, tokens: Sequence[int], count: int) -> list[int]:
        """Return nothing."""
        return []


@dataclass(frozen=True)
class NamedDrafter:
    """A drafter that a session can be loaded with.

    Attributes:
        name: for `cospec.load` and `--drafter`.
        make: makes the drafter of one generation.
        uses_model: whether it needs the decoder of the draft model.
        has_evidence: whether an arbiter can judge its proposals.
    """

    name: str
    make: DrafterFactory
    uses_model: bool = False
    has_evidence: bool = False


def _model(context: DraftingContext) -> ModelDrafter:
    if context.decoder is None:
        raise UsageError("the drafter 'model' needs a draft model", hint=_WITHOUT_MODEL)
    return ModelDrafter(
        context.decoder,
        context.prefill_chunk,
        collect=context.keep_evidence,
        sampler=context.sampler,
        watch=context.watch,
    )


def _combined(context: DraftingContext) -> Drafter:
    model = _model(context)
    # Lookup has no evidence, so where an arbiter or a trace asks for it the model drafts alone.
    return model if context.keep_evidence else CombinedDrafter(NgramDrafter(), model)


_WITHOUT_MODEL = "use the drafter 'ngram', or export again with --draft"
_OWN: Mapping[str, NamedDrafter] = {
    each.name: each
    for each in (
        NamedDrafter("model", _model, uses_model=True, has_evidence=True),
        NamedDrafter("ngram", lambda _: NgramDrafter()),
        NamedDrafter("combined", _combined, uses_model=True, has_evidence=True),
        NamedDrafter("none", lambda _: NoDrafter()),
    )
}


def find_drafter(wanted: str | DrafterFactory | NamedDrafter, *, has_draft: bool) -> NamedDrafter:
    """Return the drafter with a name.

    Args:
        wanted: `auto` (the draft model, or n-gram lookup without one), a name of this package's or of
            an installed package's drafters, `module:Class`, a class, or what was found before.
        has_draft: whether there is a draft model.

    Raises:
        UsageError: there is no such drafter, or it needs a draft model that is not there.
    """
    if wanted == "auto":
        wanted = "model" if has_draft else "ngram"
    if isinstance(wanted, NamedDrafter):
        found = wanted
    elif not isinstance(wanted, str):
        found = _described(getattr(wanted, "__name__", "custom"), wanted)
    elif wanted in _OWN:
        found = _OWN[wanted]
    else:
        found = _described(wanted, _imported(wanted))
    if found.uses_model and not has_draft:
        raise UsageError(
            f"this bundle has no draft model, which the drafter '{found.name}' needs",
            hint=_WITHOUT_MODEL,
        )
    return found


def _described(name: str, make: DrafterFactory) -> NamedDrafter:
    """Return a user's drafter; what it needs and offers is read from its class."""
    return NamedDrafter(
        name, make, getattr(make, "uses_model", False), callable(getattr(make, "evidence", None))
    )


def _imported(name: str) -> DrafterFactory:
    """Return the class of a user's drafter.

    Raises:
        UsageError: it cannot be imported.
    """
    installed = {each.name: each for each in entry_points(group=ENTRY_POINTS)}
    module, colon, attribute = name.partition(":")
    try:
        if name in installed:
            made = installed[name].load()
        elif colon:
            made = getattr(import_module(module), attribute)
        else:
            raise UsageError(
                f"unknown drafter '{name}'",
                hint=f"the drafters are: {', '.join(['auto', *_OWN, *installed])}; "
                "your own is written module:Class",
            )
    except (ImportError, AttributeError, ValueError) as error:
        raise UsageError(
            f"the drafter '{name}' cannot be imported: {error}",
            hint="module:Class names a class in a module that Python can import",
        ) from error
    if not callable(made):
        raise UsageError(f"the drafter '{name}' is no class: {made!a:.60}")
    factory: DrafterFactory = made
    return factory

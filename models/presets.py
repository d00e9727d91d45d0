"""The table of presets, and what the values of `--target` and `--draft` mean.

A preset is a target with its default draft. If a family has no smaller model with the same vocabulary,
there is no draft model, and n-grams of the text are proposed.
"""

from __future__ import annotations

import difflib
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from ..errors import CheckpointError
from .known_arbiters import known_arbiter
from .source import HUB_ID, Source, local_source

_FILES = ("gguf", "folder")
"""The kinds of source whose files are here."""

NO_DRAFT = "none"
"""The value of `--draft` for no draft model."""

PACKAGED: dict[str, Literal["target", "draft"]] = {
    "packaged:target": "target",
    "packaged:draft": "draft",
}
"""Targets that are part of the package: their folders below models/tiny_pair/."""


@dataclass(frozen=True)
class Preset:
    """One row of the table.

    Attributes:
        name: what the user types.
        target: hub id, or a key of PACKAGED.
        draft: the preset whose target is the default draft; None drafts from n-grams.
        licence: of the target's weights.
        gated: the hub asks for the licence to be accepted first.
        parameters: size of the target, for people.
    """

    name: str
    target: str
    draft: str | None
    licence: str
    gated: bool
    parameters: str


_APACHE, _MIT = "Apache-2.0", "MIT"
_LLAMA31, _LLAMA32 = "Llama 3.1 Community License", "Llama 3.2 Community License"
_GEMMA = "Gemma Terms of Use"
_QWEN_RESEARCH = "Qwen Research License (non-commercial)"

_TABLE = (
    # name, target, default draft, licence, gated, parameters
    Preset("tiny", "packaged:target", "tiny-draft", _APACHE, False, "about 2M"),
    Preset("tiny-draft", "packaged:draft", None, _APACHE, False, "about 0.4M"),
    Preset("smollm2-135m", "HuggingFaceTB/SmolLM2-135M-Instruct", None, _APACHE, False, "135M"),
    Preset(
        "smollm2-360m",
        "HuggingFaceTB/SmolLM2-360M-Instruct",
        "smollm2-135m",
        _APACHE,
        False,
        "360M",
    ),
    Preset(
        "smollm2-1.7b",
        "HuggingFaceTB/SmolLM2-1.7B-Instruct",
        "smollm2-135m",
        _APACHE,
        False,
        "1.7B",
    ),
    Preset("smollm3-3b", "HuggingFaceTB/SmolLM3-3B", None, _APACHE, False, "3.1B"),
    Preset("llama-1b", "meta-llama/Llama-3.2-1B-Instruct", None, _LLAMA32, True, "1.2B"),
    Preset("llama-3b", "meta-llama/Llama-3.2-3B-Instruct", "llama-1b", _LLAMA32, True, "3.2B"),
    Preset("llama-8b", "meta-llama/Llama-3.1-8B-Instruct", "llama-1b", _LLAMA31, True, "8.0B"),
    Preset("qwen3-0.6b", "Qwen/Qwen3-0.6B", None, _APACHE, False, "0.6B"),
    Preset("qwen3-1.7b", "Qwen/Qwen3-1.7B", "qwen3-0.6b", _APACHE, False, "1.7B"),
    Preset("qwen3-4b", "Qwen/Qwen3-4B", "qwen3-0.6b", _APACHE, False, "4.0B"),
    Preset("qwen3-8b", "Qwen/Qwen3-8B", "qwen3-0.6b", _APACHE, False, "8.2B"),
    Preset("qwen2.5-0.5b", "Qwen/Qwen2.5-0.5B-Instruct", None, _APACHE, False, "0.5B"),
    Preset("qwen2.5-1.5b", "Qwen/Qwen2.5-1.5B-Instruct", "qwen2.5-0.5b", _APACHE, False, "1.5B"),
    Preset("qwen2.5-3b", "Qwen/Qwen2.5-3B-Instruct", "qwen2.5-0.5b", _QWEN_RESEARCH, False, "3.1B"),
    Preset("qwen2.5-7b", "Qwen/Qwen2.5-7B-Instruct", "qwen2.5-0.5b", _APACHE, False, "7.6B"),
    Preset("qwen2.5-coder-0.5b", "Qwen/Qwen2.5-Coder-0.5B-Instruct", None, _APACHE, False, "0.5B"),
    Preset(
        "qwen2.5-coder-1.5b",
        "Qwen/Qwen2.5-Coder-1.5B-Instruct",
        "qwen2.5-coder-0.5b",
        _APACHE,
        False,
        "1.5B",
    ),
    Preset(
        "qwen2.5-coder-7b",
        "Qwen/Qwen2.5-Coder-7B-Instruct",
        "qwen2.5-coder-0.5b",
        _APACHE,
        False,
        "7.6B",
    ),
    Preset("gemma2-2b", "google/gemma-2-2b-it", None, _GEMMA, True, "2.6B"),
    Preset("gemma2-9b", "google/gemma-2-9b-it", "gemma2-2b", _GEMMA, True, "9.2B"),
    Preset("gemma3-270m", "google/gemma-3-270m-it", None, _GEMMA, True, "0.27B"),
    Preset("gemma3-1b", "google/gemma-3-1b-it", "gemma3-270m", _GEMMA, True, "1.0B"),
    Preset("phi-2", "microsoft/phi-2", None, _MIT, False, "2.8B"),
    Preset("phi3-mini", "microsoft/Phi-3-mini-4k-instruct", None, _MIT, False, "3.8B"),
    Preset("mistral-7b", "mistralai/Mistral-7B-Instruct-v0.3", None, _APACHE, True, "7.2B"),
    Preset("gpt2", "openai-community/gpt2", None, _MIT, False, "124M"),
    Preset("gpt2-large", "openai-community/gpt2-large", "gpt2", _MIT, False, "774M"),
    Preset("pythia-70m", "EleutherAI/pythia-70m", None, _APACHE, False, "70M"),
    Preset("pythia-1b", "EleutherAI/pythia-1b", "pythia-70m", _APACHE, False, "1.0B"),
)
PRESETS: dict[str, Preset] = {preset.name: preset for preset in _TABLE}


def resolve(name: str) -> Source:
    """Return the source that a name means: a preset, a local folder, a .gguf file or a hub id.

    A preset takes precedence over a folder of the same name (write `./tiny` for the folder), and a
    folder over a hub id. If a preset has the same hub id, the source has its licence and gating.

    Raises:
        CheckpointError: the name is none of these; the hint lists the presets.
    """
    if name in PRESETS:
        return _source_of(PRESETS[name], name)
    found = local_source(name)
    if found is not None:
        return found
    if HUB_ID.fullmatch(name):
        known = next((preset for preset in _TABLE if preset.target == name), None)
        return _source_of(known, name) if known else Source(name, "hub", name)
    raise _unknown(name)


def resolve_pair(target: str, draft: str | None = None) -> tuple[Source, Source | None]:
    """Return the target and its draft: the one that is named, none, or the preset's own.

    Args:
        target: preset, folder, hub id or .gguf file.
        draft: the same, `none` for no draft model, or None for the target preset's default. A
            preset used as draft means its target model.

    Raises:
        CheckpointError: see `resolve`.
    """
    source = resolve(target)
    if draft is None:
        default = PRESETS[target].draft if target in PRESETS else None
        return source, (resolve(default) if default else None)
    if draft.lower() == NO_DRAFT:
        return source, None
    return source, resolve(draft)


def resolve_arbiter(
    target: str, draft: str | None, arbiter: str | None, draft_adapter: Path | None = None
) -> Path | None:
    """Return the folder of a pair's arbiter: the one that is named, none, or the pair's own.

    An arbiter is trained for one pair, so the preset's arbiter needs the preset's own draft, and any
    other that comes with the package needs local files that are the same to the byte.

    Args:
        target: as in `resolve_pair`; not for a target with an adapter.
        draft: as in `resolve_pair`.
        arbiter: folder, `none`, or None for the pair's own.
        draft_adapter: folder of the adapter that is merged into the draft.
    """
    if arbiter is not None:
        return None if arbiter.lower() == NO_DRAFT else Path(arbiter)
    if draft is not None:
        sources = resolve_pair(target, draft)
        ours, theirs = (Path(s.location) if s and s.kind in _FILES else None for s in sources)
        return known_arbiter(ours, theirs, draft_adapter) if ours and theirs else None
    if target not in PRESETS or PRESETS[target].target not in PACKAGED:
        return None
    from .tiny_pair import ARBITER

    return ARBITER if PRESETS[target].draft and ARBITER.is_dir() else None


def _source_of(preset: Preset, name: str) -> Source:
    if preset.target in PACKAGED:
        from .tiny_pair import path

        folder = path(PACKAGED[preset.target])
        return Source(name, "packaged", str(folder), licence=preset.licence)
    return Source(name, "hub", preset.target, gated=preset.gated, licence=preset.licence)


def _unknown(name: str) -> CheckpointError:
    close = difflib.get_close_matches(name.lower(), PRESETS, n=1, cutoff=0.5)
    meant = f" Did you mean {close[0]}?" if close else ""
    return CheckpointError(
        f"'{name}' is no preset, no local folder, no .gguf file and no hub id (org/name).{meant}",
        hint=f"Presets: {', '.join(PRESETS)}.",
    )

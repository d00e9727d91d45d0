"""Where a model comes from, and how its files are downloaded.

A `Source` is what the user passed: a preset, a Hugging Face folder, a hub id or a GGUF file.
`presets.resolve` makes one from a name. `fetch` returns its local path and downloads only the files
that an export reads: never a pickle, never a Python file.
"""

from __future__ import annotations

import contextlib
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from ..errors import CheckpointError, CospecError, MissingExtraError
from ..runtime.bundle.hub import ANSWER_TIMEOUT_S, disk_error, hub_reason, refusal

SourceKind = Literal["packaged", "folder", "gguf", "hub"]

HUB_ID = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]*/[A-Za-z0-9][A-Za-z0-9_.-]*")

DOWNLOADED = (
    "config.json",
    "adapter_config.json",
    "generation_config.json",
    "model*.safetensors",
    "model.safetensors.index.json",
    "tokenizer.json",
    "tokenizer_config.json",
    "tokenizer.model",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.json",
    "merges.txt",
    "chat_template.*",
    "additional_chat_templates/*.jinja",
    "LICENSE*",
    "README.md",  # names the licence
)
"""The files of a hub repository that are downloaded. `model*` excludes second copies of the weights
(consolidated.safetensors); no pattern matches pickles or code."""


@dataclass(frozen=True)
class Source:
    """One model as the user passed it.

    Attributes:
        name: what the user typed; used in messages and as the name of the bundle.
        kind: `packaged` and `folder` are local folders, `gguf` a local file, `hub` a hub id.
        location: the path, or the hub id.
        gated: whether the hub requires that the licence is accepted first, if a preset knows.
        licence: name of the licence, if a preset knows it.
    """

    name: str
    kind: SourceKind
    location: str
    gated: bool = False
    licence: str | None = None

    @property
    def label(self) -> str:
        """Name of the model in a bundle: of a local path the last part, because bundles travel."""
        return Path(self.location).name if self.kind in ("folder", "gguf") else self.name


def local_source(text: str) -> Source | None:
    """Return the file or folder that `text` names, or None if it is a preset or a hub id.

    Raises:
        CheckpointError: `text` is a path, and there is nothing usable at it.
    """
    path = Path(text).expanduser()
    looks_like_path = text.startswith((".", "/", "~")) or text.endswith("/") or "\\" in text
    if text.lower().endswith(".gguf") or path.is_file():
        return _file_source(text, path)
    if path.is_dir():
        if not looks_like_path and "/" not in text and not (path / "config.json").is_file():
            return None  # A folder whose name looks like a (mistyped) preset.
        return Source(text, "folder", str(path.resolve()))
    if looks_like_path or path.is_absolute() or text.count("/") > 1:
        raise CheckpointError(
            f"{text}: no such file or folder.",
            hint="Name a Hugging Face folder (config.json, *.safetensors, tokenizer.json), "
            "a .gguf file, a hub id (org/name) or a preset.",
        )
    return None


def _file_source(text: str, path: Path) -> Source:
    if not path.is_file():
        raise CheckpointError(f"{text}: no such GGUF file.")
    if path.suffix.lower() == ".gguf":
        return Source(text, "gguf", str(path.resolve()))
    raise CheckpointError(
        f"{text} is a file, but only .gguf checkpoints are single files.",
        hint="For a Hugging Face checkpoint, name the folder that holds config.json.",
    )


def fetch(source: Source) -> Path:
    """Return the local path of the checkpoint: a folder, or the .gguf file.

    A hub id is downloaded into the Hugging Face cache (HF_HOME; HF_HUB_OFFLINE is respected), with
    huggingface_hub's progress bars. Files that are in the cache are not downloaded again.

    Raises:
        CheckpointError: the checkpoint cannot be downloaded; the hint says what else to do.
        ResourceError: no room for the download, or a cache folder that cannot be written.
    """
    if source.kind != "hub":
        return Path(source.location)
    try:
        import huggingface_hub  # noqa: F401
    except ImportError as error:
        raise MissingExtraError("huggingface_hub", "export", "Downloading a checkpoint") from error
    try:
        return _download(source.location)
    except Exception as error:
        raise _explain(source, error) from error


def _download(hub_id: str) -> Path:
    from huggingface_hub import HfApi, snapshot_download

    wanted = list(DOWNLOADED)
    try:
        # Only for the timeout: snapshot_download waits forever if the hub does not answer.
        HfApi().model_info(hub_id, timeout=ANSWER_TIMEOUT_S)
    except Exception:
        with contextlib.suppress(OSError):
            return Path(snapshot_download(hub_id, allow_patterns=wanted, local_files_only=True))
        raise
    return Path(snapshot_download(hub_id, allow_patterns=wanted))


def _explain(source: Source, error: Exception) -> CospecError:
    """Return the error for a failed download, with what the user can do about it."""
    gated = source.gated or "gated" in (refusal(error) or "")
    reason = hub_reason(error)
    return disk_error(error, source.location) or _unavailable(source, reason, gated=gated)


def _unavailable(source: Source, reason: str, *, gated: bool) -> CheckpointError:
    hub_id = source.location
    folder = hub_id.rsplit("/", maxsplit=1)[-1]
    named = f"{source.name} ({hub_id})" if source.name != hub_id else hub_id
    steps = []
    if gated:
        licence = f" ({source.licence})" if source.licence else ""
        steps.append(
            f"This checkpoint is gated: accept its licence{licence} at "
            f"https://huggingface.co/{hub_id}, then `hf auth login`."
        )
    steps += [
        "Without the hub, point --target (and --draft) at local folders. With network access, on",
        f"any machine:  hf download {hub_id} --local-dir {folder}",
        f"and here:     cospec-export --target ./{folder} --draft DRAFT_FOLDER",
        "(--draft none drafts from the text itself; --target tiny needs no network at all).",
    ]
    return CheckpointError(
        f"Cannot get {named} from the model hub: {reason}.", hint="\n     ".join(steps)
    )

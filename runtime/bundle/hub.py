"""Bundles on the Hugging Face hub: `hf://org/name[@revision]`.

A pull reads the manifest first. It downloads only the files that the manifest lists, and refuses a
repository that holds them in other sizes. The files stay in the cache of huggingface_hub (HF_HOME) and
are used there. Their hashes are checked when the bundle is opened, as for any other bundle.

A broken connection is opened again, and continues at the byte where it broke. A command that was ended
keeps the files that it had received whole.
"""

from __future__ import annotations

import errno
import re
from contextlib import suppress
from pathlib import Path

from ...errors import BundleError, CospecError, MissingExtraError, ResourceError
from .durable import free_disk
from .files import format_bytes
from .manifest import MANIFEST_NAME, MAX_MANIFEST_BYTES, Manifest
from .reader import read_manifest

PREFIX = "hf://"
ANSWER_TIMEOUT_S = 5.0
"""Seconds to wait for the hub's first answer."""

_ADDRESS = re.compile(r"hf://([A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*)(?:@([A-Za-z0-9][\w./-]*))?")
_REFUSALS = {
    "GatedRepoError": "it is gated, and this machine has no access to it",
    "RepositoryNotFoundError": "the hub knows no such model (or it is private and you are not logged "
    "in)",
    "HFValidationError": "the hub knows no such model",
    "RevisionNotFoundError": "the repository has no such revision",
    "RemoteEntryNotFoundError": "the repository lacks a file",
}


def local_folder(path: str | Path) -> str | Path:
    """Return `path`, or the local folder of the bundle if it is an address on the hub; see `pull`."""
    return pull(path) if isinstance(path, str) and path.startswith(PREFIX) else path


def pull(address: str) -> Path:
    """Download a bundle, and return its folder in the cache of huggingface_hub.

    Without a network, or with HF_HUB_OFFLINE, the cache is used as it is.

    Args:
        address: `hf://org/name`, or `hf://org/name@revision` with a branch, tag or commit.

    Raises:
        BundleError: no such address, no bundle there, or files other than its manifest lists.
        ResourceError: no room for the download, or a cache that cannot be written.
        MissingExtraError: huggingface_hub is not installed.
    """
    found = _ADDRESS.fullmatch(address)
    if found is None:
        raise BundleError(
            f"{address}: not an address on the hub",
            hint="the form is hf://org/name or hf://org/name@revision",
        )
    try:
        import huggingface_hub  # noqa: F401
    except ImportError as error:
        raise MissingExtraError("huggingface_hub", "hub", "Downloading a bundle") from error
    try:
        return _download(address, found[1], found[2])
    except CospecError:
        raise
    except Exception as error:
        raise _unavailable(address, error) from error


def _download(address: str, repo: str, revision: str | None) -> Path:
    from huggingface_hub import HfApi, hf_hub_download, snapshot_download

    try:
        info = HfApi().model_info(
            repo, revision=revision, files_metadata=True, timeout=ANSWER_TIMEOUT_S
        )
    except Exception as error:
        if not refusal(error):
            with suppress(OSError, BundleError):
                return _cached(repo, revision)
        raise
    sizes = {file.rfilename: file.size for file in info.siblings or ()}
    if not 0 < (sizes.get(MANIFEST_NAME) or 0) <= MAX_MANIFEST_BYTES:
        raise BundleError(
            f"{address}: the repository holds no bundle (no usable {MANIFEST_NAME})",
            hint="cospec-export --push org/name publishes one.",
        )
    # By the name of the revision, under which the cache finds it again without a network.
    root = Path(hf_hub_download(repo, MANIFEST_NAME, revision=revision)).parent
    manifest = read_manifest(root)
    _compare_sizes(address, manifest, sizes)
    _ensure_room(root, manifest)
    names = [MANIFEST_NAME, *(entry.path for entry in manifest.files)]
    return Path(snapshot_download(repo, revision=root.name, allow_patterns=names))


def _cached(repo: str, revision: str | None) -> Path:
    """Return the folder of a bundle that was downloaded whole before.

    Raises:
        OSError: it is not in the cache, or only a part of it is.
        BundleError: its manifest is damaged.
    """
    from huggingface_hub import hf_hub_download

    manifest = hf_hub_download(repo, MANIFEST_NAME, revision=revision, local_files_only=True)
    root = Path(manifest).parent
    for entry in read_manifest(root).files:
        (root / entry.path).stat()
    return root


def _compare_sizes(address: str, manifest: Manifest, sizes: dict[str, int | None]) -> None:
    """Refuse a repository whose files are not those of the manifest, before they are downloaded."""
    for entry in manifest.files:
        size = sizes.get(entry.path)
        if size != entry.size:
            found = "is missing on the hub" if size is None else f"has {size} bytes on the hub"
            raise BundleError(
                f"{address}: {entry.path} {found}, but {entry.size} were written",
                hint="Ask who published it to push the bundle again.",
            )


def _ensure_room(root: Path, manifest: Manifest) -> None:
    missing = sum(entry.size for entry in manifest.files if not (root / entry.path).is_file())
    free = free_disk(root)
    if missing > free:
        raise ResourceError(
            f"the bundle takes {format_bytes(missing)}, and {format_bytes(free)} are free at {root}",
            hint="Free some space, or point HF_HOME at a larger disk.",
        )


def refusal(error: BaseException) -> str | None:
    """Return why the hub refused, or None if it did not answer at all."""
    names = _names(error)
    return next((reason for name, reason in _REFUSALS.items() if name in names), None)


def hub_reason(error: BaseException) -> str:
    """Return in a line why something could not be had from the hub."""
    if "OfflineModeIsEnabled" in _names(error):
        return "HF_HUB_OFFLINE is set, and the local Hugging Face cache does not hold it whole"
    last = _causes(error)[-1]
    said = " ".join(str(last).split())[:160] or type(last).__name__
    return refusal(error) or f"the hub cannot be reached ({said})"


def disk_error(error: BaseException, what: str) -> ResourceError | None:
    """Return the error to raise if a download failed because of the disk, else None.

    Args:
        error: what was raised.
        what: was downloaded.
    """
    # Only the operating system's own errors: hub and network errors inherit from OSError as well.
    numbers = {cause.errno for cause in _causes(error) if isinstance(cause, OSError)}
    if numbers & {errno.ENOSPC, errno.EDQUOT}:
        return ResourceError(
            f"No room left on the disk while downloading {what}.",
            hint="Free some space, or point HF_HOME at a larger disk, and run the command again: "
            "the download continues where it stopped.",
        )
    if numbers & {errno.EACCES, errno.EROFS, errno.EPERM}:
        return ResourceError(
            f"Cannot write {what} to the Hugging Face cache: {_causes(error)[-1]}.",
            hint="Point HF_HOME at a folder that you can write.",
        )
    return None


def _unavailable(address: str, error: Exception) -> CospecError:
    hint = (
        "Check the name and the network; HF_TOKEN or `hf auth login` gives access to private ones."
    )
    if not refusal(error):
        hint = "Run the command again with a network: files that were received whole are kept."
    return disk_error(error, address) or BundleError(
        f"{address}: cannot be downloaded: {hub_reason(error)}", hint=hint
    )


def _causes(error: BaseException) -> list[BaseException]:
    """Return the error and the errors that caused it, innermost last."""
    chain: list[BaseException] = []
    current: BaseException | None = error
    while current is not None and current not in chain:
        chain.append(current)
        current = current.__cause__ or current.__context__
    return chain


def _names(error: BaseException) -> set[str]:
    return {kind.__name__ for cause in _causes(error) for kind in type(cause).__mro__}

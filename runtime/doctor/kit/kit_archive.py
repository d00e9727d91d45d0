"""The kit as an archive: bundles, goldens, a wheel of cospec, and what installs and runs it."""

from __future__ import annotations

import zipfile
from collections.abc import Callable, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Annotated

from msgspec import Meta, Struct

from ....errors import UsageError
from ...bundle.durable import write_json
from ...bundle.json_input import read_json
from ...bundle.reader import Bundle
from .device_checks import write_goldens
from .kit_steps import KitItem, compute_goldens

KIT_FILE = "kit.json"
RECIPES = Path(__file__).with_name("recipes")
_FOLDER = "device-kit"

Name = Annotated[str, Meta(min_length=1, max_length=128, pattern=r"^[\w.-]+$")]


class KitContents(Struct, frozen=True, forbid_unknown_fields=True):
    """What kit.json says: the names of its bundles, in the order in which they run."""

    bundles: Annotated[tuple[Name, ...], Meta(min_length=1, max_length=32)]


def kit_items(folders: Sequence[Path]) -> list[KitItem]:
    """Return the bundles of kits, and bundles that are named themselves.

    Raises:
        UsageError: a folder is neither.
        BundleError: a bundle is damaged.
    """
    items = []
    for folder in folders:
        if not (folder / KIT_FILE).is_file():
            items.append(KitItem(folder))
            continue
        contents = read_json(folder / KIT_FILE, KitContents, max_bytes=1 << 16, error=UsageError)
        for name in contents.bundles:
            goldens = folder / "goldens" / f"{name}.npz"
            items.append(KitItem(folder / "bundles" / name, goldens if goldens.is_file() else None))
    return items


def make_archive(
    bundles: Sequence[Path],
    output: Path,
    wheel: Path | None,
    progress: Callable[[str], None] = lambda line: None,
) -> None:
    """Write a kit of bundles as a zip file.

    Args:
        bundles: exported with --trt; they run in this order.
        output: the archive.
        wheel: of cospec; without one, the kit installs cospec by name.
        progress: called with a line about each part.

    Raises:
        BundleError: a bundle is damaged.
        UsageError: two bundles have one name.
        ResourceError: the archive cannot be written.
    """
    names = [bundle.name for bundle in bundles]
    if len(set(names)) < len(names):
        raise UsageError("two bundles have the same name", hint="rename a folder")
    part = output.with_name(f".{output.name}.part")
    with TemporaryDirectory() as scratch, zipfile.ZipFile(part, "w") as archive:
        for folder in bundles:
            opened = Bundle.open(folder)
            progress(f"{folder.name}: computing the goldens on the CPU")
            goldens = Path(scratch) / f"{folder.name}.npz"
            write_goldens(goldens, compute_goldens(opened))
            archive.write(goldens, f"{_FOLDER}/goldens/{goldens.name}")
            for file in sorted(folder.rglob("*")):
                name = file.relative_to(folder)
                if file.is_file() and name.parts[0] != "engines":  # they are the device's own
                    archive.write(file, f"{_FOLDER}/bundles/{folder.name}/{name.as_posix()}")
        contents = Path(scratch) / KIT_FILE
        write_json(contents, {"bundles": names})
        archive.write(contents, f"{_FOLDER}/{KIT_FILE}")
        for recipe in sorted(RECIPES.iterdir()):
            archive.write(recipe, f"{_FOLDER}/{recipe.name}", zipfile.ZIP_DEFLATED)
        if wheel is not None:
            archive.write(wheel, f"{_FOLDER}/{wheel.name}")
    part.replace(output)

"""What the site needs beside docs/: pages that live elsewhere in the repository, and links to them.

A link in a page is written as it works in the repository. Here it is turned to the page that shows
the file; a link to a file that no page shows, such as a script, becomes plain text.
"""

from __future__ import annotations

import posixpath
import re
from pathlib import Path
from typing import Any

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.exceptions import PluginError
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

ROOT = Path(__file__).resolve().parents[1]
OUTSIDE = {
    "README.md": "repository.md",  # a README beside index.md would be taken for the same page
    "CONTRIBUTING.md": "CONTRIBUTING.md",
    "models/tiny_pair/MODEL_CARD.md": "models/tiny_pair/MODEL_CARD.md",
}
"""File of the repository -> page that shows it."""

_LINK = re.compile(r"(?<!\\)(!?)\[([^\]]*)\]\(([^)\s]+)\)")
_CODE = re.compile(r"^```.*?^```", re.DOTALL | re.MULTILINE)


def on_startup(*, command: str, dirty: bool) -> None:
    """Make a folder that holds what the reference is made of under the package's name.

    The repository root is the package; it holds environments and caches too, which nobody should walk.
    mkdocstrings does that where it does not find the folder when it reads its configuration, so the
    folder is made before.
    """
    package = ROOT / ".cache/docs/cospec"
    package.mkdir(parents=True, exist_ok=True)
    for name in ("__init__.py", "errors.py", "runtime"):
        link = package / name
        if not link.is_symlink():
            link.symlink_to(ROOT / name)


def on_config(config: MkDocsConfig) -> MkDocsConfig:
    """Leave pages out of the navigation that are not written yet."""
    config.nav = _present(config.nav)
    return config


def _present(entry: Any) -> Any:
    """Return a part of the navigation without pages that do not exist."""
    if isinstance(entry, list):
        return [kept for kept in map(_present, entry) if kept]
    if isinstance(entry, dict):
        return {title: kept for title, value in entry.items() if (kept := _present(value))}
    known = entry in OUTSIDE.values() or (ROOT / "docs" / entry).is_file()
    return entry if known else None


def on_files(files: Files, *, config: MkDocsConfig) -> Files:
    """Add the pages that live outside docs/."""
    for source, page in OUTSIDE.items():
        if files.get_file_from_path(page) is None:
            files.append(File.generated(config, page, abs_src_path=str(ROOT / source)))
    return files


def on_page_content(html: str, *, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Refuse a page that shows the mark of an include instead of the file."""
    if re.search(r"-+8\s*&lt;\s*-", re.sub(r"<[^>]+>", "", html)):
        raise PluginError(
            f"{page.file.src_uri}: an include mark is left, and its file is not shown"
        )
    return html


def _options() -> str:
    """Return a table of the generation options, from their declaration."""
    from cospec.runtime.decoding.options import GenerationOptions
    from cospec.runtime.sampling.declaration import options_of

    rows = ["| option | command line | HTTP | sets |", "|---|---|---|---|"]
    for each in options_of(GenerationOptions).values():
        http = f"`{each.http}`" if each.http else "no"
        summary = each.summary.replace("|", "\\|")
        rows.append(f"| `{each.name}` | `{each.flag}` | {http} | {summary} |")
    return "\n".join(rows)


def on_page_markdown(markdown: str, *, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Write the table of options, and turn links to files of the repository to pages of the site."""
    markdown = markdown.replace("<!-- generation options -->", _options())
    shown = {page: source for source, page in OUTSIDE.items()}
    uri = page.file.src_uri
    own = (ROOT / "docs" / uri).is_file()
    source = f"docs/{uri}" if own else shown[uri]

    def turned(match: re.Match[str]) -> str:
        bang, text, target = match.groups()
        if re.match(r"[a-z]+:|#|/", target):
            return match[0]
        path, hash_, anchor = target.partition("#")
        path = posixpath.normpath(posixpath.join(posixpath.dirname(source), path))
        wanted = OUTSIDE.get(path) or path.removeprefix("docs/")
        if files.get_file_from_path(wanted) is not None:
            start = posixpath.dirname(uri) or "."
            return f"{bang}[{text}]({posixpath.relpath(wanted, start)}{hash_}{anchor})"
        if (ROOT / path).exists():
            return text
        return match[0]  # MkDocs says that it leads nowhere

    parts, end = [], 0
    for code in _CODE.finditer(markdown):
        parts += [_LINK.sub(turned, markdown[end : code.start()]), code[0]]
        end = code.end()
    return "".join([*parts, _LINK.sub(turned, markdown[end:])])

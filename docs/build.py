"""Build the documentation site: `make docs`.

    python docs/build.py

Copies the pages to .cache/docs, and adds what lies elsewhere in the repository: README, CONTRIBUTING,
the model card, and a table of the generation options. A link in a page is written as it works in the
repository. In the copy it leads to the page that shows the file; a link to a file that no page shows,
such as a script, becomes plain text. Then Zensical builds the site and refuses broken links.
"""

from __future__ import annotations

import posixpath
import re
import shutil
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
STAGING = ROOT / ".cache/docs"
SITE = ROOT / ".cache/site"
OUTSIDE = {
    "README.md": "repository.md",  # a README beside index.md would be taken for the same page
    "CONTRIBUTING.md": "CONTRIBUTING.md",
    "models/tiny_pair/MODEL_CARD.md": "models/tiny_pair/MODEL_CARD.md",
}
"""File of the repository -> page that shows it."""

_LINK = re.compile(r"(?<!\\)(!?)\[([^\]]*)\]\(([^)\s]+)\)")
_CODE = re.compile(r"^```.*?^```", re.DOTALL | re.MULTILINE)


def main() -> None:
    """Build the site; mkdocs.yml says from which folder and to which."""
    write_pages(STAGING / "pages")
    link_package(STAGING / "cospec")
    shutil.rmtree(SITE, ignore_errors=True)
    SITE.mkdir(parents=True)
    done = subprocess.run(
        [sys.executable, "-m", "zensical", "build", "--strict"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    report = done.stdout + done.stderr
    if done.returncode or "No issues found" not in report:
        raise SystemExit(report)
    for page in sorted(SITE.rglob("*.html")):
        check_includes(page.read_text(encoding="utf-8"), page.name)


def write_pages(folder: Path) -> None:
    """Write all pages and pictures of the site to a folder, which is replaced."""
    shutil.rmtree(folder, ignore_errors=True)
    shutil.copytree(ROOT / "docs", folder, ignore=shutil.ignore_patterns("*.py", "__pycache__"))
    sources = {path.relative_to(folder).as_posix(): path for path in folder.rglob("*.md")}
    sources |= {page: ROOT / source for source, page in OUTSIDE.items()}
    for page, source in sources.items():
        own = next((key for key, shown in OUTSIDE.items() if shown == page), f"docs/{page}")
        text = source.read_text(encoding="utf-8")
        text = text.replace("<!-- generation options -->", options_table())
        (folder / page).parent.mkdir(parents=True, exist_ok=True)
        (folder / page).write_text(turn_links(text, own, page), encoding="utf-8")


def link_package(package: Path) -> None:
    """Make a folder that holds what the reference is made of under the package's name.

    The repository root is the package; it holds environments and caches too, which nobody should walk.
    """
    package.mkdir(parents=True, exist_ok=True)
    for name in ("__init__.py", "errors.py", "runtime"):
        link = package / name
        if not link.is_symlink():
            link.symlink_to(ROOT / name)


def options_table() -> str:
    """Return a table of the generation options, from their declaration."""
    from cospec.runtime.decoding.options import GenerationOptions
    from cospec.runtime.sampling.declaration import options_of

    rows = ["| option | command line | HTTP | sets |", "|---|---|---|---|"]
    for each in options_of(GenerationOptions).values():
        http = f"`{each.http}`" if each.http else "no"
        summary = each.summary.replace("|", "\\|")
        rows.append(f"| `{each.name}` | `{each.flag}` | {http} | {summary} |")
    return "\n".join(rows)


def turn_links(text: str, source: str, page: str) -> str:
    """Return the text of a page with links to files turned to the pages that show them.

    Args:
        text: Markdown.
        source: path of the file in the repository.
        page: path of the page in the site.
    """

    def turned(match: re.Match[str]) -> str:
        bang, shown, target = match.groups()
        if re.match(r"[a-z]+:|#|/", target):
            return match[0]
        path, hash_, anchor = target.partition("#")
        path = posixpath.normpath(posixpath.join(posixpath.dirname(source), path))
        wanted = OUTSIDE.get(path) or (
            path.removeprefix("docs/") if path.startswith("docs/") else ""
        )
        if wanted and (path in OUTSIDE or (ROOT / path).is_file()):
            start = posixpath.dirname(page) or "."
            return f"{bang}[{shown}]({posixpath.relpath(wanted, start)}{hash_}{anchor})"
        if (ROOT / path).exists():
            return shown
        return match[0]  # the build refuses it

    parts, end = [], 0
    for code in _CODE.finditer(text):
        parts += [_LINK.sub(turned, text[end : code.start()]), code[0]]
        end = code.end()
    return "".join([*parts, _LINK.sub(turned, text[end:])])


def check_includes(html: str, page: str) -> None:
    """Refuse a page that shows the mark of an include instead of the file.

    Raises:
        SystemExit: names the page.
    """
    if re.search(r"-+8\s*&lt;\s*-", re.sub(r"<[^>]+>", "", html)):
        raise SystemExit(f"{page}: an include mark is left, and its file is not shown")


if __name__ == "__main__":
    main()

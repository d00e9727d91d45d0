"""The documentation site: it builds, no link is broken, and a browser shows it without a network."""

from __future__ import annotations

import importlib.util
import re
import subprocess
import sys
from collections.abc import Iterator
from functools import partial
from html import escape, unescape
from html.parser import HTMLParser
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread
from types import ModuleType
from urllib.parse import unquote, urlsplit

import pytest
from browser import opened

ROOT = Path(__file__).resolve().parents[1]

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def site() -> Path:
    """The site, built as `make docs` does; a link that leads nowhere fails it."""
    for package in ("zensical", "mkdocs_click", "mkdocstrings"):
        pytest.importorskip(package, reason="the extra `docs` is not installed")
    done = subprocess.run(
        [sys.executable, "docs/build.py"],
        cwd=ROOT,
        capture_output=True,
        check=False,
        timeout=540,
        encoding="utf-8",
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout + done.stderr == "", "no warning"
    return ROOT / ".cache/site"


class Page(HTMLParser):
    """What a page links to and what can be linked to in it."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.links: list[str] = []
        self.resources: list[str] = []
        self.anchors: set[str] = set()
        self.feed(path.read_text(encoding="utf-8"))

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        given = {name: value for name, value in attributes if value is not None}
        self.anchors |= {given[name] for name in ("id", "name") if name in given}
        if tag == "a" and "href" in given:
            self.links.append(given["href"])
        elif tag != "a":
            is_canonical = given.get("rel") == "canonical"
            self.resources += [
                given[name] for name in ("src", "href") if name in given and not is_canonical
            ]


def test_every_link_and_anchor_of_the_html_leads_somewhere(site):
    pages = {path: Page(path) for path in site.rglob("*.html") if path.name != "404.html"}
    assert len(pages) >= 15
    broken = []
    for path, page in pages.items():
        for link in page.links + page.resources:
            parts = urlsplit(link)
            if parts.scheme or parts.netloc:
                continue
            target = (path.parent / unquote(parts.path)).resolve() if parts.path else path
            if target.is_dir():
                target /= "index.html"
            anchor = unquote(parts.fragment)
            known = pages[target].anchors if target in pages else set()
            if not target.is_file() or (
                anchor and not anchor.startswith("__") and anchor not in known
            ):
                broken.append(f"{path.relative_to(site)}: {link}")
    assert broken == []


def test_nothing_is_loaded_from_elsewhere(site):
    for path in site.rglob("*.html"):
        if path.name != "404.html":
            assert [each for each in Page(path).resources if urlsplit(each).netloc] == []


def test_every_command_and_every_public_name_has_its_place(site):
    import cospec

    commands = re.findall(r"^(cospec-\w+) = ", (ROOT / "pyproject.toml").read_text(), re.MULTILINE)
    cli = (site / "cli.html").read_text(encoding="utf-8")
    from importlib.util import find_spec

    for command in commands:
        name = command.partition("-")[2]
        if name == "doctor" and find_spec("cospec.runtime.cli.doctor") is None:
            continue
        assert f'id="{command}"' in cli, command
    anchors = Page(site / "api.html").anchors
    shown = {anchor.rpartition(".")[2] for anchor in anchors}
    missing = set(cospec.__all__) - shown - {"__version__"}
    assert missing == set()


def test_the_example_programs_are_shown(site):
    shown = unescape(re.sub(r"<[^>]+>", "", (site / "examples.html").read_text(encoding="utf-8")))
    programs = sorted((ROOT / "examples").glob("0*.py"))
    assert len(programs) >= 7
    for program in programs:
        for line in filter(None, program.read_text(encoding="utf-8").splitlines()):
            assert line.strip() in shown, f"{program.name}: {line}"


@pytest.fixture
def build(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """The program that builds the site."""
    spec = importlib.util.spec_from_file_location("build_docs", ROOT / "docs/build.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize("mark", ['--8<-- "examples/01_minimal.py"', '--8 < --"a.py"', "-8<-"])
def test_a_page_with_an_include_mark_is_refused(build, mark):
    html = f"<pre><code><span>{escape(mark, quote=False)}</span></code></pre>"
    with pytest.raises(SystemExit, match=r"examples\.html: an include mark is left"):
        build.check_includes(html, "examples.html")
    build.check_includes("<p>8 &lt; 9</p>", "page.html")


@pytest.mark.parametrize(
    ("source", "page", "link", "turned"),
    [
        ("docs/faq.md", "faq.md", "[a](speed.md#x)", "[a](speed.md#x)"),
        ("docs/faq.md", "faq.md", "[a](../README.md#x)", "[a](repository.md#x)"),
        ("docs/faq.md", "faq.md", "[a](../errors.py)", "a"),
        ("docs/faq.md", "faq.md", "[a](nothing.md)", "[a](nothing.md)"),
        ("docs/faq.md", "faq.md", "[a](#here)", "[a](#here)"),
        ("README.md", "repository.md", "![a](docs/images/round.svg)", "![a](images/round.svg)"),
        ("README.md", "repository.md", "[a](docs/faq.md)", "[a](faq.md)"),
        ("README.md", "repository.md", "[a](https://arxiv.org)", "[a](https://arxiv.org)"),
        (
            "models/tiny_pair/MODEL_CARD.md",
            "models/tiny_pair/MODEL_CARD.md",
            "[a](../../docs/faq.md)",
            "[a](../../faq.md)",
        ),
    ],
)
def test_links_of_the_repository_lead_to_pages_of_the_site(build, source, page, link, turned):
    assert build.turn_links(link, source, page) == turned
    code = f"```\n{link}\n```"
    assert build.turn_links(code, source, page) == code


def test_a_link_or_an_anchor_that_leads_nowhere_ends_the_build(tmp_path):
    """In a small site of its own, with the settings of ours."""
    pytest.importorskip("zensical", reason="the extra `docs` is not installed")
    for name, text in {
        "good.md": "# A\n\n[b](good.md#a)\n",
        "page.md": "# A\n\n[b](other.md)\n",
        "anchor.md": "# A\n\n[b](anchor.md#nowhere)\n",
    }.items():
        folder = tmp_path / name
        (folder / "docs").mkdir(parents=True)
        (folder / "docs/index.md").write_text("# Index\n")
        (folder / "docs" / name).write_text(text)
        (folder / "mkdocs.yml").write_text("site_name: x\nuse_directory_urls: false\n")
        done = subprocess.run(
            [sys.executable, "-m", "zensical", "build", "--strict"],
            cwd=folder,
            capture_output=True,
            check=False,
            encoding="utf-8",
        )
        assert (done.returncode == 0) == (name == "good.md"), done.stdout


@pytest.fixture
def address(site: Path) -> Iterator[str]:
    class Quiet(SimpleHTTPRequestHandler):
        def log_message(self, *arguments: object) -> None:
            """Say nothing."""

    with ThreadingHTTPServer(("127.0.0.1", 0), partial(Quiet, directory=str(site))) as server:
        Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_address[1]}"
        server.shutdown()


def test_a_browser_shows_it(address):
    with opened(f"{address}/index.html", color_scheme="dark") as page:
        assert page.locator("h1").first.inner_text().startswith("CoSpec")
        page.goto(f"{address}/concepts.html")
        widths = page.locator("article img").evaluate_all("(all) => all.map((e) => e.naturalWidth)")
        assert len(widths) == 2
        assert all(width > 0 for width in widths), "every picture is drawn"
        page.goto(f"{address}/cli.html")
        assert page.get_by_text("--trace", exact=False).count() > 0
        page.goto(f"{address}/api.html")
        page.locator("[class*=search]:visible").first.click(timeout=180_000)
        page.locator("input[type=text][aria-label=Search]").fill("threshold", timeout=180_000)
        page.locator("a[role=option]").first.wait_for(timeout=180_000)
        overflow = page.evaluate("document.documentElement.scrollWidth > innerWidth")
        assert not overflow, "nothing is wider than the window"

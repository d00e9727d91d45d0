"""Make the pictures of real runs: a terminal, and the page of a trace.

    python docs/pictures.py [BUNDLE]

runs the commands below on the tiny pair in a pseudo-terminal, and writes docs/images/demo.svg and
docs/images/trace.png. Without the bundle of the tiny pair it makes one. Needs the extra `dev`, and
Chromium for the second picture.
"""

from __future__ import annotations

import os
import pty
import shlex
import shutil
import subprocess
import sys
from io import StringIO
from pathlib import Path
from tempfile import TemporaryDirectory

from rich.console import Console
from rich.text import Text

IMAGES = Path(__file__).resolve().parent / "images"
WIDTH = 110
EXPORT = "cospec-export --target tiny"
COMMANDS = (
    "cospec-run --engine-dir models/tiny "
    '"Mia has 58 keys and Sam 55 more than Mia. How many in all?"',
    'cospec-run --engine-dir models/tiny --mode strict --provenance "What is 625 times 4?"',
    'cospec-run --engine-dir models/tiny --mode collab --provenance "What is 625 times 4?"',
)
TRACED = (
    'cospec-run --engine-dir models/tiny --mode collab --trace trace.html "What is 625 times 4?"'
)


def in_terminal(command: str, folder: Path) -> str:
    """Run a command in a pseudo-terminal and return what it printed, colours included."""
    end, terminal = pty.openpty()
    programs = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    env = {**os.environ, "PATH": programs, "COLUMNS": str(WIDTH), "TERM": "xterm-256color"}
    process = subprocess.Popen(
        shlex.split(command),
        cwd=folder,
        env=env,
        stdin=subprocess.DEVNULL,
        stdout=terminal,
        stderr=subprocess.STDOUT,
    )
    os.close(terminal)
    printed = b""
    while True:
        try:
            piece = os.read(end, 4096)
        except OSError:  # Linux reports the end of a terminal as an error
            break
        if not piece:
            break
        printed += piece
    os.close(end)
    if process.wait() != 0:
        raise SystemExit(f"{command}\n{printed.decode()}")
    return printed.decode().replace("\r\n", "\n")


def main() -> None:
    """Run the commands and write both pictures."""
    with TemporaryDirectory() as scratch:
        folder = Path(scratch)
        console = Console(record=True, width=WIDTH, file=StringIO(), force_terminal=True)
        if len(sys.argv) > 1:
            (folder / "models").mkdir()
            (folder / "models/tiny").symlink_to(Path(sys.argv[1]).resolve())
        else:
            in_terminal(EXPORT, folder)
        for command in COMMANDS:
            console.print(Text(f"$ {command}", style="bold"))
            console.print(Text.from_ansi(in_terminal(command, folder)))
        console.save_svg(str(IMAGES / "demo.svg"), title="cospec")
        in_terminal(TRACED, folder)
        screenshot(folder / "trace.html", IMAGES / "trace.png")


def screenshot(page: Path, picture: Path) -> None:
    """Write a picture of a page, as headless Chromium shows it."""
    from playwright.sync_api import sync_playwright

    browser_path = shutil.which("chromium") or shutil.which("google-chrome")
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(
            executable_path=browser_path, args=["--no-sandbox", "--disable-gpu"]
        )
        tab = browser.new_page(viewport={"width": 1000, "height": 640})
        tab.goto(page.as_uri())
        tab.screenshot(path=picture)
        browser.close()


if __name__ == "__main__":
    main()

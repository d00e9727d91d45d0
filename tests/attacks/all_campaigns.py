"""All campaigns in one piece, two at a time, with one table of tried and failed at the end.

    cd tests && python -m attacks.all_campaigns BUNDLE [--full] [--only NAME]

Without --full they take about half an hour on two cores. Everything that a campaign prints goes to a
file beside the bundle. Ends with 1 if a campaign found something, or did not come to its end.
"""

from __future__ import annotations

import argparse
import re
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Campaign:
    """A program beside this file.

    Attributes:
        module: its name.
        arguments: that are always given; BUNDLE is replaced by the bundle.
        bounded, full: more arguments, for half an hour of all campaigns and for the full counts.
    """

    module: str
    arguments: str
    bounded: str = ""
    full: str = ""

    def command(self, bundle: Path, *, full: bool) -> list[str]:
        """Return the command line."""
        words = f"{self.arguments} {self.full if full else self.bounded}".split()
        given = [str(bundle) if word == "BUNDLE" else word for word in words]
        return [sys.executable, "-m", f"attacks.{self.module}", *given]


# The longest begin first.
CAMPAIGNS = {
    "commands that are ended": Campaign(
        "ended_commands",
        "BUNDLE",
        "--terms 40 --kills 80 --limits 4 --disks 6",
        "--terms 100 --kills 200 --limits 20 --disks 40",
    ),
    "HTTP requests": Campaign(
        "http_requests",
        "--engine-dir BUNDLE",
        "--requests 2500 --related 9",
        "--requests 16000 --related 9",
    ),
    "random templates": Campaign("random_templates", "", "--seconds 240", "--seconds 1200"),
    "sandbox": Campaign("sandbox_campaign", ""),
    "hostile bundles": Campaign("hostile_bundles", "BUNDLE"),
    "load while replaced": Campaign("load_while_replaced", "BUNDLE", "--loads 400", "--loads 2000"),
    "random mutations": Campaign("random_mutations", "BUNDLE", "--count 20000", "--count 100000"),
    "large bodies": Campaign("http_stalls", "--engine-dir BUNDLE --limit 1000"),
}


def run(name: str, bundle: Path, *, full: bool) -> tuple[str, str, float, int]:
    """Run a campaign; return its name, what its last line says, its seconds, and its exit code."""
    started = time.monotonic()
    log = bundle.with_name(f"{CAMPAIGNS[name].module}.log")
    with log.open("w") as stream:
        done = subprocess.run(
            CAMPAIGNS[name].command(bundle, full=full), stdout=stream, stderr=stream, check=False
        )
    lines = re.findall(r"^tried (\d+), failed (\d+)", log.read_text(), re.MULTILINE)
    said = "{:>8}{:>8}".format(*lines[-1]) if lines else f"did not end; see {log}"
    seconds = time.monotonic() - started
    print(f"{name}: {said.strip()}, {seconds:.0f} s", file=sys.stderr, flush=True)
    return name, said, seconds, done.returncode


def main() -> int:
    """Run the campaigns and print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("bundle", type=Path)
    parser.add_argument("--full", action="store_true", help="the counts of docs/security.md")
    parser.add_argument("--only", action="append", choices=list(CAMPAIGNS))
    given = parser.parse_args()
    bundle, started = given.bundle.resolve(), time.monotonic()
    with ThreadPoolExecutor(2) as pool:
        rows = list(
            pool.map(lambda name: run(name, bundle, full=given.full), given.only or CAMPAIGNS)
        )
    print(f"{'campaign':<28}{'tried':>8}{'failed':>8}{'seconds':>9}")
    for name, said, seconds, _ in rows:
        print(f"{name:<28}{said}{seconds:>9.0f}")
    print(f"{time.monotonic() - started:.0f} s in all")
    return int(any(code for *_, code in rows))


if __name__ == "__main__":
    sys.exit(main())

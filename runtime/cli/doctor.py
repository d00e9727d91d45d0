"""cospec-doctor: what is installed, what fits this machine, and how to solve problems."""

from __future__ import annotations

from collections import Counter
from dataclasses import asdict
from pathlib import Path

import click

from ..doctor.bundle_check import check_bundle
from ..doctor.checks import check_machine
from ..doctor.findings import Finding
from ..doctor.machine import probe
from .common import BundleFolder, CospecCommand, json_option, print_json

EPILOG = """
\b
Examples:
  cospec-doctor
  cospec-doctor --engine-dir models/tiny
  cospec-doctor --json > report.json
"""

COLOURS = {"ok": "green", "warning": "yellow", "problem": "red"}


@click.command(cls=CospecCommand, epilog=EPILOG)
@click.option(
    "--engine-dir",
    type=BundleFolder(),
    help="Also check whether this bundle can run here.",
)
@json_option
def main(engine_dir: Path | None, as_json: bool) -> None:
    """Check this machine: what works, what does not, and the command that solves it.

    Exits with 1 if there is a problem; warnings do not count. The report holds versions and sizes, no
    paths but those in errors, and no names of people or machines.
    """
    machine = probe(engine_dir or Path())
    findings = check_machine(machine)
    if engine_dir is not None:
        findings += check_bundle(engine_dir, machine)
    problems = sum(finding.level == "problem" for finding in findings)
    if as_json:
        print_json(
            {
                "ok": not problems,
                "findings": [asdict(finding) for finding in findings],
                "machine": machine.to_json(),
            }
        )
    else:
        for finding in findings:
            _show(finding)
        count = Counter(finding.level for finding in findings)
        click.echo(f"{count['problem']} problems, {count['warning']} warnings")
    if problems:
        raise click.exceptions.Exit(1)


def _show(finding: Finding) -> None:
    level = click.style(f"{finding.level:<8}", fg=COLOURS[finding.level])
    click.echo(f"{level} {finding.topic:<12} {finding.message}")
    if finding.fix is not None:
        click.echo(f"{'':<8} {'':<12} -> {finding.fix}")


if __name__ == "__main__":
    main()

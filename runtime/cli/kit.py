"""cospec-kit: build, check and measure bundles on this device, and report it."""

from __future__ import annotations

from pathlib import Path

import click

from ...errors import UsageError
from ..doctor.kit.kit_report import Report
from .common import CospecCommand, at_least, json_option, print_json

SKIPPED_EXIT_CODE = 77

EPILOG = """
\b
Examples:
  cospec-kit models/tiny
  cospec-kit kit --minutes 40
  cospec-kit bundles/tiny bundles/smollm2 --make kit.zip
"""


@click.command(cls=CospecCommand, epilog=EPILOG)
@click.argument("folders", nargs=-1, required=True, type=click.Path(path_type=Path))
@click.option(
    "--output",
    type=click.Path(path_type=Path),
    default="device-report.json",
    show_default=True,
    help="File of the report; a page that shows it is written beside it. An existing report of this "
    "device is continued.",
)
@click.option(
    "--minutes",
    type=float,
    help="Begin no step after this many minutes.  [default: 20]",
)
@click.option("--max-tokens", type=int, help="Tokens of each measured output.  [default: 64]")
@click.option(
    "--make",
    type=click.Path(path_type=Path),
    metavar="ZIP",
    help="Run nothing: write the bundles, what they compute here, and a script that installs and runs "
    "everything into one archive.",
)
@click.option(
    "--wheel",
    type=click.Path(path_type=Path, exists=True, dir_okay=False),
    help="Wheel of cospec for the archive, with --make. Default: the archive's script installs cospec "
    "from the package index.",
)
@json_option
def main(
    folders: tuple[Path, ...],
    output: Path,
    minutes: float | None,
    max_tokens: int | None,
    make: Path | None,
    wheel: Path | None,
    as_json: bool,
) -> None:
    """Build, check and measure bundles on the TensorRT and the GPU of this machine.

    FOLDERS are kits that --make wrote, or bundles made with cospec-export --trt. Exits with 0 if every
    check passed, 1 if one failed, and 77 if there is no GPU or no TensorRT.
    """
    from ..doctor.kit.kit_archive import kit_items, make_archive
    from ..doctor.kit.kit_page import page_of
    from ..doctor.kit.kit_run import run_kit
    from ..doctor.kit.kit_steps import DEFAULT_MINUTES, DEFAULT_TOKENS, KitOptions

    at_least("--max-tokens", max_tokens, 1)

    def progress(line: str) -> None:
        click.echo(f"{line} ...", err=True)

    if wheel is not None and make is None:
        raise UsageError("--wheel is for an archive", hint="add --make")
    if make is not None:
        make_archive(folders, make, wheel, progress)
        click.echo(f"{make} written. On the device: unzip it and run device-kit/run.sh")
        return
    options = KitOptions(
        minutes=DEFAULT_MINUTES if minutes is None else minutes,
        max_tokens=DEFAULT_TOKENS if max_tokens is None else max_tokens,
    )
    report = run_kit(kit_items(folders), output, options, progress)
    output.with_suffix(".html").write_text(page_of(report), encoding="utf-8")
    if as_json:
        import msgspec

        print_json(msgspec.to_builtins(report))
    else:
        _show(report, output)
    code = {"passed": 0, "failed": 1, "skipped": SKIPPED_EXIT_CODE}[report.status]
    if code:
        raise click.exceptions.Exit(code)


def _show(report: Report, output: Path) -> None:
    """Print the outcome."""
    label = " (simulated)" if report.simulated else ""
    reason = f": {report.reason}" if report.reason else ""
    click.echo(f"{report.status.upper()}{label}{reason}")
    for name, title, step in report.failures:
        failure = step.failure
        words = f"{failure.kind}: {failure.message}" if failure else "did not pass"
        click.echo(f"  {name}, {title}: {words}")
    for name, bundle in report.bundles.items():
        speeds = ", ".join(f"{k} {v.tokens_per_second:.1f}" for k, v in bundle.speed.items())
        click.echo(f"  {name}: {bundle.status}" + (f"; tokens/s: {speeds}" if speeds else ""))
    click.echo(f"report: {output}, and {output.with_suffix('.html').name} shows it")


if __name__ == "__main__":
    main()

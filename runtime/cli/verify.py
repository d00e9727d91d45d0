"""cospec-verify: whether every file of a bundle, and its text, is as it was exported."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Any

import click

from ...errors import BundleError, UsageError
from ..bundle.files import format_bytes
from ..bundle.manifest import EXPORT_OR_COPY_AGAIN, Manifest
from ..bundle.reader import FileReport, check_files, find_bundle, read_manifest, unlisted_files
from .common import BundleFolder, CospecCommand, json_option, print_json


@click.command(
    cls=CospecCommand,
    epilog="Example: cospec-verify models/tiny",
)
@click.argument("directory", metavar="DIR", type=BundleFolder())
@click.option(
    "--text",
    is_flag=True,
    help="Also check that texts and chats become the tokens that transformers gave them at the export.",
)
@json_option
def main(directory: Path, text: bool, as_json: bool) -> None:
    """Check the size and the SHA-256 of every file of the bundle DIR.

    DIR is a bundle, a folder with one bundle in it, or hf://org/name[@revision]. Files that the
    manifest does not list are reported and do no harm: nothing reads them.
    """
    root = find_bundle(directory).resolve()
    manifest = read_manifest(root)
    total = sum(entry.size for entry in manifest.files)
    reports = check_files(root, manifest)
    unlisted = unlisted_files(root, manifest)
    bad = [report for report in reports if not report.ok]
    compared = _check_text(root, manifest) if text and not bad else None
    if as_json:
        files = [{"ok": report.ok, **asdict(report)} for report in reports]
        facts = {"ok": not bad, "bundle": str(root), "seal": manifest.seal, "text": compared}
        print_json({**facts, "files": files, "unlisted": unlisted})
        if bad:
            raise click.exceptions.Exit(BundleError.exit_code)
        return
    for report in reports:
        click.echo(_line(report))
    for path in unlisted:
        shown = path if path.isprintable() else ascii(path)
        click.echo(f"warning: {shown} is not in the manifest; nothing reads it")
    if bad:
        raise BundleError(
            f"{root}: {len(bad)} of {len(reports)} files are not what was exported",
            hint=EXPORT_OR_COPY_AGAIN,
        )
    click.echo(
        f"{len(reports)} files, {format_bytes(total)}: all as exported (seal {manifest.seal})"
    )
    if compared is not None:
        click.echo(
            f"{compared['texts']} texts, {compared['conversations']} conversations: tokens as in "
            f"transformers {compared['transformers']}"
        )


def _check_text(root: Path, manifest: Manifest) -> dict[str, Any]:
    """Compare texts and chats with the bundle's record, and return what was compared.

    Raises:
        UsageError: the bundle has no record.
        GateError: something becomes other tokens than the record says.
    """
    from ..text.codec import TextCodec
    from ..text.reference import RECORD_FILE, compare, read_record

    if RECORD_FILE not in {entry.path for entry in manifest.files}:
        raise UsageError(
            f"{root} has no {RECORD_FILE} to compare its text with",
            hint="an earlier version exported it; export it again",
        )
    chat = manifest.chat_template
    codec = TextCodec(root / manifest.tokenizer, None if chat is None else root / chat)
    record = read_record(root / RECORD_FILE)
    compare(codec, record)
    return record.counts()


def _line(report: FileReport) -> str:
    if report.ok:
        return f"ok   {report.path}"
    lines = [f"BAD  {report.path} {report.problem}"]
    if report.actual_sha256 is not None:
        lines += [
            f"     expected {report.expected_sha256}",
            f"     found    {report.actual_sha256}",
        ]
    return "\n".join(lines)


if __name__ == "__main__":
    main()

"""Answers under the schemas of a collection: whether each is valid, and which schemas are refused.

Reads a folder of schemas such as JSONSchemaBench's `data`, one JSON file each, and takes a sample from
each of its subfolders. A journal keeps what is done; the same command continues.
"""

from __future__ import annotations

import json
import random
import sys
from collections import Counter
from pathlib import Path
from typing import Any

import click
from tqdm import tqdm

import cospec
from cospec.calibration.journal import Journal
from cospec.runtime.cli.common import CospecCommand, engine_dir_option, json_option, print_json

LEAST = 30
"""Schemas of a subfolder, if it has as many."""

EPILOG = """
\b
Example:
  python -m bench.json_schemas --engine-dir bundles/smollm2 --schemas data --journal schemas.jsonl
"""


@click.command(cls=CospecCommand, epilog=EPILOG)
@engine_dir_option
@click.option("--schemas", type=click.Path(path_type=Path, exists=True), required=True)
@click.option("--journal", type=click.Path(path_type=Path), help="File of what is done.")
@click.option("--count", default=1000, show_default=True, help="Schemas to try.")
@click.option("--max-tokens", default=120, show_default=True, help="Of an answer.")
@json_option
def main(
    engine_dir: Path,
    schemas: Path,
    journal: Path | None,
    count: int,
    max_tokens: int,
    as_json: bool,
) -> None:
    """Generate an answer under each schema of a collection, and check it with jsonschema."""
    session = cospec.load(engine_dir)
    done = Journal(journal)
    picked = {str(path.relative_to(schemas)): path for path in sample(schemas, count)}
    for name, path in tqdm(picked.items(), disable=not sys.stderr.isatty()):
        if name not in done.done:
            done.write(name, outcome(session, json.loads(path.read_text("utf-8")), max_tokens))
    counts = Counter(done.done[name] for name in picked)
    if as_json:
        print_json(dict(counts))
        return
    for what, number in counts.most_common():
        click.echo(f"{number:6}  {what}")


def sample(folder: Path, count: int) -> list[Path]:
    """Return some schemas of every subfolder, by its size; the same ones every time."""
    draw = random.Random(15)
    groups = [sorted(each.rglob("*.json")) for each in sorted(folder.iterdir()) if each.is_dir()]
    total = sum(map(len, groups))
    picked = [
        path
        for group in groups
        for path in draw.sample(group, min(len(group), max(LEAST, count * len(group) // total)))
    ]
    draw.shuffle(picked)
    return picked[:count]


def outcome(session: cospec.Session, schema: Any, max_tokens: int) -> str:
    """Generate an answer; return `valid`, `invalid: ...`, `ended: ...` or `refused: ...`."""
    import jsonschema

    about = str(schema.get("title") or "") if isinstance(schema, dict) else ""
    prompt = [{"role": "user", "content": f"Write one short example as JSON. {about}".strip()}]
    try:
        answer = session.generate(prompt, json_schema=schema, max_tokens=max_tokens, timeout=60)
    except cospec.CospecError as error:
        return f"refused: {error.message.splitlines()[0][:100]}"
    if not answer.is_complete:
        return f"ended: {answer.finish_reason}"
    try:
        checker = jsonschema.validators.validator_for(schema)
        checker(schema).validate(json.loads(answer.text))
    except (jsonschema.ValidationError, ValueError) as error:
        return f"invalid: {str(error).splitlines()[0][:100]}"
    return "valid"


if __name__ == "__main__":
    main()

"""Runs of the device kit on a simulated device."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from click.testing import CliRunner, Result

from cospec.runtime.cli import kit
from cospec.runtime.doctor.kit.kit_report import Report
from cospec.runtime.doctor.kit.kit_run import run_kit
from cospec.runtime.doctor.kit.kit_steps import KitItem, KitOptions

PROMPTS = ("What is 12 + 30?", "What is 7 + 8?")


def run(*bundles: Path, **options: Any) -> Report:
    settings = {"max_tokens": 12, "prompts": PROMPTS, "simulated": True, **options}
    goldens = bundles[0].parent / "goldens.npz"
    items = [KitItem(each, goldens if goldens.exists() else None) for each in bundles]
    return run_kit(items, bundles[0].parent / "report.json", KitOptions(**settings))


def command(*arguments: object) -> Result:
    return CliRunner().invoke(kit.main, [str(argument) for argument in arguments])

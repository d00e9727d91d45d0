"""`optimum-cli export cospec`: cospec-export as a command of optimum.

The wheel installs this file as `optimum/commands/register/register_cospec.py`. optimum-cli imports
whatever it finds in that folder, so the exporter itself is imported only when the command runs. The
options are read from cospec-export's own declaration.
"""

from __future__ import annotations

from argparse import SUPPRESS, ArgumentParser
from typing import Any

import click
from optimum.commands.base import BaseOptimumCLICommand, CommandInfo
from optimum.commands.export.base import ExportCommand

from cospec.export.cli import main

RENAMED = {"target": ("-m", "--model", "--target")}
"""Names as optimum's other exporters have them; our own work too, since messages use them."""
OUTPUT = "output"


class CospecExportCommand(BaseOptimumCLICommand):  # type: ignore[misc]
    """Exports a draft and a target model to one bundle for speculative decoding."""

    COMMAND = CommandInfo(
        name="cospec",
        help="Export a draft and a target model to a CoSpec bundle for speculative decoding.",
    )

    @staticmethod
    def parse_args(parser: ArgumentParser) -> None:
        """Declare the options of cospec-export, and the output folder as an argument."""
        for option in _options():
            settings: dict[str, Any] = {"default": SUPPRESS}
            settings["help"] = (option.help or "").replace("%", "%%")
            if option.name == OUTPUT:
                parser.add_argument(OUTPUT, nargs="?", **settings)
                continue
            if option.is_flag:
                settings["action"] = "store_true"
            elif isinstance(option.type, click.Choice):
                settings["choices"] = list(option.type.choices)
            else:
                settings["metavar"] = option.metavar or option.type.name.upper()
            names = RENAMED.get(str(option.name), option.opts)
            parser.add_argument(*names, dest=option.name, **settings)

    def run(self) -> None:
        """Run cospec-export with the arguments that were given, and end with its exit code."""
        words: list[str] = []
        for option in _options():
            value = getattr(self.args, str(option.name), None)
            if value is not None and value is not False:
                words += [option.opts[0]] if option.is_flag else [option.opts[0], str(value)]
        main(words, prog_name="optimum-cli export cospec")


def _options() -> list[click.Option]:
    return [each for each in main.params if isinstance(each, click.Option)]


REGISTER_COMMANDS = [(CospecExportCommand, ExportCommand)]

"""cospec-serve: a bundle behind an OpenAI-compatible HTTP server."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import click

from ...errors import UsageError
from ..decoding.session import DraftLength
from .common import CospecCommand, at_least, engine_dir_option
from .engine_settings import EngineSettings, engine_options
from .run_options import option_flag

EPILOG = """
\b
Examples:
  cospec-serve --engine-dir models/tiny
  COSPEC_API_KEY=secret cospec-serve --engine-dir models/tiny --host 0.0.0.0
  curl http://127.0.0.1:8000/v1/chat/completions -H 'Content-Type: application/json' \\
    -d '{"messages": [{"role": "user", "content": "What is 12 + 30?"}]}'
"""


@click.command(cls=CospecCommand, epilog=EPILOG)
@engine_dir_option
@click.option("--host", default="127.0.0.1", show_default=True, help="Address to listen on.")
@click.option("--port", default=8000, show_default=True, help="Port; 0 takes a free one.")
@click.option(
    "--api-key",
    envvar="COSPEC_API_KEY",
    show_envvar=True,
    help="What clients must send. Prefer the variable: other users of this machine see arguments.",
)
@click.option("--served-model-name", help="The model's name. Default: the bundle's.")
@click.option(
    "--slots",
    default=1,
    show_default=True,
    help="Requests decoded at a time, each with caches of its own.",
)
@click.option(
    "--max-queue",
    default=64,
    show_default=True,
    help="Requests that may wait; one more is refused with 429.",
)
@click.option(
    "--timeout",
    default=600.0,
    show_default=True,
    help="Seconds that a request may take, waiting included.",
)
@click.option(
    "--shutdown-timeout",
    type=int,
    help="Seconds after SIGTERM until answers under way are cancelled. Default: they end.",
)
@click.option(
    "--max-body-bytes", default=2 << 20, show_default=True, help="Larger requests get 413."
)
@click.option(
    "--default-temperature",
    default=0.0,
    show_default=True,
    help="Where a request names none. 0 is greedy; OpenAI's own default is 1.",
)
@click.option(
    "--mode",
    type=click.Choice(["strict", "collab"]),
    default="strict",
    show_default=True,
    help="Where a request names none. collab: the arbiter may keep draft tokens.",
)
@click.option("--threshold", type=float, help="Of collab, where a request names none.")
@option_flag("num_draft_tokens", "Default number of draft tokens per round, or auto.")
@engine_options
def main(
    engine_dir: Path,
    host: str,
    port: int,
    api_key: str | None,
    served_model_name: str | None,
    slots: int,
    max_queue: int,
    timeout: float,
    shutdown_timeout: int | None,
    max_body_bytes: int,
    default_temperature: float,
    mode: str,
    threshold: float | None,
    num_draft_tokens: DraftLength,
    engines: EngineSettings,
) -> None:
    """Answer OpenAI's chat and text completions with a bundle, over HTTP.

    Requests are decoded one at a time, or as many as there are slots; the others wait in their order.
    Greedy decoding is the default, as everywhere in CoSpec: a request that names no temperature gets
    the most likely tokens. Fields that would change the answer and are not supported are refused.

    On SIGTERM, answers under way are finished and those in the queue refused.
    """
    from ..serve.server import is_loopback, listen, make_service, require_packages, serve

    for option, value, low in (
        ("--slots", slots, 1),
        ("--max-queue", max_queue, 0),
        ("--max-body-bytes", max_body_bytes, 1),
        ("--shutdown-timeout", shutdown_timeout, 0),
    ):
        at_least(option, value, low)
    if not timeout > 0:
        raise UsageError(f"--timeout is {timeout:g} seconds, but must be above 0")
    if threshold is not None and mode != "collab":
        raise UsageError("--threshold goes with --mode collab only")
    if api_key is not None and not (
        api_key.isascii() and api_key.isprintable() and api_key.strip()
    ):
        raise UsageError("the API key must be printable ASCII, and not empty")
    require_packages()
    from ..serve.app import ServeOptions
    from ..serve.requests import Defaults

    session = engines.load(engine_dir)
    defaults = Defaults(
        model=served_model_name or session.manifest.name,
        temperature=default_temperature,
        mode=mode,  # type: ignore[arg-type]
        threshold=threshold,
        num_draft_tokens=num_draft_tokens,
    )
    options = ServeOptions(defaults, api_key, max_queue, timeout, max_body_bytes)
    service = make_service(session, slots, options)
    if api_key is None and not is_loopback(host):
        click.echo(
            f"warning: whoever reaches {host} can use this server: set COSPEC_API_KEY", err=True
        )
    opened = listen(host, port)
    shown = f"[{host}]" if ":" in host else host
    address = f"http://{shown}:{opened.getsockname()[1]}/v1"

    def ready(stop: Callable[[], None]) -> None:
        click.echo(f"serving {defaults.model} on {address}", err=True)

    serve(service, [opened], shutdown_timeout=shutdown_timeout, on_ready=ready)


if __name__ == "__main__":
    main()

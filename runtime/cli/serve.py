"""cospec-serve: a bundle behind an OpenAI-compatible HTTP server."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import click

from ...errors import UsageError
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
    "api_keys",
    multiple=True,
    envvar="COSPEC_API_KEY",
    show_envvar=True,
    help="Key that clients must send; may be given several times, and the variable may hold several, "
    "separated by spaces. Clients share caches only with clients that use the same key. Prefer the "
    "variable: other users of this machine can read arguments.",
)
@click.option(
    "--hide-cached-tokens",
    is_flag=True,
    help="Do not report how many tokens of a prompt were found in a cache.",
)
@click.option(
    "--cors-origin",
    "cors_origins",
    multiple=True,
    help="Origin whose web pages may use the server, such as https://chat.example.org; may be given "
    "several times. Default: none.",
)
@click.option(
    "--page/--no-page", default=True, show_default=True, help="Serve a chat page at the address /."
)
@click.option("--served-model-name", help="Name of the model. Default: the bundle's name.")
@click.option(
    "--slots",
    default=1,
    show_default=True,
    help="Number of requests decoded at a time, each with its own caches.",
)
@click.option(
    "--max-queue",
    default=64,
    show_default=True,
    help="Number of requests that may wait; further ones are refused with 429.",
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
    help="Seconds after SIGTERM until running answers are cut off. Default: wait for their end.",
)
@click.option(
    "--max-body-bytes",
    default=2 << 20,
    show_default=True,
    help="Largest body of a request, in bytes; larger ones are refused with 413.",
)
@option_flag(
    "temperature",
    "Temperature of requests that do not set one. Default: what the model's author recommends, or 0, "
    "which is greedy. OpenAI's own default is 1.",
    flag="--default-temperature",
)
@option_flag("greedy")
@option_flag("mode", "Mode of requests that do not set one: strict or collab. Default: strict.")
@option_flag("threshold", "Threshold of collab for requests that set none. Default: the bundle's.")
@option_flag(
    "num_draft_tokens",
    "Draft tokens per round for requests that set no number; or auto. Default: the bundle's.",
)
@engine_options
def main(
    engine_dir: Path,
    host: str,
    port: int,
    api_keys: tuple[str, ...],
    hide_cached_tokens: bool,
    cors_origins: tuple[str, ...],
    page: bool,
    served_model_name: str | None,
    slots: int,
    max_queue: int,
    timeout: float,
    shutdown_timeout: int | None,
    max_body_bytes: int,
    engines: EngineSettings,
    **defaults: Any,
) -> None:
    """Answer OpenAI's chat and text completions with a bundle, over HTTP.

    Each slot decodes one request at a time; further requests wait in the order of arrival. Requests
    that set no sampling parameters get those that the model's author recommends, if there are any, and
    else the most likely tokens. Fields that would change the answer and are not supported are refused.

    On SIGTERM, running answers are finished and requests in the queue are refused. A second SIGTERM
    ends the server at once.
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
    if not all(key.isascii() and key.isprintable() and key.strip() for key in api_keys):
        raise UsageError("an API key must be printable ASCII, and not empty")
    for origin in cors_origins:
        _check_origin(origin, has_keys=bool(api_keys))
    require_packages()
    from ..serve.access import LOOPBACK_NAMES
    from ..serve.app import ServeOptions
    from ..serve.requests import Defaults

    session = engines.load(engine_dir)
    name = served_model_name or session.manifest.name
    shown = f"[{host}]" if ":" in host else host
    is_private = is_loopback(host)
    options = ServeOptions(
        Defaults(name, session.defaults.updated(defaults)),
        api_keys=api_keys,
        hide_cached_tokens=hide_cached_tokens,
        known_hosts=LOOPBACK_NAMES | {shown.lower()} if is_private and not api_keys else None,
        cors_origins=cors_origins,
        page=page,
        max_queue=max_queue,
        timeout=timeout,
        max_body_bytes=max_body_bytes,
    )
    service = make_service(session, slots, options)
    if not api_keys and not is_private:
        click.echo(
            f"warning: everybody who can reach {host} can use this server: set COSPEC_API_KEY",
            err=True,
        )
    opened = listen(host, port)
    address = f"http://{shown}:{opened.getsockname()[1]}/v1"

    def ready(stop: Callable[[], None]) -> None:
        click.echo(f"serving {name} on {address}", err=True)

    serve(service, [opened], shutdown_timeout=shutdown_timeout, on_ready=ready)


def _check_origin(origin: str, *, has_keys: bool) -> None:
    parts = urlsplit(origin)
    if origin != "*" and origin != f"{parts.scheme}://{parts.netloc}":
        raise UsageError(
            f"--cors-origin is {origin!a}, which is not an origin",
            hint="an origin is a scheme, a host and maybe a port, such as https://chat.example.org",
        )
    if origin == "*" and not has_keys:
        raise UsageError(
            "--cors-origin '*' would let every web page use this server",
            hint="name the origins, or set an API key",
        )


if __name__ == "__main__":
    main()

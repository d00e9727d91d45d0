"""The chat page at `/`: one file that loads nothing from other hosts, and its security policy."""

from __future__ import annotations

from importlib.resources import files

from ..trace.page import digest, read_template, split_page


def read_chat_page() -> tuple[str, dict[str, str]]:
    """Return the page and the headers it is sent with.

    The policy lets nothing run but the scripts of this page and of the trace pages that it opens, which
    inherit the policy, and lets the page talk to this server only.
    """
    page = files(__package__).joinpath("chat_page.html").read_text(encoding="utf-8")
    styles, scripts = [], []
    for text in (page, read_template()):
        _, style, _, script, _ = split_page(text)
        styles.append(f"'{digest(style)}'")
        scripts.append(f"'{digest(script)}'")
    policy = (
        f"default-src 'none'; style-src {' '.join(styles)}; script-src {' '.join(scripts)}; "
        "connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    )
    return page, {
        "Content-Security-Policy": policy,
        "X-Content-Type-Options": "nosniff",
        "Referrer-Policy": "no-referrer",
        "Cache-Control": "no-cache",
    }

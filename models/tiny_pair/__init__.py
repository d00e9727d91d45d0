"""The tiny pair: a draft and a target that we trained, small enough for the repository.

They are for tests and are not useful models: see MODEL_CARD.md beside this file.
"""

from pathlib import Path
from typing import Literal

Role = Literal["draft", "target"]
ROLES: tuple[Role, ...] = ("draft", "target")

ARBITER = Path(__file__).parent / "arbiter"
"""Folder of the arbiter of this pair."""


def path(role: Role) -> Path:
    """Return the folder of the packaged Hugging Face checkpoint of one role.

    Raises ValueError for a role that is neither "draft" nor "target".
    """
    if role not in ROLES:
        raise ValueError(f"no tiny model for role {role!r}; the roles are {', '.join(ROLES)}")
    return Path(__file__).parent / role

"""Which runs may import code: those that this user trained here, or trusts.

A run's ``config.json`` names its environment, and some names are of modules to import. A directory from somebody else
may name any. So each run has a random identity in its ``config.json``, and a run that imports a module is noted under
it in the user's own state directory, where no directory from elsewhere can write.
"""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import os
from pathlib import Path
from typing import Any

from trpo.envs.names import imported_module
from trpo.envs.protocol import UnknownEnvironmentError


def trained_here(identity: str | None, env_id: str) -> bool:
    """Return whether this user has trained the run of that identity here, in that environment."""
    with contextlib.suppress(OSError, RuntimeError):
        return identity is not None and _note(identity, env_id).is_file()
    return False


def remember(identity: str, env_id: str) -> None:
    """Note that this user trains a run here, if its environment is imported; where that fails, it needs trust later."""
    if imported_module(env_id) is None:
        return
    with contextlib.suppress(OSError, RuntimeError):
        note = _note(identity, env_id)
        note.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        note.write_text(f"{env_id}\n", encoding="utf-8")


def _note(identity: str, env_id: str) -> Path:
    """Return the file that says so: its name is a digest, since both texts may be anything."""
    digest = hashlib.sha256(f"{identity}\n{env_id}".encode()).hexdigest()
    if os.name == "nt":
        state = os.environ.get("LOCALAPPDATA") or str(Path.home() / "AppData" / "Local")
    else:
        state = os.environ.get("XDG_STATE_HOME") or str(Path.home() / ".local" / "state")
    return Path(state) / "trpo" / "trained" / digest


@dataclasses.dataclass(frozen=True)
class Untrusted:
    """In place of an environment that would be made by importing what a run names: making it is refused."""

    run: Path
    env_id: str

    def __call__(self) -> Any:
        """Raise ValueError, which says what to do."""
        raise UnknownEnvironmentError(
            f"{self.run} imports the module {imported_module(self.env_id)!r} for its environment {self.env_id!r}, and "
            "was not trained here: if you trust that module, add --trust (in Python trust=True)"
        )

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
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from trpo.envs.names import imported_module
from trpo.envs.protocol import UnknownEnvironmentError


def imported(env_id: str | None, wrappers: Sequence[str]) -> list[str]:
    """Return the modules that are imported for an environment of this name, if it is named, and these wrappers."""
    module = None if env_id is None else imported_module(env_id)
    return [*([] if module is None else [module]), *(name.partition(":")[0] for name in wrappers)]


def trained_here(identity: str | None, *names: str) -> bool:
    """Return whether this user has trained the run of that identity here, with the environment and wrappers named."""
    with contextlib.suppress(OSError, RuntimeError):
        return identity is not None and _note(identity, names).is_file()
    return False


def remember(identity: str, *names: str) -> None:
    """Note that this user trains a run here, with code of these names; where that fails, it needs trust later."""
    with contextlib.suppress(OSError, RuntimeError):
        note = _note(identity, names)
        note.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        note.write_text("".join(f"{name}\n" for name in names), encoding="utf-8")


def _note(identity: str, names: Sequence[str]) -> Path:
    """Return the file that says so: its name is a digest, since the texts may be anything."""
    digest = hashlib.sha256("\n".join([identity, *names]).encode()).hexdigest()
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
    modules: tuple[str, ...]

    def __call__(self) -> Any:
        """Raise ValueError, which says what to do."""
        one, it = ("module", "that module") if len(self.modules) == 1 else ("modules", "them")
        raise UnknownEnvironmentError(
            f"{self.run} imports the {one} {', '.join(map(repr, self.modules))} for its environment {self.env_id!r}, "
            f"and was not trained here: if you trust {it}, add --trust (in Python trust=True)"
        )

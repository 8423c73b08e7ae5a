"""Optional packages, imported when first asked for."""

from __future__ import annotations

import contextlib
import importlib
import io
import warnings
from typing import Any

from trpo.envs import MissingExtraError


def require(module: str, env: str, extra: str) -> Any:
    """Import ``module`` without its announcements; if it is not there, name the command that installs it."""
    said = io.StringIO()
    try:
        with warnings.catch_warnings(), contextlib.redirect_stdout(said):
            warnings.simplefilter("ignore")
            return importlib.import_module(module)
    except ImportError as error:
        missing = error.name or module
        raise MissingExtraError(
            f"environment {env!r} needs {missing}, which is not installed: pip install 'trpo[{extra}]'"
        ) from error

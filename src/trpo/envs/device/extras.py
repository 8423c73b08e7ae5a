"""Optional packages, imported when first asked for."""

from __future__ import annotations

import contextlib
import importlib
import io
import logging
import warnings
from collections.abc import Iterator
from typing import Any

from trpo.envs import MissingExtraError, UnknownEnvironmentError
from trpo.spelling import nearest


def require(module: str, env: str, extra: str) -> Any:
    """Import ``module`` without its announcements; if it is not there, name the command that installs it."""
    try:
        with quiet():
            return importlib.import_module(module)
    except ImportError as error:
        raise MissingExtraError(
            f"environment {env!r} needs {error.name or module}, which is not installed: pip install 'trpo[{extra}]'"
        ) from error


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Keep these packages' announcements about other packages, drivers and kernels from the user's terminal."""
    with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
        warnings.simplefilter("ignore")
        logging.getLogger("absl").setLevel(logging.ERROR)
        yield


def check_known(kind: str, name: str, known: list[str], otherwise: str = "") -> None:
    """Raise :class:`UnknownEnvironmentError` with the nearest names, or ``otherwise``, unless ``name`` is known."""
    if name not in known:
        near = nearest(name, known, otherwise or known[:5], prefix=f"{kind}:", cutoff=0.4)
        raise UnknownEnvironmentError(f"unknown environment '{kind}:{name}'; {near}")

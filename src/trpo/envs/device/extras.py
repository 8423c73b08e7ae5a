"""Optional packages, imported when first asked for."""

from __future__ import annotations

import importlib
import logging
import warnings
from typing import Any

from trpo.envs import MissingExtraError, UnknownEnvironmentError
from trpo.spelling import nearest

OWN = r"(brax|gymnax|jaxopt|mujoco|mujoco_playground|warp)\b"
"""Modules of these packages."""


def require(module: str, env: str, extra: str) -> Any:
    """Import ``module``; if it is not there, name the command that installs it.

    What these packages have to say about other packages, drivers and kernels is kept from the user by filters that
    stay. Nothing is put in the place of ``sys.stdout`` or of the filters and back again: all of a process has them in
    common, and threads that did so at once would leave the wrong one behind.
    """
    warnings.filterwarnings("ignore", module=OWN)
    logging.getLogger("absl").setLevel(logging.ERROR)
    try:
        return importlib.import_module(module)
    except ImportError as error:
        raise MissingExtraError(
            f"environment {env!r} needs {error.name or module}, which is not installed: pip install 'trpo[{extra}]'"
        ) from error


def check_known(kind: str, name: str, known: list[str], otherwise: str = "") -> None:
    """Raise :class:`UnknownEnvironmentError` with the nearest names, or ``otherwise``, unless ``name`` is known."""
    if name not in known:
        near = nearest(name, known, otherwise or known[:5], prefix=f"{kind}:", cutoff=0.4)
        raise UnknownEnvironmentError(f"unknown environment '{kind}:{name}'; {near}")

"""trpo: trust-region policy optimization on JAX.

Every public name is importable from here and loaded when first used, so that ``import trpo`` is quick and a
simulator process that needs no JAX does not load it. The names stand in ``__init__.pyi``, where type checkers look.
"""

from __future__ import annotations

import ast
import importlib
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

from trpo._version import __version__

_STUB = ast.parse(Path(__file__).with_suffix(".pyi").read_text(encoding="utf-8"))
_HOME = {a.name: str(s.module) for s in _STUB.body if isinstance(s, ast.ImportFrom) for a in s.names}
del _HOME["__version__"]
__all__ = ["__version__", *sorted(_HOME)]


class _Package(ModuleType):
    """This module. Where a function has the name of its module (``line_search``), the package offers the function."""

    def __setattr__(self, name: str, value: Any) -> None:
        if not (isinstance(value, ModuleType) and _HOME.get(name) == value.__name__):
            super().__setattr__(name, value)


sys.modules[__name__].__class__ = _Package


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module 'trpo' has no attribute {name!r}")
    if _HOME[name] == __name__:
        return importlib.import_module(f"trpo.{name}")
    globals()[name] = value = getattr(importlib.import_module(_HOME[name]), name)
    return value


def __dir__() -> list[str]:
    return sorted(__all__)

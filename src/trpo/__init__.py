"""trpo: trust-region policy optimization on JAX.

Every public name is importable from here and loaded when first used, so that ``import trpo`` is quick and a
simulator process that needs no JAX does not load it. The names stand in ``__init__.pyi``, where type checkers look.
"""

from __future__ import annotations

import importlib
import sys
from types import ModuleType
from typing import Any

from trpo._version import __version__

with open(f"{__file__.rpartition('.')[0]}.pyi", encoding="utf-8") as _names:
    # Lines such as "from trpo.advantages import gae as gae"; importing ``ast`` would take longer than all of this.
    _HOME = {words[-1]: words[1] for words in map(str.split, _names) if words[:1] == ["from"]}
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

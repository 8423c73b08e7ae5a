"""``python -m trpo`` is the command line."""

from trpo.cli import entry_point

entry_point()

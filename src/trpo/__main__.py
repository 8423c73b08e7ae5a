"""``python -m trpo`` is the command line."""

from trpo.cli.entry import entry_point

entry_point()

"""``python -m trpo`` is the command line."""

from trpo.cli.main import entry_point

entry_point()

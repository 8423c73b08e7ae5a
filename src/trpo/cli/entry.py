"""The door of the command line, which heeds signals before anything that takes time is loaded."""

from __future__ import annotations

from trpo.cli.local import follow_watcher
from trpo.cli.output import prepare_streams
from trpo.runs.interrupts import heed_signals


def entry_point() -> None:
    """Console script."""
    heed_signals()
    prepare_streams()
    follow_watcher()
    from trpo.cli import main

    main.entry_point()

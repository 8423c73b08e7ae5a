"""The table that ``trpo theory`` prints."""

from __future__ import annotations

from typing import Any

from trpo.theory.pages.text import number


def print_table(report: dict[str, Any]) -> None:
    """Print every check of every claim with what was measured and what was wanted."""
    from rich.box import SIMPLE_HEAD
    from rich.console import Console
    from rich.markup import escape
    from rich.table import Table

    table = Table(box=SIMPLE_HEAD, pad_edge=False)
    table.add_column("claim · check", overflow="fold")
    for heading in ("cases", "measured", "wanted"):
        table.add_column(heading, justify="right", overflow="fold")
    table.add_column("")
    for record in report["claims"]:
        mark = "[green]✓[/]" if record["passed"] else "[bold red]✗[/]"
        table.add_row(f"[bold]{record['number']}. {escape(record['title'])}[/]", f"{record['cases']:,}", "", "", mark)
        if record["error"]:
            table.add_row(f"   {escape(record['error'])}", "", "", "", "")
        for check in record["checks"]:
            mark = "✓" if check["passed"] else "[bold red]✗[/]"
            table.add_row(
                f"   {escape(check['name'])}", f"{check['cases']:,}", number(check["worst"]), check["limit"], mark
            )
    Console(highlight=False).print(table)

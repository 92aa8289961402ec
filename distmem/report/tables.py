"""The tables that the command line prints at the end of a run."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from distmem.report.rows import layer_rows, stage_rows

if TYPE_CHECKING:
    from rich.table import Table
    from rich.text import Text


def stage_table(stages: list[dict[str, Any]]) -> Table:
    """Accuracy, loss, non-zeros, rate, size and seconds of every stage, as a rich table that fits 80 columns.

    stages: the rows of summary.json "stages"; the first is what the others are compared with.
    Raises ReportError for a field that is not a number.
    """
    rows = stage_rows(stages)
    table = _table(f"Stages, {rows[0].total.text} weights" if rows else "Stages", "stage")
    columns = ["accuracy", "change", "loss", "nonzeros", "removed", "rate", "size", "seconds"]
    if len({row.size.text for row in rows}) == 1:
        columns.remove("size")  # no stage has written a smaller file
    titles = {"nonzeros": "non-zeros", "seconds": "time"}
    for column in columns:
        table.add_column(titles.get(column, column), justify="right", no_wrap=True)
    for row in rows:
        table.add_row(_text(row.name), *(getattr(row, column).text for column in columns))
    return table


def nonzero_table(layers: list[dict[str, Any]]) -> Table:
    """Non-zeros, total, kept and pruned share and shape of every parameter, with the sum, as a rich table.

    layers: the "layers" of a stage.json. Raises ReportError for a field that is not a number.
    """
    rows, total, rate = layer_rows(layers)
    table = _table("Non-zeros", "parameter", footer=total.name)
    footers = (total.nonzeros.text, total.total.text, total.kept.text, total.removed.text, rate.text)
    for column, footer in zip(("non-zeros", "total", "%", "pruned", "shape"), footers, strict=True):
        table.add_column(column, footer=footer, justify="right")
    for row in rows:
        table.add_row(_text(row.name), row.nonzeros.text, row.total.text, row.kept.text, row.removed.text, row.shape)
    table.caption = f"compression rate {rate.text}"
    return table


def _table(title: str, first: str, footer: str | None = None) -> Table:
    from rich import box
    from rich.table import Table

    table = Table(title=title, box=box.SIMPLE_HEAD, title_justify="left", caption_justify="left")
    table.show_footer = footer is not None
    table.add_column(first, footer=footer or "")
    return table


def _text(name: str) -> Text:
    """A name printed as it is: square brackets in it are no markup."""
    from rich.text import Text

    return Text(name)

"""The report of a run: one self-contained HTML page, made from the files in the run folder and nothing else."""

from __future__ import annotations

from pathlib import Path

__all__ = ["write_report"]


def write_report(runs: list[Path], out: Path | None = None) -> Path:
    """Write the report of one run, or of several laid over each other, and return where it is.

    runs: run folders; out: the page, by default report.html in the run folder, or beside the first of several runs.
    An unfinished run (no summary.json) is reported as far as it got.
    Raises ReportError, with file and line, when an artefact is missing or damaged, or the page cannot be written.
    """
    from distmem.errors import ReportError
    from distmem.report.page import render
    from distmem.report.read import load_run

    if not runs:
        raise ReportError("no run folder was given", remedy="distmem report runs/NAME/STAMP")
    folders = [Path(run) for run in runs]
    page = render([load_run(folder) for folder in folders])
    if out is None:
        out = (folders[0] if len(folders) == 1 else folders[0].resolve().parent) / "report.html"
    _replace(Path(out), page)
    return Path(out)


def _replace(path: Path, text: str) -> None:
    """Write beside the target and rename, so that a reader never meets half a page."""
    import os

    from distmem.errors import ReportError

    draft = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with draft.open("w", encoding="utf-8") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        os.replace(draft, path)
    except OSError as error:
        draft.unlink(missing_ok=True)
        raise ReportError(
            f"cannot write {path}: {error.strerror or error}", remedy="choose another place with --out"
        ) from error

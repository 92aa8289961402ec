"""A run folder, read and checked: what is there, what is missing, what is damaged."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from distmem.errors import ReportError
from distmem.report.fields import objects, read_object, read_text
from distmem.report.metrics import Metrics, read_metrics


@dataclass
class Run:
    """What a run folder says. summary is empty when the run is unfinished; measured and predicted hold bytes."""

    folder: Path
    name: str
    recipe: str
    launch: str | None
    metrics: Metrics
    summary: dict[str, Any]
    finished: bool
    measured: list[dict[str, Any]]
    predicted: list[dict[str, Any]]
    stage_files: list[dict[str, Any]]
    label: str = ""
    notes: list[str] = field(default_factory=list)

    def where(self, name: str) -> str:
        """The file of this run that a fault is reported for."""
        return str(self.folder / name)


def load_run(folder: Path) -> Run:
    """Read a run folder: recipe.yaml and metrics.jsonl or summary.json must be there, the rest may be missing.

    Raises ReportError, with file and line, when an artefact is missing or damaged.
    """
    if not folder.is_dir():
        raise ReportError(f"{folder} is not a run folder", remedy="give a folder such as runs/NAME/STAMP")
    metrics_file, summary_file = folder / "metrics.jsonl", folder / "summary.json"
    if not metrics_file.is_file() and not summary_file.is_file():
        raise ReportError(
            f"{metrics_file} is missing, and so is summary.json: nothing was recorded here",
            remedy="give the folder of a run that has done at least one step",
        )
    finished = summary_file.is_file()
    summary = read_object(summary_file) if finished else {}
    recipe = read_text(folder / "recipe.yaml")
    run = Run(
        folder=folder,
        name=str(summary.get("name") or _recipe_name(recipe, folder)),
        recipe=recipe,
        launch=read_text(folder / "launch.sh") if (folder / "launch.sh").is_file() else None,
        metrics=read_metrics(metrics_file) if metrics_file.is_file() else Metrics(),
        summary=summary,
        finished=finished,
        measured=_per_rank(folder / "measured.json"),
        predicted=_per_rank(folder / "plan.json"),
        stage_files=_stage_files(folder / "stages"),
    )
    if run.metrics.truncated:
        run.notes.append("The last line of metrics.jsonl is cut short and left out.")
    return run


def _recipe_name(recipe: str, folder: Path) -> str:
    import yaml

    try:
        values = yaml.safe_load(recipe)
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        line = f":{mark.line + 1}:{mark.column + 1}" if mark else ""
        cause = f"damaged YAML: {getattr(error, 'problem', error)}"
        raise ReportError(cause, where=f"{folder / 'recipe.yaml'}{line}") from error
    name = values.get("name") if isinstance(values, dict) else None
    return str(name or folder.resolve().name)


def _per_rank(path: Path) -> list[dict[str, Any]]:
    return objects(read_object(path), "per_rank", str(path)) if path.is_file() else []


def _stage_files(folder: Path) -> list[dict[str, Any]]:
    """The stage.json of every stage in order, each with its path under "file"."""
    found = []
    for path in sorted(folder.glob("*/stage.json")):
        stage = read_object(path)
        objects(stage, "layers", str(path))
        found.append({**stage, "file": str(path)})
    return sorted(found, key=lambda stage: stage["index"] if isinstance(stage.get("index"), int) else 0)

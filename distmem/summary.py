"""What a run leaves behind for people and programs: measured.json, summary.json, the tables and the report."""

from __future__ import annotations

import json
import platform
import time
from typing import Any

import torch

from distmem.batching import accumulation, micro_batch
from distmem.build import count_parameters
from distmem.context import Phase, Run
from distmem.data.split import split_bytes
from distmem.errors import ReportError
from distmem.files import write_json
from distmem.memory.measure import model_bytes, peak_device_bytes, peak_resident_bytes
from distmem.report import write_report
from distmem.report.tables import nonzero_table, stage_table


def measure(run: Run, phase: Phase) -> dict[str, Any]:
    """Bytes by class on every rank after the last step of the training, and its speed: what measured.json says."""
    device = run.world.device
    mine: dict[str, Any] = {
        "rank": run.world.rank,
        **model_bytes(run.backend.model, phase.optimizer),
        "gradients": run.gradient_bytes,
        "activations": run.activation_bytes,
        "data": 0 if run.bundle.shared_file else split_bytes(run.bundle.train),
        "peak_device": peak_device_bytes(device),
        "peak_resident": peak_resident_bytes(),
    }
    rows = run.world.gather(mine)
    file = run.folder / "measured.json"
    if run.activation_bytes is None and file.exists():
        return json.loads(file.read_text())  # every step was made in an earlier life of the run
    speed = {"samples_per_s": run.rate.samples_per_s, "step_s_median": run.rate.step_s_median}
    measured = {"device": device.type, "per_rank": rows, "throughput": speed}
    if run.world.first and not run.debug:
        write_json(file, measured)
    return measured


def finish(run: Run, phase: Phase, stages: list[dict[str, Any]], measured: dict[str, Any], started: float) -> None:
    """summary.json, the tables and the report, by rank 0; nothing of a debug run is kept."""
    if not run.world.first:
        return
    if run.debug:
        run.show.line("debug run finished: a few batches of each part; nothing was saved")
    else:
        summary = summarise(run, phase, stages, measured, time.time() - started)
        write_json(run.folder / "summary.json", summary)
        if len(stages) > 1:
            run.show.print(nonzero_table(stages[-1]["layers"]))
            run.show.print(stage_table(summary["stages"]))
        try:
            run.show.line(f"report: {write_report([run.folder])}")
        except ReportError as error:  # the run is whole without it
            run.show.line(f"the report failed: {error}\n`distmem report {run.folder}` makes it again")
    write_json(run.folder / "outcome.json", {"state": "done"})


def summarise(
    run: Run, phase: Phase, stages: list[dict[str, Any]], measured: dict[str, Any], wall_s: float
) -> dict[str, Any]:
    """What summary.json says: bytes, seconds, samples per second, accuracies as fractions."""
    recipe, world = run.recipe, run.world
    rows = [{key: value for key, value in row.items() if key != "layers"} for row in stages]
    peaks = [row["peak_device"] or row["peak_resident"] for row in measured["per_rank"]]
    final = {key: value for key, value in rows[-1].items() if key.startswith("val_")}
    return {
        "name": recipe.name,
        "backend": recipe.launch.backend,
        "launcher": recipe.launch.launcher,
        "world_size": world.size,
        "device": world.device.type,
        "precision": run.precision.name,
        "steps": phase.steps,
        "epochs": -(-phase.steps // run.loader.batches),
        "global_batch": recipe.train.batch_size,
        "micro_batch": micro_batch(recipe, world.size),
        "accumulate": accumulation(recipe, world.size, 0),
        "final": {"train_loss": run.log.last_train_loss(), **final},
        "throughput": measured["throughput"],
        "memory": {"predicted_peak_bytes": None, "measured_peak_bytes": max(peaks)},
        "resumed_from": run.resumed_from,
        "skipped_steps": phase.skipped,
        "parameters": count_parameters(run.backend.model),
        "wall_s": round(wall_s, 3),
        "versions": {"python": platform.python_version(), "torch": torch.__version__},
        "stages": rows,
    }

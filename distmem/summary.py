"""What a run leaves behind for people and programs: measured.json, summary.json, the tables and the report."""

from __future__ import annotations

import platform
import time
from typing import Any

import torch

from distmem.batching import accumulation, micro_batch
from distmem.build import count_parameters
from distmem.context import Phase, Run
from distmem.data.split import split_bytes
from distmem.files import write_json
from distmem.memory.measure import model_bytes, peak_device_bytes, peak_resident_bytes
from distmem.report import write_report
from distmem.report.tables import nonzero_table, stage_table


def measure(run: Run, phase: Phase) -> list[dict[str, Any]]:
    """Bytes by class on every rank, as they were after the last step of the training."""
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
    if run.world.first and (run.activation_bytes is not None or not file.exists()):  # a resumed run may train no step
        write_json(file, {"device": device.type, "per_rank": rows})
    return rows


def finish(
    run: Run, phase: Phase, stages: list[dict[str, Any]], measured: list[dict[str, Any]], started: float
) -> None:
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
        run.show.line(f"report: {write_report([run.folder])}")
    write_json(run.folder / "outcome.json", {"state": "done"})


def summarise(
    run: Run, phase: Phase, stages: list[dict[str, Any]], measured: list[dict[str, Any]], wall_s: float
) -> dict[str, Any]:
    """What summary.json says: bytes, seconds, samples per second, accuracies as fractions."""
    recipe, world = run.recipe, run.world
    rows = [{key: value for key, value in row.items() if key != "layers"} for row in stages]
    peaks = [row["peak_device"] or row["peak_resident"] for row in measured]
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
        "final": {"train_loss": run.log.last.get("loss"), **final},
        "throughput": {"samples_per_s": run.rate.samples_per_s, "step_s_median": run.rate.step_s_median},
        "memory": {"predicted_peak_bytes": None, "measured_peak_bytes": max(peaks)},
        "resumed_from": run.resumed_from,
        "skipped_steps": phase.skipped,
        "parameters": count_parameters(run.backend.model),
        "wall_s": round(wall_s, 3),
        "versions": {"python": platform.python_version(), "torch": torch.__version__},
        "stages": rows,
    }

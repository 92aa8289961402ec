"""The stages after training, in the order of the recipe, in the same launched world.

Each leaves a folder stages/NN-name with its weights, its masks and stage.json (written last), so a run that was
killed goes on behind its last finished stage, and a stage that trains goes on at its last checkpoint.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from distmem.compress.count import count_nonzeros, totals
from distmem.compress.masks import Masks
from distmem.compress.prune import cubic_sparsity, sparsity_masks, std_masks
from distmem.compress.select import per_layer, select
from distmem.compress.share import share_layer, write_shared_
from distmem.context import Phase, Run
from distmem.engine import train
from distmem.errors import CompressError, Stopped
from distmem.evaluation import evaluate
from distmem.export import export_weights, import_weights
from distmem.files import write_json
from distmem.memory.optimizers import build_optimizer
from distmem.recipe.schema import Gradual, Optim, Prune, Recipe, Retrain, Share
from distmem.recipe.types import steps_of
from distmem.show import describe

WEIGHTS, MASKS, RESULT = "model.safetensors", "masks.safetensors", "stage.json"


@dataclass
class Compressed:
    """What the stages so far have done to the model: which weights are kept, how many values a layer has."""

    masks: Masks | None = None
    codebooks: dict[str, int] = field(default_factory=dict)


def run_stages(run: Run, dense: dict[str, float], seconds: float = 0.0) -> list[dict[str, Any]]:
    """Run the stages of the recipe that are not done yet; gives one row per stage, the dense model first.

    dense: the evaluation of the trained model; seconds: what its training took.
    """
    done = Compressed()
    rows = [_row(run, "dense", 0, dense, done, seconds, {})]
    for index, stage in enumerate(run.recipe.after, start=1):
        folder = run.folder / "stages" / f"{index:02d}-{stage.name}"
        if (folder / RESULT).exists():
            rows.append(_take_over(run, folder, done))
            continue
        if run.world.first:
            folder.mkdir(parents=True, exist_ok=True)
        if run.world.sum([run.stop.is_set])[0]:
            raise Stopped(f"stopped on request before stage {index}, {stage.name}")
        started = time.perf_counter()
        STAGES[stage.name](run, stage.settings, done, folder, index)
        evaluation = evaluate(run)
        seconds = time.perf_counter() - started
        rows.append(_row(run, stage.name, index, evaluation, done, seconds, stage.settings.model_dump(by_alias=True)))
        _keep(run, folder, done, rows[-1])
        run.show.line(
            f"{stage.name}  {describe(evaluation)}  {rows[-1]['nonzeros']:,} of {rows[-1]['total']:,} weights"
            f"  {rows[-1]['compression_rate']:.2f}x"
        )
    return rows


def check_stages(recipe: Recipe, model: nn.Module, steps_per_epoch: int, steps: int) -> None:
    """Whether each stage finds its layers, a value for each, and time for its updates and warm-up.

    Raises CompressError before hours of training.
    """
    check_warmup("optim", recipe.optim, steps)
    parameters = dict(model.named_parameters())
    for index, stage in enumerate(recipe.after):
        settings = stage.settings
        trains = settings if isinstance(settings, Retrain) else getattr(settings, "gradual", None)
        if trains:
            steps = trains.epochs * steps_per_epoch
            check_warmup(f"after.{index}.{stage.name}", trains.optim or recipe.optim, steps)
        if isinstance(trains, Gradual) and last_update(trains, steps_per_epoch) == 0:
            raise CompressError(
                f"after.{index}.prune.gradual: {steps} steps have no mask update between the first and the last",
                remedy="a shorter gradual.every, or more epochs",
            )
        if isinstance(settings, Retrain):
            continue
        what = "bits" if isinstance(settings, Share) else "sensitivity" if settings.method == "std" else "sparsity"
        try:
            per_layer(getattr(settings, what), select(parameters, settings.layers), what)
        except CompressError as error:
            raise CompressError(f"after.{index}.{stage.name}: {error.cause}", remedy=error.remedy) from error


def prune(run: Run, settings: Prune, done: Compressed, folder: Path, index: int) -> None:
    """Set the smallest weights of the chosen layers to zero, at once or while training goes on."""
    if settings.gradual:
        phase = _phase(run, settings.gradual, settings.gradual.optim, f"{index}-prune", index, folder, done.masks)
        phase.prune = _gradual_masks(run, settings, settings.gradual, phase)
        train(run, phase)
        done.masks = phase.masks
    else:
        done.masks = _masks(run, settings, 1.0, done.masks)
    _equal_on_all_ranks(run, "masks", done.masks.digest() if done.masks else "")


def _masks(run: Run, settings: Prune, share: float, previous: Masks | None) -> Masks:
    """Masks by the settings, applied; share: the part of the final sparsity that is due."""
    parameters = dict(run.backend.model.named_parameters())
    chosen = select(parameters, settings.layers)
    if settings.method == "std":
        assert settings.sensitivity is not None
        masks = std_masks(chosen, per_layer(settings.sensitivity, chosen, "sensitivity"), previous)
    else:
        assert settings.sparsity is not None
        wanted = per_layer(settings.sparsity, chosen, "sparsity")
        masks = sparsity_masks(
            chosen,
            share * next(iter(wanted.values())) if settings.method == "global" else _times(wanted, share),
            settings.method,
            previous,
        )
    masks = Masks({**(previous or {}), **masks})  # layers that an earlier stage has pruned and this one leaves alone
    masks.apply_(parameters)
    return masks


def _times(values: dict[str, float], factor: float) -> dict[str, float]:
    return {name: value * factor for name, value in values.items()}


def _gradual_masks(run: Run, settings: Prune, gradual: Gradual, phase: Phase) -> Callable[[int], Masks | None]:
    """New masks at each interval; the last update, at the final sparsity, comes one interval before the end."""
    interval, last = steps_of(gradual.every, run.loader.batches), last_update(gradual, run.loader.batches)

    def due(step: int) -> Masks | None:
        if step % interval or step > last:
            return None
        return _masks(run, settings, cubic_sparsity(step, 0, last, 1.0), phase.masks)

    return due


def last_update(gradual: Gradual, steps_per_epoch: int) -> int:
    """The step of the last mask update, where the sparsity is final; the rest of the interval trains with it."""
    interval = steps_of(gradual.every, steps_per_epoch)
    return (gradual.epochs * steps_per_epoch - 1) // interval * interval


def check_warmup(where: str, optim: Optim, steps: int) -> None:
    if optim.schedule.warmup_steps >= steps:
        raise CompressError(
            f"{where}: a warm-up of {optim.schedule.warmup_steps} steps does not end within {steps} steps",
            remedy="fewer schedule.warmup_steps",
        )


def retrain(run: Run, settings: Retrain, done: Compressed, folder: Path, index: int) -> None:
    """Train the weights that are left, with a fresh optimizer; the pruned ones stay exactly zero."""
    train(run, _phase(run, settings, settings.optim, f"{index}-retrain", index, folder, done.masks))


def _phase(
    run: Run, length: Gradual | Retrain, optim: Optim | None, name: str, index: int, folder: Path, masks: Masks | None
) -> Phase:
    optim = optim or run.recipe.optim
    assert isinstance(optim.lr, float)
    optimizer = build_optimizer(optim.name, run.backend.model.parameters(), optim.lr, optim.args)
    steps = length.epochs * run.loader.batches
    return Phase(name, index, folder / "checkpoints", steps, optimizer, optim, masks=masks)


def share(run: Run, settings: Share, done: Compressed, folder: Path, index: int) -> None:
    """Give the non-zero weights of each layer 2^bits values by k-means; the layers are spread over the ranks."""
    chosen = select(dict(run.backend.model.named_parameters()), settings.layers)
    bits = per_layer(settings.bits, chosen, "bits")
    owners = {name: number % run.world.size for number, name in enumerate(chosen)}
    solved = {
        name: share_layer(chosen[name], int(bits[name]), init=settings.init)
        for name, owner in owners.items()
        if owner == run.world.rank
    }
    for name, weight in chosen.items():
        codes, centroids = _from_owner(run, solved.get(name), owners[name], weight)
        write_shared_(weight, codes, centroids)
        done.codebooks[name] = len(centroids)


def _from_owner(run: Run, solved: tuple[Tensor, Tensor] | None, owner: int, weight: Tensor) -> tuple[Tensor, Tensor]:
    """Codes and centroids of a layer, on every rank."""
    count = torch.tensor([len(solved[1]) if solved else 0])
    run.world.broadcast(count, owner)
    codes, centroids = solved or (torch.empty(int((weight != 0).sum()), dtype=torch.uint8), torch.empty(int(count)))
    return run.world.broadcast(codes, owner), run.world.broadcast(centroids, owner)


STAGES: dict[str, Callable[..., None]] = {"prune": prune, "retrain": retrain, "share": share}


def _equal_on_all_ranks(run: Run, what: str, digest: str) -> None:
    digests = run.world.gather(digest)
    if len(set(digests)) > 1:
        raise CompressError(f"{what} differ between ranks: {digests}", remedy="the ranks do not hold the same weights")


def _row(
    run: Run,
    name: str,
    index: int,
    evaluation: dict[str, float],
    done: Compressed,
    seconds: float,
    settings: dict[str, Any],
) -> dict[str, Any]:
    layers = count_nonzeros(dict(run.backend.model.named_parameters()), done.codebooks)
    summary = totals(layers)
    return {
        "name": name,
        "index": index,
        **evaluation,
        **summary,
        "weights_rate": summary["compression_rate"],
        "wall_s": round(seconds, 3),
        "settings": settings,
        "layers": layers,
    }


def _keep(run: Run, folder: Path, done: Compressed, row: dict[str, Any]) -> None:
    if run.world.first and not run.debug:
        export_weights(run.backend.model, folder / WEIGHTS)
        if done.masks:
            done.masks.save(folder / MASKS)
        write_json(folder / RESULT, {**row, "codebooks": done.codebooks})
    run.world.barrier()


def _take_over(run: Run, folder: Path, done: Compressed) -> dict[str, Any]:
    """Put the result of a stage that an earlier life of the run has finished into the model."""
    import_weights(run.backend.model, folder / WEIGHTS)
    if (folder / MASKS).exists():
        done.masks = Masks.load(folder / MASKS, run.world.device)
    row = json.loads((folder / RESULT).read_text())
    done.codebooks = row.pop("codebooks")
    run.show.line(f"{row['name']}: done before, taken from {folder}")
    return row

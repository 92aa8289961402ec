"""The tables of the terminal."""

from __future__ import annotations

import io

import pytest
from report_runs import LAYERS, summary
from rich.console import Console

from distmem.errors import ReportError
from distmem.report.tables import nonzero_table, stage_table


def lines(table) -> list[str]:
    out = io.StringIO()
    Console(file=out, width=140, color_system=None).print(table)
    return [" ".join(line.split()) for line in out.getvalue().splitlines() if line.strip()]


def test_stage_table():
    stages = summary()["stages"]
    stages[1]["wall_s"] = 14.25
    shown = lines(stage_table(stages))
    assert "Stages, 1,060 weights" in shown
    assert "dense 98.18 % – 0.0712 1,060 0.00 % 1.00x 4.14 KiB –" in shown
    assert "prune 58.05 % −40.13 pp 1.322 90 91.51 % 11.78x 4.14 KiB 14 s" in shown
    assert "pack 98.40 % +0.21 pp 0.0641 90 91.51 % 21.30x 199 B –" in shown


def test_the_size_is_shown_once_a_stage_changes_it():
    same = [{**stage, "bytes": 4240} for stage in summary()["stages"]]
    assert not any("KiB" in line for line in lines(stage_table(same)))


def test_stage_table_without_accuracies_or_stages():
    assert any("dense – – 0.5 – – – –" in line for line in lines(stage_table([{"name": "dense", "val_loss": 0.5}])))
    assert len(stage_table([]).rows) == 0
    with pytest.raises(ReportError, match="bytes is"):
        stage_table([{"name": "dense", "bytes": "many"}])


def test_nonzero_table():
    shown = lines(nonzero_table(LAYERS))
    assert "fc1.weight 40 1,000 4.00 % 96.00 % 50 × 20" in shown
    assert "fc1.bias 48 50 96.00 % 4.00 % 50" in shown
    assert any(line.startswith("total 90 1,060 8.49 % 91.51 %") for line in shown)
    assert "compression rate 11.78x" in shown


def test_a_layer_without_a_weight_left():
    empty = [{"name": "w", "shape": [2], "nonzeros": 0, "total": 2}]
    shown = lines(nonzero_table(empty))
    assert "w 0 2 0.00 % 100.00 % 2" in shown
    assert "compression rate –" in shown


def test_square_brackets_in_names_are_no_markup():
    assert any("[red]w" in line for line in lines(nonzero_table([{**LAYERS[0], "name": "[red]w"}])))
    assert any("[/]" in line for line in lines(stage_table([{"name": "[/]"}])))

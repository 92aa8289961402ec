"""Reading a run folder: what is tolerated, what is refused and where the fault is said to be."""

from __future__ import annotations

import ast
import json
import subprocess
import sys
from pathlib import Path

import pytest
from report_runs import evaluation, make_run, step, summary, training, write_json, write_metrics

import distmem.report
from distmem.errors import ReportError
from distmem.report import write_report
from distmem.report.metrics import read_metrics
from distmem.report.read import load_run


@pytest.fixture
def run(tmp_path):
    return make_run(tmp_path / "run")


@pytest.mark.parametrize("cut", [1, 20, 60])
def test_a_last_line_cut_short_is_left_out(run, cut):
    path = run / "metrics.jsonl"
    write_metrics(run, training(12))
    whole = path.read_bytes()
    path.write_bytes(whole + json.dumps(step(13)).encode()[:cut])
    metrics = read_metrics(path)
    assert metrics.truncated
    assert [one.step for one in metrics.phases[0].steps] == list(range(1, 13))
    assert "cut short" in write_report([run]).read_text()


def test_a_last_line_cut_inside_a_letter_is_left_out(run):
    line = '{"kind": "step", "phase": "é'.encode()[:-1]
    (run / "metrics.jsonl").write_bytes(json.dumps(step(1)).encode() + b"\n" + line)
    assert read_metrics(run / "metrics.jsonl").truncated


@pytest.mark.parametrize("damage", ['{"kind": "step", "st', "[1, 2]", "\x00\x00"])
def test_a_damaged_line_in_the_middle_is_named(run, damage):
    lines = [json.dumps(one) for one in training(5)]
    (run / "metrics.jsonl").write_text("\n".join([*lines[:2], damage, *lines[2:]]) + "\n")
    with pytest.raises(ReportError, match=r"metrics\.jsonl:3: damaged line"):
        write_report([run])


@pytest.mark.parametrize(
    ("field", "value"), [("loss", "low"), ("lr", True), ("step", None), ("step", 1.5), ("step", -1), ("samples", [128])]
)
def test_a_field_of_the_wrong_type_is_named(run, field, value):
    write_metrics(run, [step(1), {**step(2), field: value}, step(3)])
    with pytest.raises(ReportError, match=rf"metrics\.jsonl:2: {field} is .*number is expected"):
        write_report([run])


def test_numbers_that_are_not_finite_are_missing(run):
    (run / "metrics.jsonl").write_text('{"kind": "step", "phase": "train", "step": 1, "loss": NaN, "lr": -Infinity}\n')
    only = read_metrics(run / "metrics.jsonl").phases[0].steps[0]
    assert (only.loss, only.lr) == (None, None)


def test_records_repeated_by_a_resumed_run_count_once(run):
    first = [*training(30), step(31), step(32)]
    again = [step(number, loss=7.0) for number in range(26, 41)]
    write_metrics(run, [*first, *again, evaluation(40)])
    phase = read_metrics(run / "metrics.jsonl").phases[0]
    assert [one.step for one in phase.steps] == list(range(1, 41))
    assert [one.loss for one in phase.steps[25:]] == [7.0] * 15
    assert phase.steps[24].loss == step(25)["loss"]
    assert [one.step for one in phase.evaluations] == [10, 20, 40]


def test_a_second_evaluation_of_a_step_replaces_the_first(run):
    write_metrics(run, [step(1), evaluation(1), evaluation(1, val_accuracy=0.75)])
    evaluations = read_metrics(run / "metrics.jsonl").phases[0].evaluations
    assert [one.values["val_accuracy"] for one in evaluations] == [0.75]


def test_records_of_other_kinds_are_passed_over(run):
    write_metrics(run, [{"kind": "note", "text": "hello"}, step(1)])
    assert len(read_metrics(run / "metrics.jsonl").phases[0].steps) == 1


@pytest.mark.parametrize("name", ["summary.json", "measured.json", "plan.json", "stages/01-prune/stage.json"])
def test_damaged_json_is_named_with_its_line(run, name):
    (run / name).write_text('{\n  "name": "x",\n  "steps": 12')
    with pytest.raises(ReportError, match=rf"{name}:3:\d+: damaged JSON"):
        write_report([run])


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("summary.json", {"final": {"val_accuracy": "high"}}, "val_accuracy is .*number"),
        ("summary.json", {"final": 3}, "final is 3; an object"),
        ("summary.json", {"stages": {"dense": 1}}, "stages is .*list of objects"),
        ("summary.json", {"stages": [{"name": "dense", "bytes": "many"}]}, "bytes is .*number"),
        ("measured.json", {"per_rank": [1]}, r"per_rank is \[1\]; a list of objects"),
        ("measured.json", {"per_rank": [{"rank": 0, "data": "much"}]}, "data is .*number"),
        ("stages/01-prune/stage.json", {"layers": [{"name": "w", "total": "all"}]}, "total is .*number"),
        ("stages/01-prune/stage.json", {"settings": [], "layers": [{"name": "w"}]}, r"settings is \[\]; an object"),
    ],
)
def test_an_artefact_of_the_wrong_shape_is_named(run, name, value, message):
    write_json(run / name, value)
    with pytest.raises(ReportError, match=f"{name}: {message}"):
        write_report([run])


def test_a_json_file_that_is_no_object_is_named(run):
    (run / "summary.json").write_text("[]")
    with pytest.raises(ReportError, match=r"summary\.json:1: holds \[\]; an object is expected"):
        load_run(run)


def test_missing_folders_and_files_are_named(run, tmp_path):
    with pytest.raises(ReportError, match=r"nowhere is not a run folder"):
        write_report([tmp_path / "nowhere"])
    with pytest.raises(ReportError, match="no run folder was given"):
        write_report([])
    (run / "recipe.yaml").unlink()
    with pytest.raises(ReportError, match=r"recipe\.yaml: cannot be read"):
        write_report([run])


def test_a_folder_where_nothing_was_recorded_is_refused(tmp_path):
    (tmp_path / "recipe.yaml").write_text("name: x\n")
    with pytest.raises(ReportError, match=r"metrics\.jsonl is missing, and so is summary\.json"):
        write_report([tmp_path])


def test_a_summary_alone_is_enough(run):
    (run / "metrics.jsonl").unlink()
    assert load_run(run).metrics.phases == []
    assert "21.30x" in write_report([run]).read_text()


def test_the_name_comes_from_the_summary_then_the_recipe_then_the_folder(run):
    write_json(run / "summary.json", summary(name="told"))
    assert load_run(run).name == "told"
    (run / "summary.json").unlink()
    assert load_run(run).name == "tiny-net"
    (run / "recipe.yaml").write_text("seed: 1\n")
    assert load_run(run).name == "run"
    (run / "recipe.yaml").write_text("name: [\nseed: 1\n")
    with pytest.raises(ReportError, match=r"recipe\.yaml:3:1: damaged YAML"):
        load_run(run)
    (run / "recipe.yaml").write_bytes(b"name: x\n# \xff\n")
    with pytest.raises(ReportError, match=r"recipe\.yaml:2: is not UTF-8"):
        load_run(run)


def test_the_room_imports_nothing_of_distmem_but_errors_and_units():
    room = Path(distmem.report.__file__).parent
    imported = set()
    for path in room.glob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            names = [node.module or ""] if isinstance(node, ast.ImportFrom) else []
            names += [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            imported |= {name for name in names if name.startswith("distmem") and name != "distmem.report"}
    outside = {name for name in imported if not name.startswith("distmem.report.")}
    assert outside == {"distmem.errors", "distmem.units"}


def test_importing_the_room_is_cheap():
    heavy = "{'torch', 'numpy', 'pandas', 'matplotlib', 'jinja2', 'yaml', 'rich', 'sklearn'}"
    code = f"import sys, distmem.report, distmem.report.tables; print({heavy} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "set()"

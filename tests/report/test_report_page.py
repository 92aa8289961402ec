"""The page: every number is the one in the artefacts, and it stands alone."""

from __future__ import annotations

import json
import os

import pytest
from report_runs import (
    LAUNCH,
    LAYERS,
    RECIPE,
    Page,
    evaluation,
    make_run,
    per_rank,
    step,
    summary,
    training,
    write_json,
    write_metrics,
)

from distmem.errors import ReportError
from distmem.report import write_report


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    return make_run(tmp_path_factory.mktemp("runs") / "first")


@pytest.fixture(scope="module")
def page(run):
    return Page(write_report([run]))


def test_the_page_is_written_into_the_run_folder(run):
    assert write_report([run]) == run / "report.html"
    assert (run / "report.html").read_text().startswith("<!DOCTYPE html>")


def test_cards_show_the_summary(page):
    known = summary()
    for value in (
        known["final"]["val_accuracy"],
        known["final"]["val_loss"],
        known["steps"],
        known["throughput"]["samples_per_s"],
        known["memory"]["measured_peak_bytes"],
        known["wall_s"],
        known["stages"][-1]["compression_rate"],
    ):
        assert ("data", "value", json.dumps(value)) in page.attributes
    for text in ("98.18 %", "0.0712", "120,346", "584 MiB", "predicted 610 MiB", "21.30x", "42 s", "1.06 ms"):
        assert text in page.shown


def test_stage_table_equals_the_summary(page):
    table = page.exact("stages")
    assert list(table) == ["dense", "prune", "pack"]
    for stage in summary()["stages"]:
        row = table[stage["name"]]
        columns = {"accuracy": "val_accuracy", "loss": "val_loss", "non-zeros": "nonzeros", "total": "total"}
        columns |= {"rate": "compression_rate", "size": "bytes"}
        assert {column: row[column] for column in columns} == {c: stage[key] for c, key in columns.items()}
        assert row["removed"] == 1 - stage["nonzeros"] / stage["total"]
    assert table["prune"]["vs dense"] == pytest.approx(0.58051 - 0.98183)
    assert table["dense"]["vs dense"] == "–"
    assert table["pack"]["time"] == 14.25, "taken from stage.json"
    assert table["pack"]["weights rate"] == 1060 / 90
    assert table["pack"]["file rate"] == 21.3
    assert "−40.13 pp" in page.shown


def test_layer_tables_equal_stage_json(page):
    assert len(page.tables["layers"]) == 2
    table = page.exact("layers", 1)
    for layer in LAYERS:
        row = table[layer["name"]]
        assert (row["non-zeros"], row["total"], row["size"]) == (layer["nonzeros"], layer["total"], layer["bytes"])
        assert row["kept"] == layer["nonzeros"] / layer["total"]
        assert row["shape"] == " × ".join(map(str, layer["shape"]))
        assert row["codebook"] == (layer["codebook"] or "–")
    assert (table["total"]["non-zeros"], table["total"]["total"], table["total"]["size"]) == (90, 1060, 4240)
    opened = [name for tag, name, _ in page.attributes if (tag, name) == ("details", "open")]
    assert len(opened) == 1, "only the last stage is unfolded"


def test_memory_table_has_measured_predicted_and_ratio(page):
    header, *rows = page.tables["memory"][0]
    names = [text for _, text in header]
    cells = [dict(zip(names, row, strict=True)) for row in rows]
    assert [(row["rank"][1], row["source"][1]) for row in cells] == [
        (rank, source) for rank in "01" for source in ("measured", "predicted", "ratio")
    ]
    measured, predicted, ratio = cells[3:]
    for name in ("parameters", "buffers", "gradients", "optimizer", "activations", "data"):
        assert json.loads(measured[name][0][0]) == per_rank(1, 1.1)[name]
        assert json.loads(predicted[name][0][0]) == per_rank(1)[name]
    assert json.loads(ratio["activations"][0][0]) == pytest.approx(1.1, abs=1e-3)
    assert json.loads(measured["process peak"][0][0]) == 600_000_000
    assert "masks" not in names, "null on every rank"
    assert "device peak" not in names


def test_a_number_missing_on_one_rank_is_not_measured(tmp_path):
    run = make_run(tmp_path / "run")
    ranks = [{**per_rank(0), "masks": 265}, per_rank(1)]
    write_json(run / "measured.json", {"per_rank": ranks})
    header, *rows = Page(write_report([run])).tables["memory"][0]
    masks = [text for _, text in header].index("masks")
    assert [row[masks][1] for row in rows] == ["265 B", "–", "–", "not measured", "–", "–"]


def test_every_value_under_the_pointer_is_in_metrics(run, page):
    records = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    keys = {"training loss": "loss", "validation loss": "val_loss", "validation accuracy": "val_accuracy"}
    keys |= {"learning rate": "lr", "gradient norm": "grad_norm", "after clipping": "grad_norm_clipped"}
    lines = [line for name, data in page.charts.items() if name != "Throughput" for line in data["lines"]]
    assert {line["label"] for line in lines} == set(keys)
    for line in lines:
        key = keys[line["label"]]
        drawn = [
            (segment["phase"], at, value)
            for segment in line["segments"]
            for at, value in zip(segment["step"], segment["value"], strict=True)
        ]
        assert drawn == [(record["phase"], record["step"], record[key]) for record in records if key in record]


def test_throughput_leaves_out_the_time_of_evaluations(tmp_path):
    slow = [step(n, time_s=0.5 * n + (100 if n > 10 else 0)) for n in range(1, 21)]
    run = make_run(tmp_path / "run", [*slow[:10], evaluation(10), *slow[10:]])
    line = Page(write_report([run])).charts["Throughput"]["lines"][0]["segments"][0]
    assert line["value"] == [pytest.approx(128 / 0.5)] * len(line["value"])
    assert len(line["value"]) >= 15


def test_phases_follow_one_another_on_the_axis(page):
    segments = page.charts["Loss"]["lines"][0]["segments"]
    assert [(segment["phase"], segment["offset"]) for segment in segments] == [("train", 0), ("2-retrain", 60)]


def test_evaluations_are_listed_in_full(run, page):
    rows = page.tables["evaluations"][0][1:]
    known = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    known = [record for record in known if record["kind"] == "eval"]
    assert [[json.loads(values[0]) for values, _ in row[3:]] for row in rows] == [
        [record["val_loss"], record["val_accuracy"]] for record in known
    ]


def test_recipe_and_commands_are_verbatim_with_a_copy_button(page):
    assert page.pres == {"launch-1": LAUNCH, "recipe-1": RECIPE}
    assert {value for _, name, value in page.attributes if name == "data-copy"} == set(page.pres)


def test_the_page_asks_nothing_of_the_network(page):
    assert "http://" not in page.text
    assert "https://" not in page.text
    assert "@import" not in page.text
    assert "url(" not in page.text
    references = [value for _, name, value in page.attributes if name in ("src", "href", "srcset", "action")]
    assert references == ["data:,"]
    policy = next(value for tag, name, value in page.attributes if tag == "meta" and "default-src" in value)
    assert policy.startswith("default-src 'none'")


def test_the_page_is_readable_by_all(page):
    assert page.text.count("<svg") == page.text.count('role="img" aria-labelledby=') > 4
    assert all(any(text for _, text in table[0]) for tables in page.tables.values() for table in tables)
    ids = [value for _, name, value in page.attributes if name == "id"]
    assert len(ids) == len(set(ids))
    pointed = [one for _, name, value in page.attributes if name == "aria-labelledby" for one in value.split()]
    assert set(pointed) <= set(ids)
    for feature in ("prefers-color-scheme: dark", "@media print", "overflow-x: auto", 'name="viewport"'):
        assert feature in page.text


def test_nothing_from_the_artefacts_becomes_markup(tmp_path):
    evil = "</script><img src=x onerror=alert(1)>&\"'"
    records = [step(n, phase=evil) for n in range(1, 5)] + [evaluation(5, evil, **{f"val_{evil}": 0.5})]
    run = make_run(tmp_path / "run", records)
    (run / "recipe.yaml").write_text(f"name: x\n# {evil}\n")
    (run / "launch.sh").write_text(evil)
    known = summary(name=evil, backend=evil, versions={evil: evil}, started=evil, resumed_from=evil)
    write_json(run / "summary.json", {**known, "stages": [{**one, "name": evil} for one in known["stages"]]})
    stage = {"name": evil, "settings": {evil: evil}, "layers": [{**LAYERS[0], "name": evil, "shape": [evil]}]}
    write_json(run / "stages/01-x/stage.json", stage)
    page = Page(write_report([run]))
    assert not [one for one in page.attributes if one[0] == "img" or one[1].startswith("on")]
    assert page.text.count("</script>") == len(page.charts) + 1
    assert page.text.count(evil) == 0
    assert page.pres["launch-1"] == evil
    assert page.shown.count(evil) > 5


def test_an_unfinished_run_says_so_and_shows_what_is_there(tmp_path):
    run = make_run(tmp_path / "run", training(25))
    (run / "summary.json").unlink()
    page = Page(write_report([run]))
    assert "tiny-net unfinished" in page.shown
    assert "so far" in page.shown
    last = evaluation(20)
    assert ("data", "value", json.dumps(last["val_accuracy"])) in page.attributes
    assert list(page.exact("stages")) == ["prune", "pack"], "from the stage.json files"
    whole = make_run(tmp_path / "whole")
    assert "unfinished" not in Page(write_report([whole])).shown.replace(str(whole), "")


def test_sections_without_artefacts_are_left_out(tmp_path):
    run = tmp_path / "bare"
    run.mkdir()
    (run / "recipe.yaml").write_text(RECIPE)
    write_metrics(run, [{"kind": "step", "phase": "train", "step": 1, "loss": 0.5}])
    write_json(run / "summary.json", {"name": "bare", "steps": 1, "final": {"train_loss": 0.5}})
    page = Page(write_report([run]))
    assert page.tables == {}
    assert list(page.charts) == ["Loss"]
    assert "Peak memory not measured" in page.shown
    assert "launch.sh" not in page.shown


def test_lost_steps_are_counted(tmp_path):
    broken = [step(n, loss=None if n in (3, 4) else 0.5, scale=65536.0, skipped=n == 4) for n in range(1, 9)]
    page = Page(write_report([make_run(tmp_path / "run", broken)]))
    assert "2 steps without a finite loss" in page.shown
    assert "1 step skipped by the loss scaler" in page.shown
    assert page.charts["Loss"]["lines"][0]["segments"][0]["step"] == [1, 2, 5, 6, 7, 8]
    assert set(page.charts["Loss scale"]["lines"][0]["segments"][0]["value"]) == {65536.0}


def test_several_runs_stand_side_by_side(tmp_path):
    first, second = make_run(tmp_path / "a"), make_run(tmp_path / "b", training(30))
    other = summary()
    other["final"]["val_accuracy"] = 0.5
    write_json(second / "summary.json", other)
    path = write_report([first, second])
    assert path == tmp_path / "report.html"
    page = Page(path)
    header, *rows = page.tables["verdict"][0]
    assert [text for _, text in header[1:]] == ["tiny-net a", "tiny-net b"]
    accuracy = next(row for row in rows if row[0][1] == "Validation accuracy")
    assert [json.loads(values[0]) for values, _ in accuracy[1:]] == [0.98183, 0.5]
    assert ["(best)" in text for _, text in accuracy[1:]] == [True, False]
    assert [line["label"] for line in page.charts["Validation accuracy"]["lines"]] == ["tiny-net a", "tiny-net b"]
    assert len(page.tables["stages"]) == len(page.tables["memory"]) == 2
    ids = [value for _, name, value in page.attributes if name == "id"]
    assert len(ids) == len(set(ids))


def test_a_hundred_thousand_steps_stay_under_five_megabytes(tmp_path):
    run = make_run(tmp_path / "long", training(100_000, every=1000))
    path = write_report([run])
    assert path.stat().st_size < 5_000_000
    data = Page(path).charts
    for name, chart in data.items():
        for line in chart["lines"]:
            assert sum(len(segment["step"]) for segment in line["segments"]) <= 2000, name
    steps = data["Loss"]["lines"][0]["segments"][0]
    assert max(steps["value"]) == pytest.approx(max(step(n)["loss"] for n in range(1, 100)))


def test_many_ranks_are_all_in_the_table(tmp_path):
    run = make_run(tmp_path / "run")
    write_json(run / "measured.json", {"per_rank": [per_rank(rank) for rank in range(40)]})
    (run / "plan.json").unlink()
    page = Page(write_report([run]))
    assert len(page.tables["memory"][0]) == 41
    assert page.text.count('class="bar measured"') == 16
    assert "The first 16 of 40 ranks" in page.shown


def test_the_same_artefacts_give_the_same_page(run, tmp_path):
    once, twice = (write_report([run], tmp_path / name).read_bytes() for name in ("a.html", "deep/b.html"))
    assert once == twice


def test_a_page_that_cannot_be_written_leaves_nothing_behind(run, tmp_path):
    (tmp_path / "report.html").mkdir()
    with pytest.raises(ReportError, match=r"cannot write .*report\.html"):
        write_report([run], tmp_path / "report.html")
    assert os.listdir(tmp_path) == ["report.html"]


def test_an_old_page_survives_a_failed_write(run, tmp_path, monkeypatch):
    path = tmp_path / "report.html"
    path.write_text("old")

    def fail(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "replace", fail)
    with pytest.raises(ReportError, match="No space left"):
        write_report([run], path)
    assert path.read_text() == "old"
    assert os.listdir(tmp_path) == ["report.html"]

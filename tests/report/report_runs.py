"""Run folders made from nothing, and the page of a report taken apart."""

from __future__ import annotations

import json
import math
from html.parser import HTMLParser
from pathlib import Path

VOID = {"meta", "link", "br", "hr", "img", "input"}
STAGES = [
    {"name": "dense", "val_accuracy": 0.98183, "val_loss": 0.0712, "nonzeros": 1060, "total": 1060},
    {"name": "prune", "val_accuracy": 0.58051, "val_loss": 1.3217, "nonzeros": 90, "total": 1060},
    {"name": "pack", "val_accuracy": 0.98397, "val_loss": 0.0641, "nonzeros": 90, "total": 1060},
]
LAYERS = [
    {"name": "fc1.weight", "shape": [50, 20], "nonzeros": 40, "total": 1000, "bytes": 4000, "codebook": 32},
    {"name": "fc1.bias", "shape": [50], "nonzeros": 48, "total": 50, "bytes": 200, "codebook": None},
    {"name": "fc2.bias", "shape": [10], "nonzeros": 2, "total": 10, "bytes": 40, "codebook": None},
]
RECIPE = "name: tiny-net\nseed: 42\n# widths < 5 & > 3\nmodel: {name: mlp}\n"
LAUNCH = "#!/bin/sh\nset -eu\ntorchrun --standalone --nproc-per-node 2 \\\n  -m distmem.worker recipe.yaml\n"


def step(number: int, phase: str = "train", **more) -> dict:
    loss = 2.3 * math.exp(-number / 40) + 0.03 + 0.001 * (number % 7)
    known = {"kind": "step", "phase": phase, "step": number, "epoch": number // 10, "loss": loss, "lr": 0.001}
    clip = {"grad_norm": 1.0 + number % 3, "grad_norm_clipped": 1.0, "samples": 128, "time_s": 0.5 * number}
    return {**known, **clip, **more}


def evaluation(number: int, phase: str = "train", **more) -> dict:
    known = {"kind": "eval", "phase": phase, "step": number, "epoch": number // 10, "time_s": 0.5 * number}
    return {**known, "val_loss": 0.2 + 1 / (number + 1), "val_accuracy": 1 - 1 / (number + 2), **more}


def training(steps: int, every: int = 10, phase: str = "train") -> list[dict]:
    records = []
    for number in range(1, steps + 1):
        records.append(step(number, phase))
        if number % every == 0:
            records.append(evaluation(number, phase))
    return records


def summary(**more) -> dict:
    rates = zip(STAGES, (1.0, 1060 / 90, 21.3), (4240, 4240, 199), strict=True)
    stages = [{**stage, "compression_rate": rate, "bytes": size} for stage, rate, size in rates]
    stages[-1] |= {"weights_rate": 1060 / 90, "file_rate": 21.3}
    return {
        "name": "tiny-net",
        "backend": "ddp",
        "world_size": 2,
        "steps": 60,
        "epochs": 6,
        "final": {"train_loss": 0.0113, "val_loss": 0.0712, "val_accuracy": 0.98183},
        "throughput": {"samples_per_s": 120345.6, "step_s_median": 0.00106},
        "memory": {"predicted_peak_bytes": 640_000_000, "measured_peak_bytes": 612_345_679},
        "stages": stages,
        "wall_s": 41.75,
        **more,
    }


def per_rank(rank: int, factor: float = 1.0) -> dict:
    sizes = {"parameters": 4240, "gradients": 4240, "optimizer": 8480, "activations": int(51200 * factor)}
    return {"rank": rank, **sizes, "buffers": 0, "masks": None, "data": 3_000_000}


def write_json(path: Path, value: dict) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(value))


def write_metrics(folder: Path, records: list[dict]) -> None:
    (folder / "metrics.jsonl").write_text("".join(f"{json.dumps(record)}\n" for record in records))


def make_run(folder: Path, records: list[dict] | None = None) -> Path:
    """A finished run with everything: two ranks, a plan, two stages of which one trains."""
    folder.mkdir(parents=True)
    (folder / "recipe.yaml").write_text(RECIPE)
    (folder / "launch.sh").write_text(LAUNCH)
    write_metrics(folder, records or training(60) + training(20, phase="2-retrain"))
    write_json(folder / "summary.json", summary())
    ranks = [{**per_rank(rank, 1 + rank / 10), "peak_device": None, "peak_resident": 600_000_000} for rank in (0, 1)]
    write_json(folder / "measured.json", {"device": "cpu", "per_rank": ranks})
    write_json(folder / "plan.json", {"per_rank": [per_rank(0), per_rank(1)]})
    for index, stage in enumerate(STAGES[1:], start=1):
        name = stage["name"]
        whole = {**stage, "index": index, "wall_s": 14.25, "settings": {"method": "std"}, "layers": LAYERS}
        write_json(folder / f"stages/{index:02d}-{name}/stage.json", whole)
    return folder


class Page(HTMLParser):
    """Tables as rows of cells, cards, chart data and attributes; tags must close in order."""

    def __init__(self, path: Path):
        super().__init__(convert_charrefs=True)
        self.text = path.read_text(encoding="utf-8")
        self.open: list[str] = []
        self.attributes: list[tuple[str, str, str]] = []
        self.tables: dict[str, list[list[list[tuple[list[str], str]]]]] = {}
        self.scripts: list[str] = []
        self.titles: list[str] = []
        self.pres: dict[str, str] = {}
        self.words: list[str] = []
        self._row: list[tuple[list[str], str]] | None = None
        self._cell: tuple[list[str], list[str]] | None = None
        self._table: list | None = None
        self._pre = ""
        self.feed(self.text)
        self.close()
        assert not self.open

    def handle_starttag(self, tag, attrs):
        found = dict(attrs)
        self.attributes += [(tag, name, value or "") for name, value in attrs]
        if tag not in VOID and not self.get_starttag_text().endswith("/>"):
            self.open.append(tag)
        if tag == "table":
            self._table = []
            self.tables.setdefault(found.get("class", ""), []).append(self._table)
        elif tag == "tr":
            self._row = []
            self._table.append(self._row)
        elif tag in ("td", "th"):
            self._cell = ([], [])
        elif tag == "data" and self._cell:
            self._cell[0].append(found["value"])
        elif tag == "pre":
            self._pre = found["id"]

    def handle_endtag(self, tag):
        if tag in VOID or (self.get_starttag_text().endswith("/>") and tag == "path"):
            return
        assert self.open.pop() == tag
        if tag in ("td", "th"):
            self._row.append((self._cell[0], " ".join("".join(self._cell[1]).split())))
            self._cell = None

    def handle_data(self, data):
        inside = self.open[-1] if self.open else ""
        if inside == "script":
            self.scripts.append(data)
            return
        if inside == "style":
            return
        self.words.append(data)
        if inside == "title":
            self.titles.append(data)
        if "pre" in self.open:
            self.pres[self._pre] = self.pres.get(self._pre, "") + data
        if self._cell:
            self._cell[1].append(data)

    @property
    def shown(self) -> str:
        return " ".join(" ".join(self.words).split())

    @property
    def charts(self) -> dict[str, dict]:
        """The data of every chart by the title before it."""
        titles = [title for title in self.titles[1:] if not title.startswith("Accuracy after every stage")]
        found = [json.loads(script) for script in self.scripts if script.startswith("{")]
        return dict(zip(titles, found, strict=True))

    def exact(self, kind: str, index: int = 0) -> dict[str, dict[str, float | str]]:
        """{row: {column: exact number, or the text where there is none}} of a table."""
        header, *rows = self.tables[kind][index]
        names = [text for _, text in header[1:]]
        return {
            row[0][1]: {
                name: json.loads(values[0]) if values else text
                for name, (values, text) in zip(names, row[1:], strict=True)
            }
            for row in rows
        }

"""The example of docs/your-own-model-and-data.md runs as it is printed."""

from __future__ import annotations

import re
import sys
from pathlib import Path
from typing import Any

import torch
import yaml

from distmem.data import bundle
from distmem.models import blocks, build

PAGE = Path(__file__).parents[2] / "docs" / "your-own-model-and-data.md"


def test_example_learns(tmp_path, monkeypatch):
    files = re.findall(r"```\w+\n# (\S+)\n(.*?)```", PAGE.read_text(), flags=re.DOTALL)
    assert [name for name, _ in files] == ["my_pkg/nets.py", "my_pkg/data.py", "rings.yaml"]
    for name, text in files:
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(text)
    monkeypatch.syspath_prepend(tmp_path)
    recipe = yaml.safe_load((tmp_path / "rings.yaml").read_text())
    data, model = recipe["data"], recipe["model"]
    try:
        for _ in range(2):  # built, then mapped
            found = bundle.load(data["name"], data["args"], val=data["val"], seed=0, shared=True, cache=tmp_path)
        torch.manual_seed(0)
        net: Any = build(model["name"], model["args"], found.hints)
    finally:
        for name in [name for name in sys.modules if name.partition(".")[0] == "my_pkg"]:
            del sys.modules[name]
    assert found.shared_file is not None
    assert (net.head.out_features, len(blocks(net))) == (4, 2)
    optimizer = torch.optim.Adam(net.parameters(), lr=recipe["optim"]["lr"])
    x, y = found.prepare(*found.train.gather(torch.arange(len(found.train))))
    for _ in range(200):
        optimizer.zero_grad()
        torch.nn.functional.cross_entropy(net(x), y).backward()
        optimizer.step()
    x, y = found.prepare(*found.val.gather(torch.arange(len(found.val))))
    assert (net(x).argmax(1) == y).float().mean() > 0.9

from __future__ import annotations

import os
import stat
import subprocess
import sys
import warnings
from pathlib import Path

import pytest
import torch

from distmem.data import bundle, store
from distmem.errors import DataError

SLOW = """
import os, time
from pathlib import Path
import torch

class Slow:
    def __init__(self, log: str, source: str, value: int = 1):
        self.log, self.source, self.value = log, Path(source), value
    def files(self):
        return [self.source]
    def splits(self):
        with open(self.log, "a") as log:
            log.write(f"{os.getpid()}\\n")
        time.sleep(0.3)
        x = torch.full((1000, 64), self.value, dtype=torch.uint8)
        return {"train": (x, x), "test": (x[:10], x[:10, 0])}
"""

RACER = """
import sys
from pathlib import Path
import torch
from distmem.data import bundle
cache, log, source = sys.argv[1:]
args = {"log": log, "source": source}
found = bundle.load("slow_source:Slow", args, val="test", seed=0, shared=True, cache=Path(cache))
x, y = found.train.gather(torch.arange(1000))
maps = Path("/proc/self/maps")
mapped = not maps.exists() or str(found.shared_file) in maps.read_text()
print(int(x.sum()), int(y.sum()), mapped, found.shared_file.name)
"""


@pytest.fixture
def slow(tmp_path, monkeypatch):
    (tmp_path / "slow_source.py").write_text(SLOW)
    (tmp_path / "source.bin").write_bytes(b"one")
    monkeypatch.syspath_prepend(tmp_path)
    yield {"log": str(tmp_path / "log"), "source": str(tmp_path / "source.bin")}
    sys.modules.pop("slow_source", None)


def load(args, tmp_path, name="slow_source:Slow"):
    return bundle.load(name, args, val="test", seed=0, shared=True, cache=tmp_path / "cache")


def builds(args) -> int:
    path = Path(args["log"])
    return len(path.read_text().splitlines()) if path.exists() else 0


def test_two_processes_build_one_file_and_map_it(slow, tmp_path):
    (tmp_path / "racer.py").write_text(RACER)
    root = Path(store.__file__).parents[2]
    env = {**os.environ, "PYTHONPATH": f"{root}{os.pathsep}{tmp_path}", "OMP_NUM_THREADS": "1"}
    command = [sys.executable, str(tmp_path / "racer.py"), str(tmp_path / "cache"), slow["log"], slow["source"]]
    racers = [subprocess.Popen(command, env=env, stdout=subprocess.PIPE, text=True) for _ in range(2)]
    outputs = [racer.communicate(timeout=120)[0] for racer in racers]
    assert [racer.returncode for racer in racers] == [0, 0]
    assert outputs[0] == outputs[1]
    assert outputs[0].startswith("64000 64000 True")
    assert builds(slow) == 1
    names = sorted(path.suffix for path in (tmp_path / "cache" / "store").iterdir())
    assert names == [".lock", ".safetensors"]


def test_the_file_is_private_and_used_again(slow, tmp_path):
    first, second = load(slow, tmp_path), load(slow, tmp_path)
    assert builds(slow) == 1
    assert first.shared_file == second.shared_file
    assert stat.S_IMODE(first.shared_file.stat().st_mode) == 0o600
    assert stat.S_IMODE(first.shared_file.parent.stat().st_mode) == 0o700
    assert store.entries(tmp_path / "cache" / "store") == [
        (first.shared_file, "slow_source:Slow", first.shared_file.stat().st_size)
    ]


def test_writing_to_a_mapped_tensor_leaves_the_file_alone(slow, tmp_path):
    first = load(slow, tmp_path)
    before = first.shared_file.read_bytes()
    first.train.x.fill_(7)
    assert first.shared_file.read_bytes() == before
    assert load(slow, tmp_path).train.x.unique().tolist() == [1]


@pytest.mark.parametrize("keep", [0, 5, 200, -1])
def test_a_truncated_file_is_built_again(slow, tmp_path, keep):
    found = load(slow, tmp_path)
    whole = found.shared_file.read_bytes()
    found.shared_file.unlink()
    found.shared_file.write_bytes(whole[:keep])
    again = load(slow, tmp_path)
    assert builds(slow) == 2
    assert again.shared_file.read_bytes() == whole
    assert again.train.x.unique().tolist() == [1]


def test_a_new_file_argument_or_code_is_a_new_dataset(slow, tmp_path):
    seen = {load(slow, tmp_path).shared_file}
    Path(slow["source"]).write_bytes(b"other")
    seen.add(load(slow, tmp_path).shared_file)
    os.utime(slow["source"], ns=(1, 1))
    seen.add(load(slow, tmp_path).shared_file)
    changed = load({**slow, "value": 2}, tmp_path)
    assert changed.train.x.unique().tolist() == [2]
    seen.add(changed.shared_file)
    code = tmp_path / "slow_source.py"
    code.write_text(code.read_text() + "# a change\n")
    seen.add(load(slow, tmp_path).shared_file)
    assert len(seen) == 5
    assert builds(slow) == 5


def test_what_a_killed_builder_left_is_swept(slow, tmp_path):
    found = load(slow, tmp_path)
    left = found.shared_file.with_name(f"{found.shared_file.stem}.abc.tmp")
    found.shared_file.rename(left)
    assert load(slow, tmp_path).shared_file.exists()
    assert not left.exists()


def test_no_space_falls_back_to_own_memory(slow, tmp_path, monkeypatch):
    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(store, "save_file", full)
    with pytest.warns(UserWarning, match=r"no shared copy of slow_source:Slow \(126 KiB\).*No space left"):
        found = load(slow, tmp_path)
    assert found.shared_file is None
    assert len(found.train) == 1000
    monkeypatch.undo()
    tight = type("Usage", (), {"free": 1000})()
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr(store.shutil, "disk_usage", lambda _: tight)
    with pytest.warns(UserWarning, match="only 1000 B are free"):
        assert load(slow, tmp_path).shared_file is None
    assert not list((tmp_path / "cache" / "store").glob("*.tmp"))


def test_an_unusable_cache_falls_back_to_own_memory(slow, tmp_path):
    (tmp_path / "cache").write_text("a file where a folder should be")
    with pytest.warns(UserWarning, match="no shared copy of the data"):
        assert len(load(slow, tmp_path).train) == 1000


def test_datasets_are_not_stored(tmp_path, monkeypatch):
    (tmp_path / "set_source.py").write_text(
        "import torch\nfrom torch.utils.data import TensorDataset\n"
        "class Own:\n"
        "    def files(self): return []\n"
        "    def splits(self):\n"
        "        d = TensorDataset(torch.zeros(4, 1), torch.zeros(4))\n"
        "        return {'train': d, 'test': d}\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        found = load({}, tmp_path, "set_source:Own")
    assert found.shared_file is None
    assert not list((tmp_path / "cache" / "store").glob("*.safetensors"))
    sys.modules.pop("set_source")


def test_small_token_dtypes_survive(tmp_path):
    (tmp_path / "t.txt").write_text("".join(map(chr, range(0x4E00, 0x4E00 + 400))))
    args = {"path": str(tmp_path / "t.txt"), "context": 8}
    first, second = load(args, tmp_path, "text"), load(args, tmp_path, "text")
    assert second.train.tokens.dtype == torch.uint16
    for found in (first, second):
        x, y = found.prepare(*found.train.gather(torch.tensor([1])))
        assert x.tolist() == [list(range(8, 16))]
        assert y.tolist() == [list(range(9, 17))]
    assert second.hints == {"vocab_size": 400, "context": 8}


def test_a_missing_source_file_is_named(slow, tmp_path):
    Path(slow["source"]).unlink()
    with pytest.raises(DataError, match=r"source\.bin: No such file"):
        load(slow, tmp_path)

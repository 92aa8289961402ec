"""Checkpoints on disk: what is written is read, what is damaged is told, what is killed leaves no harm."""

from __future__ import annotations

import json
import os
import shutil
import signal
from pathlib import Path

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from distmem.checkpoint import store as module
from distmem.checkpoint.store import CheckpointStore, newest_everywhere, read_checkpoint, write_checkpoint
from distmem.distributed import World
from distmem.errors import CheckpointError

DTYPES = (torch.float32, torch.float64, torch.float16, torch.bfloat16, torch.int64, torch.uint8, torch.bool)


def tensors(value: float) -> dict[str, torch.Tensor]:
    return {
        "model/w": torch.full((4, 3), float(value)),
        "optimizer/w/step": torch.tensor(float(value)),
        "masks/w": torch.ones(4) > 0,
    }


def progress(step: int, **more: object) -> dict:
    return {"step": step, "phase": "train", **more}


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


@pytest.fixture
def store(tmp_path):
    return CheckpointStore(tmp_path / "checkpoints", keep=2, background=False)


@settings(max_examples=20, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    shapes=st.dictionaries(
        st.text("abc./_", min_size=1, max_size=8), st.lists(st.integers(0, 4), max_size=3), max_size=5
    ),
    dtype=st.sampled_from(DTYPES),
    number=st.floats(allow_nan=False),
)
def test_what_is_written_is_read(tmp_path, shapes, dtype, number):
    wanted = {name: (torch.randn(shape) * 3).to(dtype) for name, shape in shapes.items()}
    write_checkpoint(tmp_path / "one", wanted, progress(7, number=number))
    saved = read_checkpoint(tmp_path / "one")
    assert saved.progress == {"step": 7, "phase": "train", "number": number}
    assert saved.tensors.keys() == wanted.keys()
    for name, tensor in wanted.items():
        assert saved.tensors[name].dtype == dtype
        assert torch.equal(saved.tensors[name], tensor)


def test_manifest_has_the_hashes(store):
    store.save(tensors(1.0), progress(1))
    folder = store.folder / "step-00000001"
    assert names(folder) == ["manifest.json", "progress.json", "state.safetensors"]
    manifest = json.loads((folder / "manifest.json").read_text())
    from hashlib import blake2b

    for name, digest in manifest["files"].items():
        assert blake2b((folder / name).read_bytes(), digest_size=16).hexdigest() == digest
    assert manifest["bytes"] == 4 * 12 + 4 + 4


def flip(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)


def edit(path: Path, **values: object) -> None:
    path.write_text(json.dumps({**json.loads(path.read_text()), **values}))


DAMAGE = {
    "a flipped bit": (lambda folder: flip(folder / "state.safetensors"), "state.safetensors is damaged: its hash"),
    "truncated": (lambda folder: os.truncate(folder / "state.safetensors", 20), "state.safetensors is damaged"),
    "empty": (lambda folder: os.truncate(folder / "state.safetensors", 0), "state.safetensors is damaged"),
    "other progress": (lambda folder: edit(folder / "progress.json", step=3), "progress.json is damaged"),
    "no state": (lambda folder: (folder / "state.safetensors").unlink(), "is no checkpoint: No such file"),
    "no manifest": (lambda folder: (folder / "manifest.json").unlink(), "is no checkpoint: No such file"),
    "half a manifest": (lambda folder: os.truncate(folder / "manifest.json", 9), "is damaged: JSONDecodeError"),
    "a list": (lambda folder: (folder / "manifest.json").write_text("[]"), "is damaged: TypeError"),
    "no files": (lambda folder: edit(folder / "manifest.json", files={}), "is damaged: KeyError: 'state.safetensors'"),
    "of the future": (
        lambda folder: edit(folder / "manifest.json", format=2, files=None),
        "format 2, and this version",
    ),
    "binary": (
        lambda folder: (folder / "manifest.json").write_bytes(b"\xff\xfe\x00"),
        "is damaged: UnicodeDecodeError",
    ),
    "gone": (shutil.rmtree, "is no checkpoint: No such file"),
}


@pytest.mark.parametrize("damage", DAMAGE)
def test_damage_is_told(tmp_path, damage):
    harm, words = DAMAGE[damage]
    write_checkpoint(tmp_path / "one", tensors(1.0), progress(1))
    harm(tmp_path / "one")
    with pytest.raises(CheckpointError) as caught:
        read_checkpoint(tmp_path / "one")
    assert str(caught.value).startswith(str(tmp_path / "one"))
    assert words in str(caught.value)


def test_newest_passes_over_damaged_ones_and_says_so(store):
    for step in (1, 2):
        store.save(tensors(step), progress(step))
    assert store.newest().progress["step"] == 2
    assert store.newest().passed_over == []
    flip(store.folder / "step-00000002" / "state.safetensors")
    saved = newest_everywhere(World(), store)
    assert (saved.progress["step"], float(saved.tensors["model/w"][0, 0])) == (1, 1.0)
    [words] = saved.passed_over
    assert "step-00000002: state.safetensors is damaged" in words


def test_all_damaged_is_an_error_and_nothing_is_touched(store):
    for step in (1, 2):
        store.save(tensors(step), progress(step))
        flip(store.folder / f"step-{step:08d}" / "state.safetensors")
    before = [(path, path.stat().st_mtime_ns) for path in sorted(store.folder.rglob("*"))]
    with pytest.raises(CheckpointError) as caught:
        store.newest()
    assert "no checkpoint of this run can be read" in str(caught.value)
    assert "step-00000001" in str(caught.value)
    assert "step-00000002" in str(caught.value)
    assert before == [(path, path.stat().st_mtime_ns) for path in sorted(store.folder.rglob("*"))]


def test_none_is_no_error(store):
    assert store.newest() is None
    store.folder.mkdir()
    assert store.newest() is None


@pytest.mark.parametrize("keep", [1, 2, 3])
def test_the_newest_are_kept(tmp_path, keep):
    store = CheckpointStore(tmp_path, keep, background=False)
    for step in (5, 10, 99_999_999, 100_000_000):  # a digit more is later, not earlier
        store.save(tensors(step), progress(step))
    assert [int(path.name[5:]) for path in store.steps()] == [5, 10, 99_999_999, 100_000_000][-keep:]
    assert store.newest().progress["step"] == 100_000_000


@pytest.mark.parametrize("keep", [1, 2])
def test_a_damaged_later_one_does_not_displace_what_is_written_after_it(tmp_path, keep):
    store = CheckpointStore(tmp_path, keep, background=False)
    for step in (3, 6):
        store.save(tensors(step), progress(step))
    flip(tmp_path / "step-00000006" / "state.safetensors")
    store.save(tensors(4), progress(4))  # a run that went on from 3 was stopped after 4
    assert store.newest().progress["step"] == 4
    assert [int(path.name[5:]) for path in store.steps()] == [3, 4][-keep:]


def test_best_is_kept_and_replaced(store):
    store.save(tensors(1), progress(1), best=True)
    for step in (2, 3, 4):
        store.save(tensors(step), progress(step))
    assert names(store.folder) == ["best", "step-00000003", "step-00000004"]
    assert read_checkpoint(store.folder / "best").progress["step"] == 1
    store.save(tensors(5), progress(5), best=True)
    assert read_checkpoint(store.folder / "best").progress["step"] == 5
    assert names(store.folder) == ["best", "step-00000004", "step-00000005"]


def test_a_step_that_is_done_again_is_replaced(store):
    store.save(tensors(1), progress(1))
    store.save(tensors(2), progress(1))
    assert float(store.newest().tensors["model/w"][0, 0]) == 2.0
    assert names(store.folder) == ["step-00000001"]


def test_background_writes_the_same(tmp_path):
    for name, background in (("sync", False), ("async", True)):
        store = CheckpointStore(tmp_path / name, keep=2, background=background)
        for step in (1, 2, 3):
            store.save(tensors(step), progress(step), best=step == 2)
        store.wait()
    files = sorted(path.relative_to(tmp_path / "sync") for path in (tmp_path / "sync").rglob("*.*"))
    assert len(files) == 9
    for file in files:
        assert (tmp_path / "sync" / file).read_bytes() == (tmp_path / "async" / file).read_bytes()
    assert names(tmp_path / "async") == names(tmp_path / "sync")


def test_ranks_that_do_not_write(tmp_path):
    store = CheckpointStore(tmp_path / "none", keep=2, background=True, active=False)
    store.save({}, progress(1), best=True)
    store.wait()
    assert not (tmp_path / "none").exists()


@pytest.mark.parametrize("background", [False, True])
def test_a_write_that_fails_is_told_and_older_ones_stay(tmp_path, monkeypatch, background):
    store = CheckpointStore(tmp_path, keep=2, background=background)
    store.save(tensors(1), progress(1))
    store.wait()

    def full(path: Path) -> None:
        raise OSError(28, "No space left on device")

    def save_and_wait() -> None:
        store.save(tensors(2), progress(2))
        store.wait()

    with monkeypatch.context() as patched:
        patched.setattr(module, "sync_file", full)
        with pytest.raises(CheckpointError) as caught:
            save_and_wait()
    assert f"cannot save 56 B to {tmp_path / 'step-00000002'}: No space left on device" in str(caught.value)
    assert "free some space and resume" in str(caught.value)
    assert names(tmp_path) == ["step-00000001"]
    store.wait()  # told once
    store.save(tensors(3), progress(3))
    store.wait()
    assert store.newest().progress["step"] == 3


def test_too_little_space_is_told_before_anything_is_written(tmp_path, monkeypatch):
    monkeypatch.setattr(module.shutil, "disk_usage", lambda path: shutil._ntuple_diskusage(100, 60, 40))
    with pytest.raises(CheckpointError, match="the state has 56 B, and 40 B are free"):
        write_checkpoint(tmp_path / "one", tensors(1), progress(1))
    assert names(tmp_path) == []


def killed(write) -> int:
    """Run a function in a fork that it kills itself; gives the signal."""
    if (child := os.fork()) == 0:
        write()
        os._exit(0)
    return os.WTERMSIG(os.waitpid(child, 0)[1])


@pytest.mark.parametrize("moment", ["save_file", "sync_file", "write_json", "digest", "_replace", "sync_folder"])
@pytest.mark.parametrize("when", ["before", "after"])
def test_a_kill_at_any_moment_of_a_write(tmp_path, monkeypatch, moment, when):
    """The newest is whole, the old one or the new; what is left over goes away with the next write."""
    store = CheckpointStore(tmp_path, keep=2, background=False)
    store.save(tensors(1), progress(1))
    original = getattr(module, moment)

    def fatal(*args):
        if when == "after":
            original(*args)
        os.kill(os.getpid(), signal.SIGKILL)

    with monkeypatch.context() as patched:
        patched.setattr(module, moment, fatal)
        assert killed(lambda: store.save(tensors(2), progress(2))) == signal.SIGKILL
    renamed = (moment, when) == ("_replace", "after")
    assert store.newest().progress["step"] == (2 if renamed else 1)
    assert store.newest().passed_over == []
    assert all(name.startswith(".") for name in set(names(tmp_path)) - {"step-00000001", "step-00000002"})
    store.save(tensors(3), progress(3))
    assert [name for name in names(tmp_path) if name.startswith(".")] == []
    assert store.newest().progress["step"] == 3


def test_a_kill_between_the_two_renames_of_best(tmp_path, monkeypatch):
    store = CheckpointStore(tmp_path, keep=2, background=False)
    store.save(tensors(1), progress(1), best=True)
    monkeypatch.setattr(
        Path,
        "rename",
        lambda self, to, rename=Path.rename: rename(self, to) and self.name == "best" and os.kill(os.getpid(), 9),
    )
    assert killed(lambda: store.save(tensors(2), progress(2), best=True)) == signal.SIGKILL
    monkeypatch.undo()
    assert not (tmp_path / "best").exists()
    # the step was not written yet, so the run goes on from step 1 and will find step 2 to be the best again
    assert store.newest().progress["step"] == 1
    store.save(tensors(2), progress(2))
    assert read_checkpoint(tmp_path / "best").progress["step"] == 1
    assert names(tmp_path) == ["best", "step-00000001", "step-00000002"]


def test_a_folder_that_cannot_be_written(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(CheckpointError, match=r"Not a directory|File exists"):
        write_checkpoint(tmp_path / "file" / "one", tensors(1), progress(1))

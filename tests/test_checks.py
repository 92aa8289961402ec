"""Checks against machines that a test makes up: what `auto` becomes, and what each device and backend refuses."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from distmem import losses, metrics
from distmem.backends import BACKENDS
from distmem.checks import CHECKS, check, names, resolve
from distmem.errors import RecipeError
from distmem.hardware import Hardware
from distmem.memory.precision import PRECISIONS, SUPPORTED
from distmem.recipe import Recipe, load_recipe, recipe_from_text
from distmem.recipe.load import known_keys
from distmem.shipped import shipped_recipes

CPU = Hardware(cuda_devices=0, mps=False, cores=4)
TWO_GPUS = Hardware(cuda_devices=2, mps=False, cores=32)
MAC = Hardware(cuda_devices=0, mps=True, cores=8)
MACHINES = {"cpu": CPU, "cuda": TWO_GPUS, "mps": MAC}
BASE = "name: one\nmodel: {name: mlp}\ndata: {name: digits}\ntrain: {epochs: 1}\n"


def checked(*overrides: str, machine: Hardware = CPU, base: str = BASE) -> Recipe:
    return check(recipe_from_text(base, "f", list(overrides)), machine)


def faults(*overrides: str, machine: Hardware = CPU, base: str = BASE) -> list[RecipeError]:
    with pytest.raises(RecipeError) as caught:
        checked(*overrides, machine=machine, base=base)
    return caught.value.faults or [caught.value]


def fault(*overrides: str, machine: Hardware = CPU, base: str = BASE) -> RecipeError:
    (only,) = faults(*overrides, machine=machine, base=base)
    return only


@pytest.mark.parametrize(
    ("machine", "overrides", "expected"),
    [
        (CPU, [], ("cpu", 1, "local", "32-true")),
        (MAC, [], ("mps", 1, "local", "32-true")),
        (TWO_GPUS, [], ("cuda", 2, "torchrun", "32-true")),
        (TWO_GPUS, ["train.precision=auto"], ("cuda", 2, "torchrun", "bf16-mixed")),
        (MAC, ["train.precision=auto"], ("mps", 1, "local", "32-true")),
        (TWO_GPUS, ["launch.device=cpu"], ("cpu", 1, "local", "32-true")),
        (TWO_GPUS, ["launch.device=cpu", "train.precision=auto"], ("cpu", 1, "local", "32-true")),
        (TWO_GPUS, ["launch.procs_per_node=1"], ("cuda", 1, "local", "32-true")),
        (CPU, ["launch.procs_per_node=4"], ("cpu", 4, "torchrun", "32-true")),
        (CPU, ["launch.launcher=torchrun"], ("cpu", 1, "torchrun", "32-true")),
    ],
)
def test_auto_becomes_what_the_machine_has(machine: Hardware, overrides: list[str], expected: tuple):
    recipe = checked(*overrides, machine=machine)
    found = (recipe.launch.device, recipe.launch.procs_per_node, recipe.launch.launcher, recipe.train.precision)
    assert found == expected


@pytest.mark.parametrize("machine", MACHINES.values(), ids=MACHINES)
def test_what_is_resolved_stays_as_it_is(machine: Hardware):
    recipe = checked("train.precision=auto", machine=machine)
    assert resolve(recipe, TWO_GPUS) == recipe


@pytest.mark.parametrize("name", shipped_recipes())
@pytest.mark.parametrize("machine", MACHINES.values(), ids=MACHINES)
def test_shipped_recipes_pass_on_every_machine(name: str, machine: Hardware, tmp_path: Path, monkeypatch):
    loaded = load_recipe(shipped_recipes()[name])
    if file := loaded.recipe.data.args.get("path"):  # a file of the user's
        (tmp_path / file).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / file).touch()
    monkeypatch.chdir(tmp_path)
    assert check(loaded, machine).launch.device != "auto"


@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize("device", MACHINES)
def test_a_precision_that_a_device_lacks_is_refused_with_those_it_has(device: str, precision: str):
    overrides = [f"launch.device={device}", f"train.precision={precision}", "optim.name=sgd"]
    if precision in SUPPORTED[device]:
        assert checked(*overrides, machine=MACHINES[device]).train.precision == precision
        return
    error = fault(*overrides, machine=MACHINES[device])
    assert error.cause == f"train.precision: {precision} does not work on {device}"
    assert error.remedy == f"one of {', '.join(SUPPORTED[device])}"


@pytest.mark.parametrize(
    ("machine", "overrides", "cause", "remedy"),
    [
        (CPU, ["launch.device=cuda"], "launch.device: this machine has no cuda", "one of cpu, auto"),
        (CPU, ["launch.device=mps"], "launch.device: this machine has no mps", "one of cpu, auto"),
        (MAC, ["launch.device=cuda"], "launch.device: this machine has no cuda", "one of cpu, mps, auto"),
        (TWO_GPUS, ["launch.device=mps"], "launch.device: this machine has no mps", "one of cpu, cuda, auto"),
        (TWO_GPUS, ["launch.procs_per_node=3"], "3 processes and 2 CUDA devices", "at most 2"),
        (MAC, ["launch.procs_per_node=2"], "2 processes: mps has one device", "procs_per_node: 1"),
        (TWO_GPUS, ["launch.launcher=local"], "local is one process, and 2 are asked for", "torchrun"),
        (TWO_GPUS, ["train.batch_size=1"], "a global batch of 1 gives 2 processes less than one", "at least 2"),
        (TWO_GPUS, ["train.batch_size=8", "train.accumulate=5"], "5 micro-batches of 4 samples", "at most 4"),
        (CPU, ["train.batch_size=8", "train.accumulate={0: 2, 9: 9}"], "9 micro-batches of 8 samples", "at most 8"),
        (CPU, ["train.accumulate=2", "memory.micro_batch=8"], "8 samples x 2 micro-batches do not hold the 64", "one"),
        (CPU, ["launch.restarts=1"], "only torchrun restarts failed processes", "launcher: torchrun"),
        (CPU, ["launch.backend=fsdp"], "launch.backend: fsdp does not work yet", "ddp"),
        (CPU, ["launch.launcher=slurm"], "slurm does not work yet with backend ddp", "one of local, torchrun"),
        (CPU, ["memory.shard=zero3"], "memory.shard: zero3 does not work yet with backend ddp", "none"),
        (CPU, ["memory.activation_checkpointing=optimal"], "optimal does not work yet", "{blocks: 6}"),
        (CPU, ["log=[jsonl, wandb]"], "log.1: wandb does not work yet", "jsonl"),
        (CPU, ["optim.args={lr: 0.5}"], "optim.args.lr: lr is no argument here", "the rate is optim.lr"),
        (CPU, ["optim.args={betas: 3, amsgrad: 1}"], "optim.args.amsgrad: 1 is not true or false", "None"),
        (CPU, ["optim.name=SGD", "optim.args={momentun: 1}"], 'optimizer "SGD" has no argument', "momentum"),
        (CPU, ["data.name=text", "data.args={path: ., level: word}"], "'word' is not one of char, byte", "None"),
        (
            CPU,
            ["data.val={name: csv, args: {path: .}}"],
            'data.val.args: data source "csv" needs target',
            "target: ...",
        ),
        (CPU, ["data.name=csv", "data.args={path: no.csv, target: y}"], "there is no file no.csv", "paths count from"),
        (CPU, ["model.init=no.safetensors"], "there is no file or folder no.safetensors", "paths count from"),
        (CPU, ["checkpoint.best=val_acc"], '"val_acc" is not measured.', "one of val_loss, val_accuracy"),
        (CPU, ["metrics=[mae]", "checkpoint.best=val_accuracy"], "is not measured", "one of val_loss, val_mae"),
        (CPU, ["loss=torch.nn.functional:no_such"], 'has no "no_such"', "None"),
    ],
)
def test_what_cannot_be_is_refused(machine: Hardware, overrides: list[str], cause: str, remedy: str):
    error = fault(*overrides, machine=machine)
    assert cause in error.cause
    assert remedy in str(error.remedy)
    assert str(error.where).startswith("override ") or error.where == "f:1:1"


@pytest.mark.parametrize("optim", ["adam", "adamw", "rmsprop", "Adadelta"])
def test_an_eps_that_is_zero_in_float16_is_refused_for_every_optimizer_of_the_recipe(optim: str):
    after = f"after=[{{prune: {{sensitivity: 1}}}}, {{retrain: {{epochs: 1, optim: {{name: {optim}}}}}}}]"
    error = fault("train.precision=16-true", "optim.name=sgd", after)
    assert error.cause.startswith(f"after.1.retrain.optim.args: eps 1e-08 of {optim} is zero in float16")
    assert checked("train.precision=16-true", "optim.name=adam", "optim.args={eps: 1e-4}")
    assert checked("train.precision=16-mixed", "optim.name=adam")


def test_a_rate_that_is_not_there_yet_is_refused_in_stages_too():
    retrain = "after=[{retrain: {epochs: 1, optim: {lr: auto}}}]"
    gradual = "after=[{prune: {method: layer, sparsity: 0.5, gradual: {epochs: 1, optim: {lr: auto}}}}]"
    assert fault(retrain).cause == "after.0.retrain.optim.lr: auto does not work yet"
    assert fault(gradual).cause == "after.0.prune.gradual.optim.lr: auto does not work yet"


@pytest.mark.parametrize(
    "stage", ["{retrain: {epochs: 1}}", "{prune: {method: global, sparsity: 0.5, gradual: {epochs: 1}}}"]
)
def test_nothing_trains_after_sharing(stage: str):
    assert "after share would move weights off their shared values" in fault(f"after=[{{share: {{}}}}, {stage}]").cause
    assert checked(f"after=[{stage}, {{share: {{}}}}]")


def test_import_paths_are_looked_at_and_never_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    (tmp_path / "mine.py").write_text("raise SystemExit('run!')\nclass Net:\n    def __init__(self, width: int): ...\n")
    (tmp_path / "starred.py").write_text("from os.path import *\n")
    (tmp_path / "bad.py").write_text("class Net(:\n")
    monkeypatch.chdir(tmp_path)
    assert checked("model={name: mine:Net, args: {width: 3}}")
    assert checked("model.name=starred:Net")
    assert 'has no argument "widht". Did you mean "width"?' in fault("model={name: mine:Net, args: {widht: 3}}").cause
    assert "'a' is not a whole number" in fault("model={name: mine:Net, args: {width: a}}").cause
    assert 'mine.py has no "Nett". Did you mean "Net"?' in fault("model.name=mine:Nett").cause
    assert "bad.py:1:" in fault("model.name=bad:Net").cause
    assert 'there is no module "minee" here or on PYTHONPATH' in fault("model.name=minee:Net").cause
    for name in (":Net", "mine:", "mine.py", "nets/mine", ""):
        assert faults(f"model.name='{name}'")
    assert "mine" not in sys.modules


def test_a_path_may_start_at_home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / "t.csv").touch()
    assert checked("data={name: csv, args: {path: ~/t.csv, target: y}}")
    assert (
        "there is no file ~nobody-here/t.csv"
        in fault("data={name: csv, args: {path: ~nobody-here/t.csv, target: y}}").cause
    )


def test_all_faults_come_at_once_in_the_order_of_the_file():
    base = "name: one\nloss: entropy\nmodel: {name: mpl}\ndata: {name: digits}\nmemory: {shard: fsdp}\ntrain: {}\n"
    assert [error.where for error in faults(base=base)] == ["f:2:1", "f:3:9", "f:5:10", "f:6:1"]


def test_the_names_that_need_no_import_are_those_that_there_are():
    assert set(names.LOSSES) == set(losses.LOSSES)
    assert set(names.METRICS) == set(metrics.METRICS)


def test_a_check_imports_neither_torch_nor_anything_as_slow():
    code = (
        "import sys; from distmem.checks import check; from distmem.recipe import recipe_from_text; "
        f"check(recipe_from_text({BASE!r})); "
        "print(sorted({'torch', 'numpy', 'pandas', 'sklearn', 'matplotlib', 'rich'} & set(sys.modules)))"
    )
    ended = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert ended.stdout == "[]\n"


CHOICES = {
    "train.batch_size": ["1", "2", "64"],
    "train.epochs": ["null", "3"],
    "train.steps": ["null", "9"],
    "train.precision": ["auto", *PRECISIONS],
    "train.accumulate": ["auto", "1", "7", "{0: 99}"],
    "train.averaging": ["null", "{ema: {decay: 0.9}}"],
    "memory.micro_batch": ["auto", "1", "50"],
    "memory.shard": ["none", "zero2"],
    "memory.offload": ["none", "optimizer"],
    "memory.activation_checkpointing": ["none", "sqrt", "selective", "{blocks: 2}"],
    "memory.compile": ["true", "false"],
    "memory.budget": ["null", "8GiB"],
    "launch.backend": ["ddp", "fsdp", "deepspeed"],
    "launch.launcher": ["auto", "local", "torchrun", "slurm"],
    "launch.device": ["auto", "cpu", "cuda", "mps"],
    "launch.nodes": ["1", "2"],
    "launch.procs_per_node": ["auto", "1", "2", "8"],
    "launch.restarts": ["0", "3"],
    "checkpoint.best": ["null", "val_loss", "val_x"],
    "optim.lr": ["0.1", "auto"],
    "optim.args": ["{}", "{eps: 1e-9}", "{nope: 1}", "{lr: 1}", "{params: 1, weight_decay: x}"],
    "model.name": ["mlp", "lenet5", "nope", "os.path:join", "'json:'", "torch.nn:Linear"],
    "model.args": ["{}", "{hidden: [3]}", "{hidden: x}", "{in_features: 3}"],
    "model.init": ["null", "nope"],
    "data.name": ["digits", "csv", "nope"],
    "data.args": ["{}", "{path: nope}", "{path: 3, target: [1]}"],
    "data.val": ["test", "0.5", "{name: csv}", "{name: x, args: {path: 1}}"],
    "loss": ["mse", "nope", "json:dumps", "json:nope"],
    "metrics": ["[]", "[accuracy, nope]", "['json:x']"],
    "log": ["[jsonl]", "[csv, mlflow]"],
    "after": ["[]", "[{share: {}}, {retrain: {epochs: 1}}]", "[{retrain: {epochs: 1, optim: {args: {x: 1}}}}]"],
}


@settings(max_examples=100, deadline=None)
@given(
    st.fixed_dictionaries({}, optional={key: st.sampled_from(values) for key, values in CHOICES.items()}),
    st.sampled_from(list(MACHINES.values())),
)
def test_every_fault_names_a_key_of_the_recipe_and_says_why(values: dict[str, str], machine: Hardware):
    loaded = recipe_from_text(BASE, "f", [f"{key}={value}" for key, value in values.items()])
    recipe = resolve(loaded.recipe, machine)
    for one in CHECKS:
        for found in one(recipe, machine):
            assert found.cause
            for length, key in enumerate(found.path):
                parents = found.path[:length]
                if "args" in parents or "val" in parents or parents[-1:] in (("metrics",), ("log",), ("after",)):
                    break  # below here are keys of the user's own, or indices
                assert key in known_keys(parents), found
            assert loaded.places.of(found.path) != "f"


def test_every_capability_is_a_value_a_recipe_may_have():
    for name, able in BACKENDS.items():
        for launcher in able.launchers:
            recipe_from_text(BASE, overrides=[f"launch.backend={name}", f"launch.launcher={launcher}"])
        assert set(able.precisions) == set(PRECISIONS)
        assert set(able.devices) <= set(SUPPORTED)
        assert set(able.stages) <= set(known_keys(("after", 0)))

"""The recipe: every key a user may write, with its default. What a value may not be together with another
stands in `checks/`; what a backend can do in `backends/`, what a device can do in `memory/precision.py`."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

from distmem.recipe import types


class Section(BaseModel):
    """A mapping of a recipe: unknown keys are errors, types are not guessed, nothing changes after loading."""

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True, populate_by_name=True)


class Model(Section):
    name: str = Field(min_length=1, description="a registered name, or an import path such as my_pkg.nets:Net")
    args: dict[str, Any] = Field(default={}, description="passed to the constructor")
    init: str | None = Field(default=None, description="a weights file (safetensors) or a run or checkpoint folder")


class Data(Section):
    name: str = Field(min_length=1, description="a registered name, or an import path such as my_pkg.data:load")
    args: dict[str, Any] = {}
    shared: bool = Field(default=True, description="one memory-mapped copy per node")
    workers: types.Workers = Field(default="auto", description="threads that gather batches ahead")
    val: types.Validation = Field(default="test", description="a split's name, a fraction of train, or another source")


class Schedule(Section):
    name: Literal["constant", "cosine", "linear", "step", "onecycle"] = "constant"
    warmup_steps: int = Field(default=0, ge=0, description="optimizer steps")
    final: float = Field(default=0.0, ge=0.0, le=1.0, description="last rate as a part of lr (cosine, linear)")
    every: types.Every = Field(default="1epoch", description="interval of `step`")
    gamma: float = Field(default=0.1, gt=0.0, le=1.0, description="factor of `step`")


class Optim(Section):
    name: str = Field(default="adam", min_length=1)
    lr: types.Rate = 0.001
    args: dict[str, Any] = {}
    schedule: Schedule = Schedule()


class Clip(Section):
    norm: float | None = Field(default=None, gt=0.0)
    value: float | None = Field(default=None, gt=0.0)

    @model_validator(mode="after")
    def _something_is_clipped(self) -> Clip:
        if self.norm is None and self.value is None:
            raise ValueError("clip needs norm or value (or write clip: null)")
        return self


class Train(Section):
    epochs: int | None = Field(default=None, ge=1)
    steps: int | None = Field(default=None, ge=1, description="optimizer steps, instead of epochs")
    batch_size: int = Field(default=64, ge=1, description="GLOBAL batch in samples, whatever the strategy")
    precision: types.Precision = "32-true"
    accumulate: types.Accumulate = Field(default="auto", description="micro-batches of a global batch")
    clip: Clip | None = None
    averaging: dict[str, Any] | None = None
    deterministic: bool = False
    eval_every: types.Every = "1epoch"
    eval_batch_size: types.PositiveOrAuto = Field(default="auto", description="samples per rank")


class Memory(Section):
    budget: types.Size = Field(default=None, description="per device, such as 8GiB")
    strategy: Literal["auto", "manual"] = "auto"
    activation_checkpointing: types.ActivationCheckpointing = "none"
    shard: Literal["none", "zero1", "zero2", "zero3", "fsdp"] = "none"
    offload: str = "none"
    micro_batch: types.PositiveOrAuto = Field(default="auto", description="samples per rank and backward pass")
    compile: bool = False


class Slurm(Section):
    partition: str | None = None
    time: str = "01:00:00"
    account: str | None = None
    mem: str | None = None
    extra: list[str] = []


class Launch(Section):
    backend: Literal["ddp", "fsdp", "accelerate", "deepspeed"] = "ddp"
    launcher: Literal["auto", "local", "torchrun", "accelerate", "deepspeed", "slurm"] = "auto"
    device: Literal["auto", "cpu", "cuda", "mps"] = "auto"
    nodes: int = Field(default=1, ge=1)
    procs_per_node: types.PositiveOrAuto = "auto"
    restarts: int = Field(default=0, ge=0, le=100, description="how often torchrun may restart a failed rank")
    slurm: Slurm = Slurm()


class Checkpoint(Section):
    every: types.Every = "1epoch"
    keep: int = Field(default=2, ge=1, description="how many of the newest to keep")
    best: str | None = Field(default=None, description="also keep the best by this value, such as val_accuracy")
    async_: bool = Field(default=True, alias="async", description="write while training goes on")


class Gradual(Section):
    """Sparsity rises by the cubic schedule while training goes on (arXiv 1710.01878)."""

    epochs: int = Field(ge=1)
    every: types.Every = Field(default="100steps", description="interval of the mask updates")
    optim: Optim | None = Field(default=None, description="null: the recipe's")


class Prune(Section):
    method: Literal["std", "layer", "global"] = "std"
    sensitivity: types.ByLayer | None = Field(default=None, description="std: keep |w| >= sensitivity x std")
    sparsity: types.ByLayer | None = Field(default=None, description="layer, global: the part to remove")
    layers: types.Patterns = "*.weight"
    gradual: Gradual | None = None

    @model_validator(mode="after")
    def _needs_its_number(self) -> Prune:
        needed, other = ("sensitivity", "sparsity") if self.method == "std" else ("sparsity", "sensitivity")
        if getattr(self, needed) is None or getattr(self, other) is not None:
            raise ValueError(f"method {self.method} needs {needed}, and no {other}")
        if self.method == "global" and not isinstance(self.sparsity, (int, float)):
            raise ValueError("method global needs one sparsity for all layers")
        if self.method == "std" and self.gradual:
            raise ValueError("gradual needs a sparsity to rise to: use method layer or global")
        numbers = getattr(self, needed)
        for number in numbers.values() if isinstance(numbers, dict) else [numbers]:
            if not (0 < number < (1 if needed == "sparsity" else float("inf"))):
                raise ValueError(f"{needed} {number} must be above 0" + (" and below 1" * (needed == "sparsity")))
        return self


class Retrain(Section):
    epochs: int = Field(ge=1)
    optim: Optim | None = Field(default=None, description="null: the recipe's, fresh")


class Share(Section):
    bits: types.ByLayer = 5
    layers: types.Patterns = "*.weight"
    init: Literal["linear"] = "linear"

    @model_validator(mode="after")
    def _bits_are_few(self) -> Share:
        for bits in self.bits.values() if isinstance(self.bits, dict) else [self.bits]:
            if not float(bits).is_integer() or not 1 <= bits <= 8:
                raise ValueError(f"bits: {bits} is no whole number from 1 to 8")
        return self


class Stage(Section):
    """One entry of `after`: a mapping with the stage's name as its only key."""

    prune: Prune | None = None
    retrain: Retrain | None = None
    share: Share | None = None

    @model_validator(mode="after")
    def _one_stage(self) -> Stage:
        if len(self.model_fields_set) != 1 or self.settings is None:
            raise ValueError("each entry of `after` is one stage with its settings, such as - share: {bits: 5}")
        return self

    @property
    def name(self) -> str:
        return next(iter(self.model_fields_set))

    @property
    def settings(self) -> Prune | Retrain | Share:
        return getattr(self, self.name)


class Recipe(Section):
    name: str = Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$", max_length=100)
    seed: int = Field(default=42, ge=0, lt=2**63)
    model: Model
    data: Data
    loss: str = Field(default="cross_entropy", min_length=1)
    metrics: list[str] = ["accuracy"]
    optim: Optim = Optim()
    train: Train = Train(epochs=1)
    memory: Memory = Memory()
    launch: Launch = Launch()
    checkpoint: Checkpoint = Checkpoint()
    log: list[Literal["jsonl", "tensorboard", "wandb", "mlflow", "csv"]] = ["jsonl"]
    after: list[Stage] = []

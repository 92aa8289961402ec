"""Errors a user can meet.

    DistmemError                 exit code 1
    ├── UsageError               exit code 2: the command line is wrong
    │   └── RecipeError          exit code 2: the recipe is wrong; carries file:line:column
    ├── ModelError               a model cannot be found, built or filled with weights
    ├── DataError                a source is missing, damaged or of the wrong shape
    ├── LaunchError              processes cannot be started, or ended without a word
    ├── TrainingError            the loss is not finite, a step cannot be done
    ├── CheckpointError          a checkpoint is damaged, foreign or cannot be written
    ├── CompressError            a stage after training cannot do what was asked
    ├── ReportError              the artefacts of a run cannot be read
    └── Stopped                  exit code 75: stopped on request, resumable

Every message has a cause (with the value) and, where one is known, a remedy.
"""

from __future__ import annotations


class DistmemError(Exception):
    """Base of all errors that are a user's business: printed without a traceback.

    cause: what is wrong, with the value; remedy: what to do next; where: "file:line:column".
    """

    exit_code = 1

    def __init__(self, cause: str, *, remedy: str | None = None, where: str | None = None):
        self.cause, self.remedy, self.where = cause, remedy, where
        super().__init__(str(self))

    def __str__(self) -> str:
        text = f"{self.where}: {self.cause}" if self.where else self.cause
        return f"{text}\n  try: {self.remedy}" if self.remedy else text


class UsageError(DistmemError):
    exit_code = 2


class RecipeError(UsageError):
    """One or more faults in a recipe, all listed at once.

    faults: the single errors when there are several.
    """

    def __init__(
        self,
        cause: str,
        *,
        remedy: str | None = None,
        where: str | None = None,
        faults: list[RecipeError] | None = None,
    ):
        self.faults = faults or []
        super().__init__(cause, remedy=remedy, where=where)

    @classmethod
    def of(cls, faults: list[RecipeError]) -> RecipeError:
        """One error that lists all faults; a single one stays itself."""
        if len(faults) == 1:
            return faults[0]
        listed = "\n".join(str(fault) for fault in faults)
        return cls(f"{listed}\n{len(faults)} faults in the recipe", faults=faults)


class ModelError(DistmemError):
    pass


class DataError(DistmemError):
    pass


class LaunchError(DistmemError):
    pass


class TrainingError(DistmemError):
    pass


class CheckpointError(DistmemError):
    pass


class CompressError(DistmemError):
    pass


class ReportError(DistmemError):
    pass


class Stopped(DistmemError):
    """The run was asked to stop, has saved its state and can be resumed."""

    exit_code = 75

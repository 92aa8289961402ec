"""One text file as a sequence of characters or bytes."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

import numpy as np

from distmem.data.split import Windows, token_dtype
from distmem.errors import DataError

CODE_POINTS = 0x110000


class Text:
    """Windows of context tokens and the tokens that follow them.

    level: char (UTF-8, vocabulary of the whole file, in code point order) or byte (vocabulary of 256); test: the
    fraction at the end of the file.
    """

    def __init__(self, path: str, level: Literal["char", "byte"] = "char", context: int = 128, test: float = 0.1):
        if level not in ("char", "byte"):
            raise DataError(f'level is "{level}"', remedy="char or byte")
        if not 0 <= test < 1:
            raise DataError(f"test is {test}", remedy="a fraction from 0 to below 1")
        self.path, self.context, self.test = Path(path).expanduser(), context, test
        self.level: str = level
        self.characters: str | None = None

    def splits(self) -> dict[str, Any]:
        tokens = self._tokens()
        cut = len(tokens) - round(len(tokens) * self.test)
        parts = {"train": tokens[:cut], "test": tokens[cut:]} if self.test else {"train": tokens}
        return {name: Windows(part, self.context) for name, part in parts.items()}

    def files(self) -> list[Path]:
        if not self.path.is_file():
            raise DataError(f"there is no file {self.path.absolute()}")
        return [self.path]

    def state(self) -> dict[str, Any]:
        return {"level": self.level, "characters": self.characters}

    def restore(self, state: Mapping[str, Any]) -> None:
        self.level, self.characters = state["level"], state["characters"]

    def hints(self) -> dict[str, int]:
        return {"vocab_size": 256 if self.characters is None else len(self.characters), "context": self.context}

    def _tokens(self) -> np.ndarray:
        raw = self.files()[0].read_bytes()
        if not raw:
            raise DataError(f"{self.path} is empty")
        if self.level == "byte":
            return np.frombuffer(raw, np.uint8).copy()
        try:
            codes = np.frombuffer(raw.decode("utf-8").encode("utf-32-le"), np.uint32)
        except UnicodeDecodeError as fault:
            raise DataError(f"{self.path} is not UTF-8: {fault}", remedy="data.args.level=byte") from fault
        known = np.zeros(CODE_POINTS, bool)
        if self.characters is None:
            known[codes] = True
            self.characters = "".join(map(chr, np.flatnonzero(known)))
        known[[ord(character) for character in self.characters]] = True
        if (unknown := np.flatnonzero(~known[codes])).size:
            raise DataError(f"{self.path} has the character {chr(codes[unknown[0]])!r}, which the training text lacks")
        number = np.zeros(CODE_POINTS, token_dtype(len(self.characters)))
        number[known] = np.arange(len(self.characters))
        return number[codes]

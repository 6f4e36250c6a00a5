"""Where a fine-tuning stands after each pass over the images: an interruption costs one pass.

What comes before the first pass is the same each time, and is done again.
"""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch

from bundle.errors import TrainingError


class Stateful(Protocol):
    """A module, an optimiser or a schedule."""

    def state_dict(self) -> Mapping[str, Any]: ...

    def load_state_dict(self, state_dict: Any) -> Any: ...


class Passes:
    """One file with everything that an exact resume needs: weights, optimiser, random numbers."""

    def __init__(self, file: Path, key: str, *, resume: bool) -> None:
        """Read what was kept.

        Args:
            file: where it lies, or will.
            key: names the run, the cohort and the settings that it is of.
            resume: go on from there.

        Raises:
            TrainingError: there is a file and nobody asked to go on, or there is none, or it is of
                another run, cohort or configuration.
        """
        self.file, self.key = file, key
        self._kept: dict[str, Any] | None = None
        if file.is_file() != resume:
            raise TrainingError(
                f"{file}: nothing to resume; leave --resume out"
                if resume
                else f"{file} was left by an interruption: go on with --resume, or remove it"
            )
        if resume:
            self._kept = torch.load(file, map_location="cpu", weights_only=True)
            if self._kept["key"] != key:
                raise TrainingError(
                    f"{file} was begun with another run, cohort or configuration: it cannot resume"
                )

    def restore(self, parts: Mapping[str, Stateful], rng: np.random.Generator) -> int:
        """Bring the parts and all random numbers to where they were; return the passes done."""
        if self._kept is None:
            return 0
        for name, part in parts.items():
            part.load_state_dict(self._kept[name])
        rng.bit_generator.state = json.loads(self._kept["numpy"])
        torch.set_rng_state(self._kept["torch"])
        if torch.cuda.is_available():
            torch.cuda.set_rng_state_all(self._kept["cuda"])
        passes: int = self._kept["passes"]
        # As large as the weights and the optimiser: not held while the rest trains.
        self._kept = None
        return passes

    def save(self, passes: int, parts: Mapping[str, Stateful], rng: np.random.Generator) -> None:
        """Keep the parts and all random numbers as they are after so many passes."""
        self.file.parent.mkdir(parents=True, exist_ok=True)
        partial = self.file.with_suffix(".partial")
        state = {
            "key": self.key,
            "passes": passes,
            "numpy": json.dumps(rng.bit_generator.state),
            "torch": torch.get_rng_state(),
            "cuda": torch.cuda.get_rng_state_all() if torch.cuda.is_available() else [],
        }
        torch.save({**state, **{name: part.state_dict() for name, part in parts.items()}}, partial)
        partial.rename(self.file)

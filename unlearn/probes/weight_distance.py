"""How far training has come from the weights it started from."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path

from safetensors import safe_open
from safetensors.torch import save_file

from unlearn.files import replacing
from unlearn.training.engine import Engine


@dataclass(frozen=True)
class Start:
    """The trained parameters as they were at first, in a file: a resumed run knows them no more."""

    file: Path
    engine: Engine

    def keep(self) -> None:
        """Write them down; a collective."""
        found = {
            name: value.detach().contiguous() for name, value in self.engine.whole(list(self.engine.live()))
        }
        if self.engine.world.main:
            with replacing(self.file) as temporary:
                save_file(found, temporary)
        self.engine.world.barrier()

    def distance(self) -> float:
        """‖θ − θ°‖/‖θ°‖, on the main process; NaN where the start is not known. A collective."""
        moved = length = 0.0
        if self.engine.world.main and self.file.is_file():
            with safe_open(self.file, framework="pt") as file:
                for name, value in self.engine.whole(list(self.engine.live())):
                    before = file.get_tensor(name).double()
                    moved += float((value.detach().double() - before).square().sum())
                    length += float(before.square().sum())
        else:
            for _ in self.engine.whole(list(self.engine.live())):
                pass
        return math.sqrt(moved / length) if length else math.nan

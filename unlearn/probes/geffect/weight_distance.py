"""Distance of the trained weights from the initial ones."""

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
    """The initial values of the trained parameters, saved because a resumed run no longer has them."""

    file: Path
    engine: Engine

    def keep(self) -> None:
        """Save the current values as the initial ones; a collective."""
        values = {}
        for name, value in self.engine.whole(list(self.engine.live())):
            if self.engine.world.main:
                values[name] = value.detach().contiguous()
        if self.engine.world.main:
            with replacing(self.file) as temporary:
                save_file(values, temporary)
        self.engine.world.barrier()

    def distance(self) -> float:
        """Return ‖θ − θ°‖/‖θ°‖ on the main process, NaN elsewhere and without the file. A collective."""
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

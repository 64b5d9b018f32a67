"""The portions of passes that fit in memory, where those of `hardware` do not."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Literal, TypeAlias

Key: TypeAlias = Literal["micro_tokens", "micro_batch", "eval_tokens", "gradient_tokens", "generate_rows"]


@dataclass
class MemoryLimits:
    """The portions that fit in memory where the configured ones do not, by key of `hardware`.

    They are the same on every process. `restarts` counts how often the run began again for it. `save` keeps
    both for the next start of the run.
    """

    fitting: dict[str, int] = field(default_factory=dict)
    restarts: int = 0
    save: Callable[[dict[str, int], int], None] = lambda *_: None

    def portion(self, key: Key, configured: int) -> int:
        return min(configured, self.fitting.get(key, configured))

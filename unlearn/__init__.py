"""From data to the unlearned model: configuration, data, models, forward, objectives, trainer."""

import os
import sys

# Threads that wait shall sleep; OpenMP reads this when torch is imported. By default they spin: a little
# faster alone, ten times slower where another program keeps a core busy.
os.environ.setdefault("OMP_WAIT_POLICY", "passive")
# Hide torchao, which transformers and PEFT import where it is installed: that takes seconds, and its compiled
# parts complain on standard error. `unlearn.environment.unhide` lets it be imported.
sys.modules.setdefault("torchao", None)  # type: ignore[arg-type]

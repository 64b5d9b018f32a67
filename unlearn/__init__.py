"""From data to the unlearned model: configuration, data, models, forward, objectives, trainer."""

import sys

# Hide torchao, which transformers and PEFT import where it is installed: that takes seconds, and its compiled
# parts complain on standard error. `unlearn.environment.unhide` lets it be imported.
sys.modules.setdefault("torchao", None)  # type: ignore[arg-type]

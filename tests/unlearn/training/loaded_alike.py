"""One training step of a model that was read slice by slice, and of one that was loaded whole.

`run(FILE)` runs the cases in FILE (JSON) as one process of a world, and the first writes the weights next to
it.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor

from unlearn.config import HardwareConfig, LoraConfig, ModelConfig
from unlearn.distributed import start_world, stop_world
from unlearn.models import adapt, export, load, stored
from unlearn.models.nano import tokenizer
from unlearn.training.engine import Engine, precision


def stepped(folder: str, hardware: Mapping[str, Any], *, sliced: bool, lora: bool) -> dict[str, Tensor]:
    """Weights as the engine has them at first, masters and moments after a step, and the model saved."""
    settings, world = HardwareConfig(**hardware), start_world("cpu")
    config = ModelConfig(name="local", path=folder)
    read = (
        stored.defer(load.read_model(config, precision(settings.dtype)))
        if sliced
        else load.load_model(config)
    )
    model: Any = adapt.add_lora(read, LoraConfig(r=2, targets="all-linear"), 5) if lora else read  # type: ignore[arg-type]
    engine = Engine(model, world, settings, clip=1.0, weight_decay=0.1, betas=(0.9, 0.99))
    kept = {f"begin/{name}": tensor.clone() for name, tensor in engine.weights()}
    if world.main:
        kept |= {f"buffer/{name}": buffer.clone() for name, buffer in engine.module.named_buffers()}
    ids = torch.arange(10)[None] + 10 * world.rank
    engine.backward(engine.model(input_ids=ids, use_cache=False).logits.log_softmax(-1)[0, :, 3].sum())
    engine.step(1e-3)
    for name, tensors in engine.state():
        kept |= {f"{key}/{name}": tensor for key, tensor in tensors.items()}
    out = Path(folder).with_name(f"saved-{sliced}-{world.size}")
    weights = engine.weights()
    if world.main:
        export.save_streamed(engine.module, weights, tokenizer(300), out)
        whole = load.load_model(ModelConfig(name="local", path=str(out)))
        kept |= {f"saved/{name}": tensor.clone() for name, tensor in whole.state_dict().items()}
    for _ in weights:
        pass
    engine.close()
    return kept


def run(file: Path) -> None:
    for name, case in json.loads(file.read_text()).items():
        kept = stepped(case["folder"], case["hardware"], sliced=case["sliced"], lora=case["lora"])
        if kept:
            save_file({k: t.contiguous() for k, t in kept.items()}, file.parent / f"{name}.safetensors")
    stop_world()

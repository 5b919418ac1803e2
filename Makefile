# Every target makes .venv where it is missing. `make help` lists them.
SHELL := /bin/bash
.DEFAULT_GOAL := help
# Where it is set, every start of Python compiles torch anew, which takes seconds.
unexport PYTHONDONTWRITEBYTECODE
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready
OLDEST := .venv-oldest

DEMO := artifacts/demo
VA := artifacts/va
VA_LABELS := $(VA)/data/annotations/VA_Estimation_Challenge
ifdef MEDIA
  # The paper's backbone for your own media; it comes from the Hugging Face hub, or name a local folder.
  BACKBONE ?= audeering/wav2vec2-large-robust-12-ft-emotion-msp-dim
else
  BACKBONE ?= silero
  MEDIA := $(DEMO)/raw
  DEMO_READY := $(DEMO)/demo.json
  HEAD_OPTIONS ?= --config configs/demo.toml
  FINETUNE_OPTIONS ?= --config configs/demo-finetune.toml
  SPACE ?= configs/demo-space.toml
  TRIALS ?= 24
endif
CACHE ?= artifacts/features.zarr
FACES ?= artifacts/faces.zarr
STREAMS_RUN ?= artifacts/streams
TRAIN ?= $(DEMO)/train_split.csv
VALID ?= $(DEMO)/valid_split.csv
RUN ?= artifacts/run
SWEEP_RUN ?= $(if $(filter file,$(origin RUN)),artifacts/sweep,$(RUN))
HEAD_OPTIONS ?=
SPACE ?= configs/space.toml
TRIALS ?= 64
SWEEP_OPTIONS ?=
FINETUNE_RUN ?= $(if $(filter file,$(origin RUN)),artifacts/finetune,$(RUN))
FINETUNE_OPTIONS ?=
BENCH ?=
# Which script of benchmarks/; docs/performance.md lists them.
BENCH_SCRIPT ?= extract

.PHONY: help setup demo va features train-head sweep finetune test test-slow test-kernels test-gpu lint bench bench-gpu
.PHONY: docs clean test-oldest

help: ## list the targets
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 14
	@echo; echo "features, train-head, sweep and finetune take MEDIA= CACHE= TRAIN= VALID= BACKBONE= RUN= HEAD_OPTIONS= SPACE="
	@echo "TRIALS= SWEEP_OPTIONS= FINETUNE_OPTIONS= and fall back to demo data."

setup: $(READY) ## make .venv with everything pinned in constraints.txt

# uv installs the pinned set in a fraction of pip's time; where it is not to be had, pip does the same.
$(READY): pyproject.toml constraints.txt
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "emi needs Python 3.11 or 3.12: make setup PYTHON=python3.11")'
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	if $(BIN)/python -m pip install --quiet uv -c constraints.txt; then \
	  $(BIN)/python -m uv pip install --quiet --python $(BIN)/python -c constraints.txt -e '.[dev,demo]'; \
	else \
	  $(BIN)/python -m pip install --quiet -c constraints.txt -e '.[dev,demo]'; \
	fi
	touch $@

$(DEMO)/demo.json: | $(READY)
	$(BIN)/emi demo-data $(DEMO)

demo: features ## draw and speak demo clips, extract voice and face, train on each and on both, print what each is worth
	$(BIN)/emi extract $(MEDIA) --cache $(FACES) --backbone mtcnn
	$(BIN)/emi ablate --streams --cache audio=$(CACHE) --cache face=$(FACES) --train $(TRAIN) --valid $(VALID) --out $(STREAMS_RUN) $(HEAD_OPTIONS)
	$(BIN)/emi evaluate $(STREAMS_RUN)/audio+face/predictions_valid.csv $(VALID)

va: $(READY) ## the same for valence and arousal per frame of demo videos: face and voice, six folds, a picture of the predictions
	$(BIN)/emi demo-data $(VA)/data --kind va
	$(BIN)/emi extract $(VA)/data/cropped_aligned --backbone mtcnn --cache $(VA)/visual.zarr --videos $(VA)/data/videos --max-seconds none
	$(BIN)/emi extract $(VA)/data/videos --backbone mfcc --cache $(VA)/audio.zarr --fps native --max-seconds none
	$(BIN)/emi train-head --cache visual=$(VA)/visual.zarr --cache audio=$(VA)/audio.zarr --ids aff-wild2 --config configs/demo-va.toml \
	  --train $(VA_LABELS)/Train_Set --valid $(VA_LABELS)/Validation_Set --folds official6 --out $(VA)/run
	@echo "labels and predictions over time: $(VA)/run/traces_folds.png"

features: $(READY) $(DEMO_READY) ## stage 1: MEDIA -> CACHE
	$(BIN)/emi extract $(MEDIA) --cache $(CACHE) --backbone $(BACKBONE)

train-head: features ## stage 2: CACHE, TRAIN, VALID -> RUN
	$(BIN)/emi train-head --cache $(CACHE) --train $(TRAIN) --valid $(VALID) --out $(RUN) $(HEAD_OPTIONS)

sweep: features ## many heads on CACHE, the best few again: SPACE, TRIALS, RUN
	$(BIN)/emi sweep --cache $(CACHE) --train $(TRAIN) --valid $(VALID) --space $(SPACE) --trials $(TRIALS) --out $(SWEEP_RUN) $(SWEEP_OPTIONS)

finetune: $(READY) $(DEMO_READY) ## end to end: MEDIA, TRAIN, VALID, BACKBONE -> RUN, which is a backbone again
	$(BIN)/emi finetune --media $(MEDIA) --train $(TRAIN) --valid $(VALID) --backbone $(BACKBONE) --out $(FINETUNE_RUN) $(FINETUNE_OPTIONS)

test: $(READY) ## the test suite
	$(BIN)/python -m pytest -n 2 --dist loadfile --no-loadscope-reorder

# In an environment of its own (6 GB): the same suite with the lower bounds of pyproject.toml.
$(OLDEST)/.ready: $(READY) pyproject.toml constraints-oldest.txt
	test -x $(OLDEST)/bin/python || $(PYTHON) -m venv $(OLDEST)
	if $(BIN)/python -m uv --version > /dev/null 2>&1; then \
	  $(BIN)/python -m uv pip install --quiet --python $(OLDEST)/bin/python -c constraints-oldest.txt -e '.[dev,demo]'; \
	else \
	  $(OLDEST)/bin/python -m pip install --quiet -c constraints-oldest.txt -e '.[dev,demo]'; \
	fi
	touch $@

test-oldest: $(OLDEST)/.ready ## the test suite with the oldest versions that are supported: torch 2.9.1, transformers 5.17, …
	$(OLDEST)/bin/python -m pytest -n 2 --dist loadfile --no-loadscope-reorder

test-slow: $(READY) ## the long soaks
	$(BIN)/python -m pytest -m slow --timeout 3600 -o faulthandler_timeout=0

# What computes: run again with the kernels that older processors get, since each rounds in its own way.
NUMERIC := tests/train_head tests/emi/finetuning tests/cache/derive tests/emi/test_prediction.py \
  tests/emi/test_derived_prediction.py tests/extract/backbones/cpu_training tests/extract/test_run.py \
  $(addprefix tests/extract/backbones/test_,silero.py speech_transformers.py checkpoints.py front_end.py packed_weights.py)
NUMERIC_TEST := $(BIN)/python -m pytest -n 2 --dist loadfile $(NUMERIC) --ignore tests/train_head/sweep

test-kernels: $(READY) ## the numeric tests with the kernels of processors that have SSE4 or AVX2 only
	ATEN_CPU_CAPABILITY=default ONEDNN_MAX_CPU_ISA=SSE41 MKL_ENABLE_INSTRUCTIONS=SSE4_2 OPENBLAS_CORETYPE=NEHALEM $(NUMERIC_TEST)
	ATEN_CPU_CAPABILITY=avx2 ONEDNN_MAX_CPU_ISA=AVX2 MKL_ENABLE_INSTRUCTIONS=AVX2 OPENBLAS_CORETYPE=HASWELL $(NUMERIC_TEST)

test-gpu: $(READY) ## the tests that need a CUDA device; without one they are skipped
	$(BIN)/python -m pytest -m gpu

lint: $(READY) ## ruff and mypy
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy

bench: $(READY) ## measure beside peers; BENCH_SCRIPT=extract, cache, scale, train_head, sweep, finetune, unfrozen, precision or faces; BENCH="--quick", "--json FILE", …
	$(BIN)/python -m pip install --quiet -c constraints.txt -e '.[bench]'
	$(BIN)/python benchmarks/$(BENCH_SCRIPT).py $(BENCH)

bench-gpu: $(READY) ## everything that only a GPU can show, in eight minutes: docs/gpu.md; BENCH="--json FILE", "--only parity", …
	$(BIN)/python benchmarks/on_gpu.py $(BENCH)

docs: $(READY) ## rewrite the tables of settings in docs/, run every snippet of README.md and docs/
	$(BIN)/python tests/docs/test_tables.py
	$(BIN)/python -m pytest tests/docs

clean: ## remove what make made (not .venv and .venv-oldest)
	rm -rf artifacts dist build *.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis

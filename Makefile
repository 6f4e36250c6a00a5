# README.md says what these do. On a fresh machine each makes what it needs first.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
# Read by pip in every environment made here.
PIP_INSTALL := $(BIN)/python -m pip install --disable-pip-version-check -q -c constraints.txt

# The demo that `make serve` serves where SLIMP_BUNDLE and SLIMP_CATALOGUE name nothing else.
DEMO := data/demo
DEMO_READY := $(DEMO)/catalogue/vectors.json

# `make bench IMAGES=FOLDER` asks the experiment of docs/real-data.md.
BENCH := data/bench
PEERS := $(BENCH)/peers/bin/python
PEERS_READY := $(BENCH)/peers/ready.stamp
EXPERIMENT := data/ham10000
SOURCE := facebook/dinov2-small

# Two processes, a file's tests in one of them, so that module fixtures are made once.
PYTEST := $(BIN)/python -m pytest -n 2 --dist loadfile
ifdef SLIMP_REAL_DATA
export SLIMP_REAL_DATA := $(abspath $(SLIMP_REAL_DATA))
SELECTION :=
else
SELECTION := -m 'not real_data'
endif

.DEFAULT_GOAL := help
.PHONY: help serve demo test check lint bench torture e2e smoke constraints clean

help:
	@echo "make serve        environment, demo bundle if none is given, service on port $${SLIMP_PORT:-8000}"
	@echo "make test         environment, all tests (SLIMP_REAL_DATA=FOLDER adds those on real images)"
	@echo "make check        lint, format, types, tests"
	@echo "make demo         the synthetic pipeline from cohort to catalogue, in $(DEMO)"
	@echo "make bench        serving and retrieval beside others (docs/benchmarks.md; IMAGES=FOLDER; hours)"
	@echo "make torture      hostile images, long fuzzing, kills under writes, a soak (an hour or two)"
	@echo "make e2e          the end-to-end tests alone"
	@echo "make smoke        docker compose: build, up, ask, restart, ask again, down"
	@echo "make constraints  resolve constraints.txt anew"
	@echo "make clean        remove the environment and the demo"

# A stamp a set of extras: the second run finds it and installs nothing.
$(BIN)/python:
	$(PYTHON) -m venv $(VENV)

$(VENV)/serve.stamp: pyproject.toml constraints.txt | $(BIN)/python
	$(PIP_INSTALL) -e '.[cpu,train]'
	@touch $@

$(VENV)/test.stamp: pyproject.toml constraints.txt | $(BIN)/python
	$(PIP_INSTALL) -e '.[cpu,train,test]'
	@touch $@ $(VENV)/serve.stamp

# One of the three is there: `slimp serve` reads them itself.
ifeq ($(SLIMP_BUNDLE)$(SLIMP_CATALOGUE),)
SERVED := $(DEMO)/bundle $(DEMO)/catalogue
serve: $(VENV)/serve.stamp $(DEMO_READY)
else
serve: $(VENV)/serve.stamp
endif
	exec $(BIN)/slimp serve $(SERVED)

demo: $(DEMO_READY)

# Made beside its place and renamed, so that a demo that was interrupted is never taken for whole.
$(DEMO_READY): | $(VENV)/serve.stamp
	rm -rf $(DEMO) $(DEMO).part
	$(BIN)/slimp demo --out $(DEMO).part
	mv $(DEMO).part $(DEMO)

test: $(VENV)/test.stamp
ifndef SLIMP_REAL_DATA
	@echo "SLIMP_REAL_DATA is not set: the tests on real images are left out (-m 'not real_data')"
endif
	$(PYTEST) $(SELECTION)

lint: $(VENV)/test.stamp
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy bundle cohort index training export service slimp tests benchmarks

check: lint
	$(MAKE) test

e2e: $(VENV)/test.stamp
	$(PYTEST) $(SELECTION) tests/e2e

# What a user would run instead, beside ours in one environment.
$(PEERS_READY): $(VENV)/test.stamp
	rm -rf $(BENCH)/peers
	$(PYTHON) -m venv $(BENCH)/peers
	$(PEERS) -m pip install -q -c constraints.txt torch==2.13.0 -e '.[cpu,train]'
	$(PEERS) -m pip install -q litserve bentoml hnswlib usearch milvus-lite pymilvus
	@touch $@

# Made beside their places and renamed, so that `make bench` goes on after an interruption.
$(BENCH)/catalogue-fp32: | $(VENV)/test.stamp
	rm -rf $@.part
	$(BIN)/slimp index $(EXPERIMENT)/bundle $(EXPERIMENT)/cohort --variant fp32 --out $@.part
	mv $@.part $@

$(BENCH)/large: | $(VENV)/test.stamp
	rm -rf $@.part
	$(BIN)/python -m benchmarks.cold_start make $(EXPERIMENT)/bundle $@.part
	mv $@.part $@

$(BENCH)/embeddings.npy: | $(VENV)/test.stamp
	$(BIN)/python -m benchmarks.retrieval_vectors $@ --cohort $(EXPERIMENT)/cohort --source $(SOURCE)

# docs/real-data.md makes the experiment; SOURCE is the pretrained encoder's folder or hub id. Each
# step says what it measured in a file of the same name.
ifdef IMAGES
bench: $(PEERS_READY) $(BENCH)/catalogue-fp32 $(BENCH)/large $(BENCH)/embeddings.npy
	$(BIN)/python -m benchmarks.serving $(EXPERIMENT)/bundle $(EXPERIMENT)/catalogue $(IMAGES) \
	    --run $(EXPERIMENT)/fit --peers $(PEERS) --seconds 4 --out $(BENCH)
	$(BIN)/python -m benchmarks.serving $(EXPERIMENT)/bundle $(BENCH)/catalogue-fp32 $(IMAGES) \
	    --variant fp32 --run $(EXPERIMENT)/fit --peers $(PEERS) --seconds 4 --out $(BENCH)
	$(BIN)/python -m benchmarks.decoding $(IMAGES) --bundle $(EXPERIMENT)/bundle \
	    --pictures 8 > $(BENCH)/decoding.txt
	$(BIN)/python -m benchmarks.matrix_peak $(EXPERIMENT)/bundle > $(BENCH)/matrix_peak.txt
	$(BIN)/python -m benchmarks.bulk $(EXPERIMENT)/bundle $(EXPERIMENT)/cohort \
	    --out $(BENCH)/bulk > $(BENCH)/bulk.txt
	$(BIN)/python -m benchmarks.training_rate $(EXPERIMENT)/cohort --out $(BENCH)/training \
	    > $(BENCH)/training_rate.txt
	$(PEERS) -m benchmarks.retrieval speed $(BENCH) --queries $(BENCH)/embeddings.npy
	$(PEERS) -m benchmarks.retrieval growth $(BENCH) --queries $(BENCH)/embeddings.npy \
	    --sizes 10000 100000 400000 1000000
	$(PEERS) -m benchmarks.retrieval compressed $(BENCH) --queries $(BENCH)/embeddings.npy
	$(BIN)/python -m benchmarks.cold_start time $(EXPERIMENT)/bundle $(BENCH)/large \
	    --picture "$$(find $(IMAGES) -iname '*.jpg' | sort | head -n 1)" > $(BENCH)/cold_start.txt
	$(BIN)/python -m benchmarks.plots $(BENCH)
	cat $(BENCH)/*.txt $(BENCH)/*.md
else
bench:
	@echo "make bench needs IMAGES=FOLDER, the unpacked HAM10000 (docs/benchmarks.md)"; exit 2
endif

torture: $(VENV)/test.stamp
	OMP_NUM_THREADS=1 MALLOC_MMAP_THRESHOLD_=1048576 $(BIN)/python -m benchmarks.hostile_images
	FUZZ_EXAMPLES=300 $(BIN)/python -m pytest $(wildcard tests/*/test_fuzz*.py) \
	    tests/index/test_vectors_untrusted.py
	$(BIN)/python -m benchmarks.kill_writes
	$(MAKE) $(DEMO_READY)
	$(BIN)/python -m benchmarks.soak $(DEMO)/bundle $(DEMO)/catalogue

smoke: $(VENV)/test.stamp
	$(BIN)/python tests/smoke/compose_smoke.py

constraints:
	rm -rf build/constraints
	$(PYTHON) -m venv build/constraints
	build/constraints/bin/python -m pip install -q '.[cpu,train,test]'
	{ grep '^#' constraints.txt; build/constraints/bin/python -m pip freeze --all \
	    | grep -v -e '^pip==' -e '^slimp' | sed 's/+.*//' | sort -f; } > build/constraints.txt
	mv build/constraints.txt constraints.txt

clean:
	rm -rf $(VENV) data/demo build

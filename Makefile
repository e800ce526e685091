# Thin on purpose: each target is the command that one would type. `make` alone lists them.
# sample, text, or one or several of PUBLISHED, which go into one corpus.
SOURCE  ?= sample
PUBLISHED := pile medline pmc
# A file, folder, glob or URL, blanks in it or not. The sample needs none; what is published is read from data/NAME/files,
# where data_prep/acquire.py is told to put it. CORPUS adds any other switch of data_prep/corpus.py, as --input MORE FILES.
INPUT   ?=
CORPUS  ?=
# What is published goes where yamls/biomedlm-*.yaml read.
DATA    ?= $(if $(filter-out $(PUBLISHED),$(SOURCE)),data/$(SOURCE),data/pubmed)
SEQ_LEN ?= 1024
# A folder for each kind of shards: shards, shards-256, shards-no-eos.
SHARDS  ?= $(DATA)/shards$(if $(filter-out 1024,$(SEQ_LEN)),-$(SEQ_LEN))$(if $(filter 0,$(EOS)),-no-eos)
# Entries of the tokenizer that is trained on the corpus; empty: BioMedLM's 28,896, fewer of less text.
VOCAB   ?=
# A tokenizer folder, or a model's, whose training is continued; empty: one is trained on the corpus.
TOKENIZER ?=
# EOS=0 leaves <|endoftext|> out between documents, as in 2022.
EOS     ?= 1
# CLUSTER=ray runs the tasks on the Ray cluster at RAY_ADDRESS; REMOTE=s3://… copies the shards there.
CLUSTER ?= local
REMOTE  ?=
# PRICE is of a GPU-hour; PLAN adds any other switch of recipes/plan.py, and key=value.
YAML    ?= yamls/biomedlm-2.7b.yaml
GPU     ?= a100-40gb
GPUS    ?=
PRICE   ?=
PLAN    ?=
# RUNGS are the YAMLs of make ladder; LADDER adds any other switch of recipes/ladder.py, and key=value.
RUNGS   ?= yamls/ladder/*.yaml
LADDER  ?=
# On the ranks of this machine; FAKE_WORLD=128 builds the parts of so many ranks here and runs nothing.
FAKE_WORLD ?=
PREFLIGHT  ?=
# Files, folders or tests of make test and make canary; empty: all, and those that a new release breaks first.
TESTS   ?=
# make lock keeps the releases that the locks have, but for LOCK=--upgrade.
LOCK    ?=
# make quick compares with this branch or commit; empty: main.
BASE    ?=
# The first Python of the project's range that runs; or say PYTHON=/path/to/python3.11.
PYTHON  ?= $(shell for p in python3.11 python3.12 python3.13 python3.10 python3; do $$p -c 'import sys; sys.exit(not (3, 10) <= sys.version_info < (3, 14))' 2>/dev/null && echo $$p && break; done)
# lock: requirements.txt in .venv. next: requirements-next.txt, the newest that works, in .venv-next.
STACK   ?= lock
VENV    := $(or $(if $(filter lock,$(STACK)),.venv),$(if $(filter next,$(STACK)),.venv-next),$(error STACK=$(STACK) is not one of lock, next))
BIN     := $(VENV)/bin
UV      ?= $(or $(shell command -v uv),$(@D)/bin/uv)
compile  = .venv/bin/uv pip compile --quiet --universal --python-version 3.10 --no-header --no-emit-index-url
quoted   = '$(subst ','\'',$(1))'
one_read = --source $(1) $(if $(filter $(1),$(PUBLISHED)),--input data/$(1)/files)
read     = $(if $(INPUT),--source $(SOURCE) --input $(call quoted,$(INPUT)),$(foreach name,$(SOURCE),$(call one_read,$(name))))
define ONE_INPUT
SOURCE='$(SOURCE)'$(if $(INPUT), INPUT='$(INPUT)'): say one source with its INPUT, and the others in CORPUS, as in
  make shards SOURCE=medline INPUT=baseline CORPUS='--source pmc --input articles'
  make shards SOURCE=text INPUT=notes CORPUS='--source medline --input data/medline/files' DATA=data/mine
Several without INPUT are of $(PUBLISHED), and are read from data/NAME/files
endef
# Images for containers often forbid Python to keep what it compiles: then each start compiles torch and Composer again,
# 22 s in place of 9, and the tests start hundreds.
export PYTHONDONTWRITEBYTECODE :=

.DEFAULT_GOAL := help
.PHONY: help plan ladder preflight shards bench smoke test quick chaos nocuda check lock canary clean

help: ## this list
	@grep -hE '^[a-z]+:.*##' $(MAKEFILE_LIST) | awk -F ':.*## ' '{printf "  make %-9s %s\n", $$1, $$2}'

# With uv, which takes a third of pip's time, and with pip where uv cannot: behind a mirror that only pip is told of.
# Composer 0.32.1 says Python < 3.13, and works with 3.13; pip would refuse it, uv does not.
install = $(UV) pip install --python $(@D)/bin/python $(1) || \
	$(@D)/bin/pip install --disable-pip-version-check --progress-bar on --ignore-requires-python $(1)
define environment
	@test -n "$(PYTHON)" || { echo "error: no Python 3.10 to 3.13 found; install one, or say make PYTHON=/path/to/python3.11" >&2; exit 2; }
	$(PYTHON) -m venv $(@D)
	@echo "installing into $(@D): some 3 GB of downloads, most of it CUDA libraries for torch; 2 minutes on a fast line"
	@command -v $(UV) >/dev/null || $(@D)/bin/pip install --quiet --disable-pip-version-check "$$(grep -o '^uv==[0-9.]*' $<)"
endef

# What all commands need but for --cluster ray and generate.py --web.
.venv/installed: requirements.txt pyproject.toml
	$(environment)
	$(call install,--constraint $< --editable '.[run]')
	@touch $@

# And what the tests, the checks, Ray and the page of generate.py need.
.venv/development: .venv/installed
	@echo "installing what development needs: some 300 MB more"
	$(call install,--requirement requirements.txt)
	@touch $@

# All of it, without asking Composer, whose bounds exclude what stands there.
.venv-next/installed: requirements-next.txt pyproject.toml
	$(environment)
	$(call install,--no-deps --requirement $< --editable .)
	@touch $@

.venv-next/development: .venv-next/installed
	@touch $@

plan: $(VENV)/installed ## will it fit, how long, what does it cost (YAML=yamls/biomedlm-2.7b.yaml GPUS=128 GPU=a100-40gb PRICE=2 PLAN='--mfu 0.4 max_duration=50e9tok')
	@$(BIN)/python recipes/plan.py $(YAML) --gpu $(GPU) $(if $(GPUS),--gpus $(GPUS)) $(if $(PRICE),--price $(PRICE)) $(PLAN)

ladder: $(VENV)/installed ## small runs -> loss against compute -> what a large one will reach (RUNGS='yamls/ladder/[0-9]*m.yaml' LADDER='--dry-run --gpu h100 world_size=1')
	@$(BIN)/python recipes/ladder.py $(RUNGS) $(LADDER)

preflight: $(VENV)/installed ## data, ranks, network, memory, a few real steps and a resumption, before a run (YAML=… FAKE_WORLD=128)
	@$(BIN)/$(if $(FAKE_WORLD),python,composer) recipes/preflight.py $(YAML) $(if $(FAKE_WORLD),--fake-world $(FAKE_WORLD)) $(PREFLIGHT)

shards: $(VENV)/installed ## text -> corpus -> tokenizer -> token shards (SOURCE='medline pmc' INPUT=… SEQ_LEN=1024 EOS=1 VOCAB=… DATA=data/pubmed CLUSTER=ray REMOTE=s3://…)
	$(if $(word 2,$(SOURCE)),$(if $(INPUT)$(filter-out $(PUBLISHED),$(SOURCE)),$(error $(ONE_INPUT))))
	$(BIN)/python data_prep/corpus.py $(read) --out $(call quoted,$(DATA)/corpus) --cluster $(CLUSTER) $(CORPUS)
	$(if $(TOKENIZER),,$(BIN)/python data_prep/tokenizer.py --corpus $(call quoted,$(DATA)/corpus) --out $(call quoted,$(DATA)/tokenizer) $(if $(VOCAB),--vocab-size $(call quoted,$(VOCAB))))
	$(BIN)/python data_prep/shards.py --corpus $(call quoted,$(DATA)/corpus) --tokenizer $(call quoted,$(or $(TOKENIZER),$(DATA)/tokenizer)) --out $(call quoted,$(SHARDS)) --seq-len $(SEQ_LEN) $(if $(filter 0,$(EOS)),--no-eos) --cluster $(CLUSTER) $(if $(REMOTE),--remote $(call quoted,$(REMOTE)))

smoke: $(VENV)/installed ## the whole path on two CPU cores: real PubMed text to a trained, exported, talking model (STACK=next)
	@$(MAKE) --no-print-directory shards SOURCE=sample DATA=data/sample SEQ_LEN=256 EOS=1 SHARDS=data/sample/shards-256
	$(BIN)/python recipes/train.py yamls/smoke-cpu.yaml
	$(BIN)/python recipes/export.py --checkpoint runs/smoke --out runs/smoke/model
	$(BIN)/python recipes/generate.py --model runs/smoke/model --out runs/smoke/samples.json
	$(BIN)/python recipes/report.py runs/smoke
	@echo "next: on a GPU, make shards && $(BIN)/composer recipes/train.py yamls/smoke-gpu.yaml"

bench: $(VENV)/development ## tables of what everything takes here, quick forms; docs/performance.md says how to read them
	$(BIN)/python benchmarks/train_step.py --preset smoke --rounds 2 --batches 16
	$(BIN)/python benchmarks/train_step.py --preset smoke --rounds 1 --batches 12 --engines trainer --variants faithful all compile
	$(BIN)/python benchmarks/train_step.py --preset smoke --rounds 1 --batches 12 --engines trainer --variants yaml ddp --ranks 1 2 4
	$(BIN)/python benchmarks/loading.py --made-shards 200 --limit 20000 --repeats 3
	$(BIN)/python benchmarks/startup.py --rounds 1
	$(BIN)/python benchmarks/checkpoint.py model.n_embd=768 model.n_layer=12 model.n_head=6 --ranks 1 2
	$(BIN)/python recipes/plan.py $(YAML) --gpu h100 --mfu 0.408 --scaling 8 16 32 64 128 256 512 1024
	$(BIN)/python benchmarks/data_stages.py --rounds 1 --repeat 1

# Without it (no npm registry, another processor) the tests of pages are skipped, and say so; in CI they fail.
$(VENV)/chromium: $(VENV)/development tests/helpers/browser.py
	-$(BIN)/python tests/helpers/browser.py $@

# Three at once on two cores: a third of the time the tests wait for processes of their own.
test: $(VENV)/development $(VENV)/chromium ## the tests (TESTS=tests/test_docs.py STACK=next)
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 3 --dist worksteal $(TESTS)

quick: $(VENV)/development ## the tests of what changed against main, within a minute (BASE=HEAD~1)
	@OMP_NUM_THREADS=1 $(BIN)/python tests/helpers/quick.py $(if $(BASE),--base $(call quoted,$(BASE)))

chaos: $(VENV)/development ## all injections, and what else is long: kills, signals, damage, full disk, hangs
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 3 --dist worksteal -m "chaos or not chaos" --fault-report runs/chaos.html

nocuda: $(VENV)/development ## the CUDA path on a CUDA that computes nothing (no GPU needed; gcc, Linux on x86-64); long
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 --dist worksteal -m "nocuda or not nocuda" tests/nocuda

check: $(VENV)/development ## format, lint and types
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/pyright

lock: .venv/development ## requirements.in -> requirements.txt, requirements-next.txt (LOCK=--upgrade)
	$(compile) $(LOCK) --output-file requirements.txt requirements.in
	$(compile) $(LOCK) --override overrides-next.txt --output-file requirements-next.txt requirements.in

canary: .venv/development ## the newest release of every package, installed aside: which of them breaks what (TESTS=…)
	@$(BIN)/python tests/helpers/canary.py $(TESTS)

clean: ## remove what make smoke made (data/sample, runs/smoke); the environment stays
	rm -rf data/sample runs/smoke

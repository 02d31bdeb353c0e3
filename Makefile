BIN := .venv/bin
UV_COMPILE = $(BIN)/uv pip compile pyproject.toml --universal --python-version 3.12 \
	--generate-hashes --strip-extras --no-emit-index-url --no-emit-find-links \
	--no-emit-package copysieve --custom-compile-command "make lock" --quiet
KAFKA := 4.3.1

.PHONY: help setup demo test chaos fuzz check bench lock schemas control images viewers kafka-jars clean

help: ## Show this
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  make %-11s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

setup: .venv/.complete ## Install everything into .venv (about 7 GB, the first time)

demo: setup ## Screen uploads end to end on this machine; IMAGES=folder takes your own
	@$(BIN)/copysieve demo $(if $(IMAGES),--images "$(IMAGES)")

test: setup ## Run all tests, against a real Kafka and a real Redis or Valkey
	$(BIN)/python -m pytest -n 2 --dist worksteal

chaos: setup ## Break everything around real workers for 20 minutes; CHAOS="--seed 2" and the like
	@$(BIN)/python -m tests.chaos $(CHAOS)

fuzz: setup ## Mutated events and pictures through a running worker; FUZZ="--seed 2" and the like
	@$(BIN)/python -m tests.fuzz $(FUZZ)

check: setup ## Lint, format, types, direction of imports, schemas
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/mypy
	$(BIN)/lint-imports
	$(BIN)/python .ci/schemas.py --check

bench: setup ## Measure throughput and latency on this machine
	@$(BIN)/copysieve bench pipeline

lock: setup ## Pin the newest fitting versions in requirements/
	$(UV_COMPILE) --upgrade --extra dev --output-file requirements/dev.txt
	$(UV_COMPILE) --extra onnx --constraint requirements/dev.txt \
		--no-annotate --output-file requirements/runtime.txt

schemas: setup ## Write config/schemas/ from the wire models
	$(BIN)/python .ci/schemas.py

control: setup ## Add PDQ, which the peers hash with, to the tests; needs a C++ compiler
	$(BIN)/uv pip install --quiet --python $(BIN)/python --editable '.[control]'

images: control ## Write the conformance table in docs/images.md, with what PDQ makes of it
	$(BIN)/python -m tests.fixtures.conformance_table

viewers: setup ## Compare the worker with Chromium on disguised files; writes docs/viewers.md
	@$(BIN)/python -m tests.viewers corpus

kafka-jars: setup ## Pin the jars of the embedded Kafka; KAFKA=version takes another
	$(BIN)/python .ci/kafka_jars.py $(KAFKA) > .kafka_jars.tmp
	mv .kafka_jars.tmp worker/embedded/kafka_jars.txt

clean: ## Remove caches and build outputs, but not .venv
	rm -rf build dist *.egg-info .*_cache .hypothesis
	find worker tests -name __pycache__ -type d -prune -exec rm -rf {} +

.venv/.complete: requirements/dev.txt pyproject.toml
	@test -e $@ && echo "Bringing .venv up to date." || \
		echo "Installing into .venv: about 7 GB, most of it PyTorch with CUDA."
	@test -x $(BIN)/python || { python=$$(.ci/python) && "$$python" -m venv --clear .venv; }
	@$(BIN)/python -m pip install --quiet --require-hashes -r requirements/dev.txt
	@$(BIN)/python -m pip install --quiet --no-deps --no-build-isolation --editable .
	@touch $@

# Every target sets up what it needs in .venv and does no work twice.
PYTHON ?= python3
BIN := .venv/bin
THIRD_PARTY := .venv-third-party
OTHERS := .venv-oldest .venv-newest .venv-types

.PHONY: demo test test-slow test-oldest test-newest check types docs bench bench-search fidelity third-party browser clean
.DELETE_ON_ERROR:

demo: .venv/demo.stamp  ## rank eight models on real images, train the winner, compare with training them all
	$(BIN)/python examples/02_select_and_train.py

test: .venv/dev.stamp browser  ## the fast suite, doctests included; two workers, since tests start processes of their own
	$(BIN)/python -m pytest -n 2 --dist worksteal

test-slow: .venv/dev.stamp browser  ## the tests that take minutes each, the longer examples and the notebook among them
	$(BIN)/python -m pytest -m slow

# Each in an environment of its own: .venv keeps what it has. `lowest-direct` takes the lowest versions that pyproject.toml
# allows; what they need in turn is new, and deprecates what they call.
test-oldest: .venv-oldest/stamp  ## the fast suite with the oldest versions of all dependencies
	.venv-oldest/bin/python -m pytest -n 2 --dist worksteal -W ignore::DeprecationWarning

test-newest: .venv-newest/stamp  ## the fast suite with the newest versions
	.venv-newest/bin/python -m pytest -n 2 --dist worksteal

# Only root can install it; elsewhere, and without a network, the test of the HTML page is skipped and says why.
browser:  ## Chromium with its driver, from Debian, for the test of the HTML page
	@if ! command -v chromedriver >/dev/null && [ "$$(id -u)" = 0 ] && command -v apt-get >/dev/null; then \
		(apt-get update -qq && DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends \
			chromium chromium-driver) >/dev/null || echo "Chromium could not be installed."; \
	fi

check: .venv/dev.stamp docs  ## lint, types, layers, documentation
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

# Pyright itself fails unless all are complete.
types: .venv-types/stamp .venv/dev.stamp  ## how many public names have complete types, for users of pyright; fails below 95 %
	PATH="$(CURDIR)/$(BIN):$$PATH" .venv-types/bin/pyright --ignoreexternal --verifytypes lightning_zico --outputjson \
		>.venv-types/report.json || test -s .venv-types/report.json
	$(BIN)/python -c "import json; score = json.load(open('.venv-types/report.json'))['typeCompleteness']['completenessScore']; \
		print(f'{score:.1%} of the public names have complete types'); raise SystemExit(score < 0.95)"

# `--quiet` would hide warnings from `--strict`.
docs: .venv/dev.stamp  ## the documentation, in build/docs
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict --site-dir build/docs

bench: .venv/demo.stamp  ## time and memory against plain training and the published algorithm, cost of each proxy
	$(BIN)/python benchmarks/speed.py
	$(BIN)/python benchmarks/proxies.py

FIDELITY = $(BIN)/python benchmarks/fidelity.py --workers 2 --timeout 900
RECIPES := default,zico,balanced,az+synflow,az+naswot,az,zoo
WITH_FALLBACK := $(RECIPES),macs+expressivity,synflow

fidelity: .venv/demo.stamp  ## proxies against accuracies after training, on six public benchmarks; resumes if interrupted
	$(FIDELITY) --benchmark nas-bench-201 --benchmark nas-bench-101 --benchmark transnas-micro --sample 300 \
		--proxies $(RECIPES),block_free
	$(FIDELITY) --benchmark pit --sample 60 --batch-size 4 --proxies $(WITH_FALLBACK)
	$(FIDELITY) --benchmark nas-bench-bert --sample 100 --batch-size 8 --proxies $(WITH_FALLBACK)
	$(FIDELITY) --benchmark nas-bench-301 --sample 60 --batch-size 8 --proxies $(WITH_FALLBACK)

bench-search: .venv/dev.stamp  ## a small version of ZiCo's search for ImageNet; resumes if interrupted
	$(BIN)/python benchmarks/search.py --part reduced --storage benchmarks/cache/search.db

third-party: $(THIRD_PARTY)/stamp  ## modules of other packages: which train, which are ranked; takes ten minutes, after installing some GB of packages
	$(THIRD_PARTY)/bin/python benchmarks/third_party.py

clean:
	rm -rf .venv $(THIRD_PARTY) $(OTHERS)

.venv/bin/python:
	$(PYTHON) -m venv .venv

.venv/demo.stamp: pyproject.toml | .venv/bin/python
	$(BIN)/python -m pip install --quiet -e ".[demo]"
	touch $@

.venv/dev.stamp: pyproject.toml | .venv/bin/python
	$(BIN)/python -m pip install --quiet -e ".[dev]"
	touch $@ .venv/demo.stamp

.venv-oldest/stamp .venv-newest/stamp: pyproject.toml
	$(PYTHON) -m venv --clear $(@D)
	$(@D)/bin/python -m pip install --quiet uv
	$(@D)/bin/uv pip install --quiet --python $(@D)/bin/python \
		$(if $(findstring oldest,$@),--resolution lowest-direct) -e ".[dev]"
	touch $@

.venv-types/stamp:
	$(PYTHON) -m venv --clear $(@D)
	$(@D)/bin/python -m pip install --quiet pyright
	touch $@

# Apart from .venv, since what these packages ask for would change what the tests run with. An old pip takes an hour to
# find versions that fit each other, a new one a minute.
$(THIRD_PARTY)/stamp: pyproject.toml benchmarks/third_party.txt
	$(PYTHON) -m venv $(THIRD_PARTY)
	$(THIRD_PARTY)/bin/python -m pip install --quiet --upgrade "pip>=25"
	$(THIRD_PARTY)/bin/python -m pip install --quiet -e . -r benchmarks/third_party.txt
	touch $@

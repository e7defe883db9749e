# The commands of the README; each is a script in tools/ that can be run by itself.
.DEFAULT_GOAL := help
.PHONY: help demo test bench soak mutants conformance docs site dist deb clean

# Parts of a machine without which tests are skipped: here their absence is a failure (tests/requires.py). Not
# newer-qemu and newer-kernel: they come from Debian's unstable suite, and its state of a day is not to decide whether
# a change is accepted.
REQUIRE := fuse,qemu,fio,blkid,blkzone,walker,dh

help: ## Show this list.
	@sed -n 's/^\([a-z]*\): .*## \(.*\)/  make \1\t\2/p' $(firstword $(MAKEFILE_LIST)) | expand -t 20

demo: ## Install what the program needs, then create, mount, fill, refuse, reset and draw a drive before your eyes.
	tools/setup --demo
	tools/demo

test: ## Install what is missing and run everything: lint, types, import rules, tests, coverage.
	tools/setup
	ZONEFS_EMU_REQUIRE=$(REQUIRE) tools/check

bench: ## Measure against peers in the same run; writes bench/results.md.
	tools/setup
	.venv/bin/python -m bench --write

# Seconds in total: make soak SECONDS=3600.
SECONDS := 600

soak: ## Ten minutes of everything at once: faults, kill -9, damaged files; SECONDS=n for more or less.
	tools/setup
	PYTHONPATH=. .venv/bin/python -m tools.soak --seconds $(SECONDS)

# What is mutated, below zonefs_emu/: make mutants MODULES="model persist/image.py".
MODULES :=

mutants: ## Change the source in small ways and see whether a test notices; hours, goes on where it was interrupted.
	tools/setup
	.venv/bin/python -m pip install -q --editable ".[mutants]"
	PYTHONPATH=. .venv/bin/python tools/mutants.py $(MODULES)

# Further words for the command: make conformance RUN="fio --device SCSI".
RUN :=
# A directory with compiled checkouts of suites that Debian does not have: make conformance SUITES=~/suites.
SUITES :=

conformance: ## Run other people's suites on our disks and on peers'; writes docs/conformance.md; hours.
	tools/setup
	PYTHONPATH=. .venv/bin/python -m tools.conformance $(if $(SUITES),--suites $(SUITES)) $(RUN)

docs: ## Make the generated pages anew: docs/commands.md, docs/state-machine.md, docs/zones.svg, share/.
	PYTHONPATH=. .venv/bin/python tools/manual.py >docs/commands.md
	PYTHONPATH=. .venv/bin/python tools/state_machine.py >docs/state-machine.md
	PYTHONPATH=. .venv/bin/python tools/zones_picture.py >docs/zones.svg
	PYTHONPATH=. .venv/bin/python tools/share.py

site: ## Make a site of the documents in build/site; a broken link is an error.
	tools/setup
	.venv/bin/sphinx-build -q -W --keep-going -c docs . build/site
	cp build/site/README.html build/site/index.html

dist: ## Build the sdist and, from it, the wheel, in dist/.
	tools/setup
	rm -rf build dist
	.venv/bin/python -m build --no-isolation

deb: ## Build a Debian package for the release of this machine, in dist/.
	tools/setup
	tools/deb

clean: ## Remove what building and testing leave behind, and the virtual environment.
	rm -rf .venv build dist *.egg-info zonefs_emu/*/*.so .coverage .coverage.* .hypothesis .mypy_cache .pytest_cache .ruff_cache
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

.PHONY: check check-installed test full docs bench tour

check:
	pip install -q -c constraints.txt -e ".[test,docs,dev]"
	pytest
	$(MAKE) check-installed

# What follows the plain test run, in an environment that has the extras test, docs and dev.
check-installed: full
	ruff check .
	ruff format --check .
	mypy
	lint-imports
	$(MAKE) docs
	mechfeat bench ntk --smoke

test:
	pytest

full:
	pytest -m full

docs:
	python -m sphinx -W --keep-going -q -b html docs docs/_build/html

bench:
	python benchmarks/bench_ntk.py && python benchmarks/tables.py

tour:
	mechfeat tour

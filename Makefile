.PHONY: check test full docs bench tour

check:
	pip install -q -c constraints.txt -e ".[test,docs,dev]"
	pytest -n 2
	bash .ci/checks

test:
	pytest -n 2

full:
	pytest -n 2 -m full

docs:
	python -m sphinx -W --keep-going -q -b html docs docs/_build/html

bench:
	python benchmarks/bench_ntk.py && python benchmarks/tables.py

tour:
	mechfeat tour

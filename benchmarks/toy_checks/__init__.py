"""Checks of toy models at full size, by subject; ``bench_toy_models.py`` runs them and appends their rows."""

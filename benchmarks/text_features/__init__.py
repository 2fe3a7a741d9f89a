"""Experiments on the five text data sets, run by ``bench_text_features.py``."""

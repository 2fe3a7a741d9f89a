"""Slow, literal transcriptions of the formulas, written from their papers and independent of the code they check."""

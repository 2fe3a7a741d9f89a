"""One self-contained HTML page of findings and figures."""

from mechfeat.report.page import Report

__all__ = ["Report"]

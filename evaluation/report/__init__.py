"""The self-contained HTML report of one or several runs."""

from evaluation.report.page import render_report
from evaluation.report.runs import RunView

__all__ = ["RunView", "render_report"]

"""The self-contained HTML report of one or several runs."""

from evaluation.report.page import RunView, render_report

__all__ = ["RunView", "render_report"]

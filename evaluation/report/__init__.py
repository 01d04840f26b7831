"""The self-contained HTML report of one or several runs."""

from evaluation.report.downloads import NUMBERS_FILE, curves_csv, numbers_csv
from evaluation.report.drawings import CURVES_FILE
from evaluation.report.page import render_report
from evaluation.report.view import RunView, all_results

__all__ = [
    "CURVES_FILE",
    "NUMBERS_FILE",
    "RunView",
    "all_results",
    "curves_csv",
    "numbers_csv",
    "render_report",
]

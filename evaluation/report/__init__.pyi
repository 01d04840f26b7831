from .downloads import (
    NUMBERS_FILE as NUMBERS_FILE,
    curves_csv as curves_csv,
    numbers_csv as numbers_csv,
)
from .drawings import CURVES_FILE as CURVES_FILE
from .page import render_report as render_report
from .view import RunView as RunView, all_results as all_results

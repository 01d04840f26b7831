from .downloads import (
    NUMBERS_FILE as NUMBERS_FILE,
    curves_csv as curves_csv,
    numbers_csv as numbers_csv,
)
from .drawings import CURVES_FILE as CURVES_FILE
from .merge import (
    MergePoint as MergePoint,
    MergeView as MergeView,
    merge_figure as merge_figure,
    render_merge as render_merge,
)
from .page import render_report as render_report
from .view import RunView as RunView, all_results as all_results

from .files import is_merge as is_merge, load_merge as load_merge
from .forecast import forecast_merge as forecast_merge
from .schema import Merge as Merge
from .stage import checked as checked, run_merge as run_merge
from .status import is_merge_folder as is_merge_folder, merge_status as merge_status

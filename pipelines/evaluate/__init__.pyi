from .endpoint import ChatEndpoint as ChatEndpoint, endpoint_key as endpoint_key
from .facts import read_key_words as read_key_words
from .history import (
    numbers_of as numbers_of,
    read_history as read_history,
    read_results as read_results,
)
from .kl_name import check_kl_name as check_kl_name
from .response_weights import (
    response_weights as response_weights,
    weight_lines as weight_lines,
)
from .rewards import (
    build_reward as build_reward,
    check_reward as check_reward,
    reward_span as reward_span,
)
from .schedule import Scheduler as Scheduler, check_run as check_run
from .stage import EVALUATE as EVALUATE, EXECUTE as EXECUTE, SAMPLE as SAMPLE

"""Tasks of prepare in the driver's own process."""

from pipelines.pairs.tasks import here, value_of


def test_a_small_task_runs_at_once_and_takes_what_others_made() -> None:
    two = here(lambda: 2)()
    five = here(lambda made, three: made + three)(two, 3)
    assert value_of(five) == 5

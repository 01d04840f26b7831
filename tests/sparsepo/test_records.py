"""Records of a batch from those of its parts."""

from sparsepo.records import add_metrics


def test_metrics_add_up_sums_and_counts() -> None:
    """Means over three pairs and one are the mean over four; a part may lack a metric."""
    one = {"loss": (6.0, 3.0), "a": (1.0, 2.0)}
    two = {"loss": (1.0, 1.0), "b": (5.0, 1.0)}
    assert add_metrics(one, two) == {"loss": (7.0, 4.0), "a": (1.0, 2.0), "b": (5.0, 1.0)}
    assert add_metrics({}, two) == two == add_metrics(two, {})
    assert one == {"loss": (6.0, 3.0), "a": (1.0, 2.0)}, "the parts stay as they were"

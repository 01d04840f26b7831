"""Early stopping and the best checkpoint, by one metric of the validations."""

from collections.abc import Mapping
from typing import Any

from pipelines.errors import UserError
from pipelines.recipe import SelectionSection


class Selection:
    """Follows the metric; the same on every rank, and carried by checkpoints.

    Attributes:
        best_step: step of the best validation so far, None before the first. has_ended: patience is
            used up.
    """

    def __init__(self, settings: SelectionSection, state: Mapping[str, Any] | None = None) -> None:
        self._settings = settings
        self._best: float | None = None if state is None else state["best"]
        self.best_step: int | None = None if state is None else state["best_step"]
        self._stale: int = 0 if state is None else state["stale"]

    @property
    def has_ended(self) -> bool:
        return self._settings.patience is not None and self._stale >= self._settings.patience

    def observe(self, step: int, validation: Mapping[str, float]) -> bool:
        """Take in a validation.

        Returns: whether it is worth a checkpoint, because it is the best so far.

        Raises: UserError if the validation has no such metric.
        """
        if not self._settings.is_active():
            return False
        value = self.value_of(validation)
        if value is None:
            known = ", ".join(sorted(key for key in validation if key.startswith("validation/")))
            raise UserError(
                f"train.selection.metric = {self._settings.metric!r}: validations report {known}"
            )
        if self._best is None or value < self._best:
            self._best, self.best_step, self._stale = value, step, 0
            return True
        self._stale += 1
        return False

    def value_of(self, record: Mapping[str, Any]) -> float | None:
        """The metric, turned so that lower is better; None if the record holds no validation."""
        value = record.get(self._settings.metric)
        return (
            None
            if value is None
            else float(value)
            if self._settings.mode == "min"
            else -float(value)
        )

    def state(self) -> dict[str, Any]:
        return {"best": self._best, "best_step": self.best_step, "stale": self._stale}

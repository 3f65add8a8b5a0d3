"""A budget in seconds: training that ends by the clock, wherever its steps are then."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

from transformers import TrainerCallback

from rlad.compare.cells import seconds_of_steps
from rlad.report.curve import read_metrics


class StopAfter(TrainerCallback):
    """Ends training after the first step with which `seconds` of training are over.

    metrics: the run's metrics.jsonl, whose steps' own seconds count when a run goes on after an interruption.
    """

    def __init__(self, seconds: float, metrics: Path) -> None:
        self.seconds, self.metrics = seconds, metrics
        self.spent, self.started = 0.0, 0.0

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """What was trained before an interruption counts."""
        rows = read_metrics(self.metrics)
        self.spent = max(seconds_of_steps([row for row in rows if row["step"] <= state.global_step]), default=0.0)
        control.should_training_stop = self.spent >= self.seconds

    def on_step_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Steps alone are counted: a validation between two of them is none of training."""
        self.started = time.monotonic()

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """A step is never cut."""
        self.spent += time.monotonic() - self.started
        if self.spent >= self.seconds:
            control.should_training_stop = True

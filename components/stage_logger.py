"""Lightning's Logger protocol over the registry's metric sink, so that training logs to MLflow without importing it.

Lightning's own MLFlowLogger marks its run FINISHED at the end of fit and opens a new one after a kill; a stage here
keeps one run from its first step to its last, whatever happened in between.
"""

from __future__ import annotations

from typing import Any

from lightning.pytorch.loggers.logger import Logger
from lightning.pytorch.utilities.rank_zero import rank_zero_only


class StageLogger(Logger):
    """Hands every metric on to a sink with `log(metrics, step)` and `close()`."""

    def __init__(self, sink: Any) -> None:
        super().__init__()
        self.sink = sink

    @property
    def name(self) -> str:
        return "modelyard"

    @property
    def version(self) -> str:
        return str(getattr(self.sink, "run_id", ""))

    def log_hyperparams(self, *args: Any, **kwargs: Any) -> None:
        """Parameters were logged when the run was opened."""

    @rank_zero_only
    def log_metrics(self, metrics: dict[str, float], step: int | None = None) -> None:
        self.sink.log({name: float(value) for name, value in metrics.items() if name != "epoch"}, step or 0)

    @rank_zero_only
    def finalize(self, status: str) -> None:
        self.sink.close()

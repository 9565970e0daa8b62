"""MLflow: settings as parameters, figures as metrics, pictures as artifacts."""

from __future__ import annotations

import logging
import os
import time
from typing import Any

from imgclf.core.errors import MissingExtra
from imgclf.core.results import EpochRecord, Evaluation
from imgclf.tracking.backend import Backend, Pictures, Session, draw_confusion, epoch_figures, figures

EXPERIMENT = "imgclf"
KEY = "imgclf.key"  # the tag by which a run that is resumed is found
ENDS = {"done": "FINISHED", "stopped early": "FINISHED", "interrupted": "KILLED", "failed": "FAILED"}


class MLflow(Backend):
    """Logs to `uri`, else to where MLFLOW_TRACKING_URI or MLflow itself says; to the experiment MLFLOW_EXPERIMENT_NAME,
    else imgclf."""

    name = "mlflow"

    def __init__(self, uri: str | None = None) -> None:
        os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
        os.environ.setdefault("MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT", "true")
        try:
            import mlflow
        except ImportError:
            raise MissingExtra("mlflow", "MLflow runs") from None
        logging.getLogger("mlflow").setLevel(logging.WARNING)  # of what it makes in its database it would tell
        self._uri = uri or mlflow.get_tracking_uri()

    def where(self, session: Session) -> str:
        """The tracking URI and the names there."""
        return f"{self._uri}, experiment {_experiment()}, run {session.name}"

    def open(self, session: Session) -> None:
        """Find the run again, or make it; parameters that it has stay as they are."""
        from mlflow import MlflowClient
        from mlflow.entities import Param

        self._client = MlflowClient(self._uri)
        self._metrics: list[Any] = []
        experiment = self._client.get_experiment_by_name(_experiment())
        place = self._client.create_experiment(_experiment()) if experiment is None else experiment.experiment_id
        found = self._client.search_runs([place], f"tags.`{KEY}` = '{session.key}'", max_results=1)
        run = found[0] if found else self._client.create_run(place, run_name=session.name, tags={KEY: session.key})
        self._run = run.info.run_id
        self._client.update_run(self._run, status="RUNNING")
        new = {key: str(value) for key, value in session.settings.items() if key not in run.data.params}
        self._client.log_batch(self._run, params=[Param(key, value) for key, value in new.items()])

    def baseline(self, result: Evaluation) -> None:
        """Epoch 0."""
        self._note({"valid_loss": result.loss, "valid_accuracy": result.accuracy}, 0)

    def epoch(self, record: EpochRecord) -> None:
        """The columns of history.csv."""
        self._note(epoch_figures(record), record.epoch)

    def _note(self, values: dict[str, float], epoch: int) -> None:
        from mlflow.entities import Metric

        self._metrics += [Metric(name, value, int(1000 * time.time()), epoch) for name, value in values.items()]

    def batch(self, pictures: Pictures) -> None:
        """One picture of all."""
        self._picture(pictures.name, pictures.draw())

    def tested(self, part: str, result: Evaluation, pictures: Pictures) -> None:
        """Figures, the images with their answers, and the confusion matrix as a picture and as JSON."""
        self._note({f"kept_{name}": value for name, value in figures(result, part).items()}, 0)
        self._picture(pictures.name, pictures.draw())
        self._picture(f"{part}-confusion", draw_confusion(result))
        matrix = {"classes": [row.name for row in result.per_class], "confusion": result.to_dict()["confusion"]}
        self._client.log_dict(self._run, matrix, f"{part}-confusion.json")

    def _picture(self, name: str, pixels: Any) -> None:
        self._client.log_image(self._run, pixels, f"{name}.png")

    def flush(self) -> None:
        """All metrics in one message."""
        if self._metrics:
            self._client.log_batch(self._run, metrics=self._metrics)
            self._metrics = []

    def close(self, ended: str) -> None:
        """How it ended."""
        self._client.set_terminated(self._run, ENDS[ended])


def _experiment() -> str:
    return os.environ.get("MLFLOW_EXPERIMENT_NAME") or EXPERIMENT

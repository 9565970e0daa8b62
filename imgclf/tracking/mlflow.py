"""MLflow: settings as parameters, numbers as metrics, pictures as artifacts."""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Mapping
from typing import Any

from imgclf.core.results import Evaluation
from imgclf.tracking.backend import MetricLogger, Pictures, Session, import_package

EXPERIMENT = "imgclf"
KEY_TAG = "imgclf.key"  # finds the run on resume
STATUS = {"done": "FINISHED", "stopped early": "FINISHED", "interrupted": "KILLED", "failed": "FAILED"}


class MLflow(MetricLogger):
    """Logs to `uri`, by default to what MLFLOW_TRACKING_URI or MLflow itself names; the experiment is
    MLFLOW_EXPERIMENT_NAME, by default imgclf."""

    name = "mlflow"

    def __init__(self, uri: str | None = None) -> None:
        os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
        os.environ.setdefault("MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT", "true")
        mlflow = import_package("mlflow", "mlflow", "MLflow runs")
        logging.getLogger("mlflow").setLevel(logging.WARNING)  # it would report each table of its database
        self._uri = uri or mlflow.get_tracking_uri()
        self._experiment = os.environ.get("MLFLOW_EXPERIMENT_NAME") or EXPERIMENT

    def location(self, session: Session) -> str:
        """The tracking URI and the names there."""
        return f"{self._uri}, experiment {self._experiment}, run {session.name}"

    def open(self, session: Session) -> None:
        """Find the run again, or make it; the parameters that it has can't be changed."""
        from mlflow import MlflowClient
        from mlflow.entities import Param

        self._client = client = MlflowClient(self._uri)
        self._metrics: list[Any] = []
        experiment = client.get_experiment_by_name(self._experiment)
        place = client.create_experiment(self._experiment) if experiment is None else experiment.experiment_id
        found = client.search_runs([place], f"tags.`{KEY_TAG}` = '{session.key}'", max_results=1)
        run = found[0] if found else client.create_run(place, run_name=session.name, tags={KEY_TAG: session.key})
        self._run = run.info.run_id
        client.update_run(self._run, status="RUNNING")
        new = [Param(key, str(value)) for key, value in session.settings.items() if key not in run.data.params]
        client.log_batch(self._run, params=new)

    def log_metrics(self, values: Mapping[str, float], epoch: int) -> None:
        """Stored for the next flush."""
        from mlflow.entities import Metric

        self._metrics += [Metric(name, value, int(1000 * time.time()), epoch) for name, value in values.items()]

    def log_summary(self, values: Mapping[str, float]) -> None:
        """Under names of their own, as `valid_loss` is that of the epochs."""
        self.log_metrics({f"kept_{name}": value for name, value in values.items()}, 0)

    def log_picture(self, name: str, pixels: Any) -> None:
        """As a PNG file."""
        self._client.log_image(self._run, pixels, f"{name}.png")

    def tested(self, part: str, result: Evaluation, pictures: Pictures) -> None:
        """Log the confusion matrix as JSON, too."""
        super().tested(part, result, pictures)
        matrix = {"classes": [row.name for row in result.per_class], "confusion": result.to_dict()["confusion"]}
        self._client.log_dict(self._run, matrix, f"{part}-confusion.json")

    def flush(self) -> None:
        """Send all metrics at once."""
        if self._metrics:
            self._client.log_batch(self._run, metrics=self._metrics)
            self._metrics = []

    def close(self, ended: str) -> None:
        """Set how the run ended."""
        self._client.set_terminated(self._run, STATUS[ended])

"""MLflow: a local database or a server."""

from __future__ import annotations

import os
import time
from collections.abc import Mapping
from contextlib import suppress
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from pydantic import Field

from launch.redact import scrubbed
from launch.report.output import csv_text
from launch.report.settings import flat
from launch.tracking.trackers._numbers import NumberTracker
from unlearn.config import Section


class MlflowOptions(Section):
    uri: str | None = Field(None, description="database or server; null: MLFLOW_TRACKING_URI, else mlflow.db")

    @property
    def store(self) -> str:
        return self.uri or os.environ.get("MLFLOW_TRACKING_URI") or "sqlite:///mlflow.db"


class Mlflow(NumberTracker):
    """Mirrors to a run of the project's experiment; a continued one is found by its tag `id`."""

    Options = MlflowOptions

    @classmethod
    def check(cls, options: Any) -> list[str]:
        if None in map(find_spec, ("mlflow", "sqlalchemy", "alembic")):
            return ["tracker.name=mlflow needs MLflow: pip install 'unlearn-lab[mlflow]'"]
        store, key = options.store, "MLFLOW_TRACKING_URI" if options.uri is None else "tracker.uri"
        if options.uri is not None and "[password]@" in scrubbed(store):
            return [
                "tracker.uri has a password, which config.yaml would keep: set MLFLOW_TRACKING_URI instead"
            ]
        usable = store == "databricks" or ("://" in store and not store.startswith("file:"))
        return [] if usable else [f"{key}={store}: no database (sqlite:///FILE) or server"]

    def open(self) -> dict[str, dict[int, float]]:
        os.environ |= {"MLFLOW_DISABLE_TELEMETRY": "true", "MLFLOW_LOGGING_LEVEL": "WARNING"}
        from mlflow import MlflowClient, MlflowException, entities

        run, self.entities, self.client = self.run, entities, MlflowClient(self.options.store)
        with suppress(MlflowException):  # it may exist
            self.client.create_experiment(run.project)
        experiment: Any = self.client.get_experiment_by_name(run.project)
        place = experiment.experiment_id
        for earlier in self.client.search_runs([place], f"tags.id = '{run.id}'", max_results=1):
            self.id = earlier.info.run_id
            self.client.update_run(self.id, status="RUNNING")
            rows = {key: self.client.get_metric_history(self.id, key) for key in earlier.data.metrics}
            return {key: {each.step: each.value for each in some} for key, some in rows.items()}
        tags = {"id": run.id, "kind": run.kind, "group": run.group or "", "tags": ",".join(run.tags)}
        self.id = self.client.create_run(place, run_name=run.name, tags=tags).info.run_id
        params = [entities.Param(self.key(k), str(value)) for k, value in flat(run.config).items()]
        self.client.log_batch(self.id, params=params)
        return {}

    def key(self, key: str) -> str:
        return "".join(c if c.isalnum() or c in "/_.- " else "_" for c in key)  # what MLflow takes

    def write(self, numbers: Mapping[str, float], step: int) -> None:
        now = int(1000 * time.time())
        self.client.log_batch(self.id, [self.entities.Metric(k, v, now, step) for k, v in numbers.items()])

    def table(self, name: str, columns: list[str], rows: list[list[Any]]) -> None:
        self.client.log_text(self.id, csv_text(columns, rows), f"tables/{name}.csv")

    def figure(self, name: str, figure: Mapping[str, Any]) -> None:
        from plotly.graph_objects import Figure

        self.client.log_figure(self.id, Figure(figure), f"{name}.html")

    def model(self, name: str, folder: Path, facts: Mapping[str, Any]) -> None:
        self.client.log_artifacts(self.id, str(folder), "model")

    def finish(self, exit_code: int = 0) -> None:
        self.client.set_terminated(self.id, "FAILED" if exit_code else "FINISHED")

"""MLflow. Its own variables apply: MLFLOW_TRACKING_URI, MLFLOW_EXPERIMENT_NAME."""

import os
import time
from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray

from jaxvae.run.trackers.sink import Identity

_TAG = "jaxvae_id"  # By which a resumed run is found again.


class MlflowSink:
    """A run of MLflow, on its server, or in a local database."""

    def __init__(self, run: Identity):
        from mlflow import MlflowClient
        from mlflow.entities import Param

        self._client = client = MlflowClient()
        name = os.environ.get("MLFLOW_EXPERIMENT_NAME", run.project)
        known = client.get_experiment_by_name(name)
        experiment = known.experiment_id if known else client.create_experiment(name)
        found = client.search_runs([experiment], f"tags.{_TAG} = '{run.id}'", max_results=1)
        if found:
            self._id = found[0].info.run_id
            client.update_run(self._id, status="RUNNING")
        else:
            self._id = client.create_run(experiment, run_name=run.name, tags={_TAG: run.id}).info.run_id
            # MLflow lets no parameter change, so after a resume they are those of the start.
            client.log_batch(self._id, params=[Param(name, str(value)) for name, value in run.config.items()])

    def scalars(self, values: Mapping[str, float], step: int) -> None:
        """See `Sink`."""
        from mlflow.entities import Metric

        now = int(1000 * time.time())
        self._client.log_batch(self._id, metrics=[Metric(name, value, now, step) for name, value in values.items()])

    def picture(self, name: str, picture: NDArray[np.uint8], step: int) -> None:
        """See `Sink`."""
        from PIL import Image

        made = Image.fromarray(picture if picture.shape[-1] > 1 else picture[..., 0])
        self._client.log_image(self._id, made, f"images/{name}_step_{step:08}.png")

    def close(self) -> None:
        """See `Sink`."""
        self._client.set_terminated(self._id)

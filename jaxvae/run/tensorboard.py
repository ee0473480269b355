"""TensorBoard events, written by the calling thread."""

import io
import socket
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray


class Board:
    """TensorBoard events, written by the calling thread.

    The writers of TensorBoard and similar packages have a thread with a queue: on a full disk, they fail
    silently or block the caller.
    """

    def __init__(self, directory: Path, step: int):
        from tensorboard.compat.proto.event_pb2 import Event, SessionLog
        from tensorboard.compat.proto.summary_pb2 import Summary
        from tensorboard.summary.writer.record_writer import RecordWriter

        directory.mkdir(parents=True, exist_ok=True)
        # TensorBoard reads the files of this name in a directory in the order of their names.
        path = directory / f"events.out.tfevents.{time.time():.6f}.{socket.gethostname()}"
        self._writer = RecordWriter(path.open("ab"))
        self._event, self._summary = Event, Summary
        self._add(file_version="brain.Event:2")
        # TensorBoard drops what a killed run wrote past this step.
        self._add(step=step + 1, session_log=SessionLog(status=SessionLog.START))

    def _add(self, **content: Any) -> None:
        self._writer.write(self._event(wall_time=time.time(), **content).SerializeToString())
        self._writer.flush()

    def scalar(self, name: str, value: float, step: int) -> None:
        entry = self._summary.Value(tag=name, simple_value=value)
        self._add(step=step, summary=self._summary(value=[entry]))

    def scalars(self, values: Mapping[str, float], step: int) -> None:
        """See `jaxvae.run.trackers.sink.Sink`."""
        for name, value in values.items():
            self.scalar(name, value, step)

    def picture(self, name: str, picture: NDArray[np.uint8], step: int) -> None:
        from PIL import Image

        height, width, channels = picture.shape
        file = io.BytesIO()
        Image.fromarray(picture if channels > 1 else picture[..., 0]).save(file, format="PNG")
        content = self._summary.Image(
            height=height, width=width, colorspace=channels, encoded_image_string=file.getvalue()
        )
        self._add(step=step, summary=self._summary(value=[self._summary.Value(tag=name, image=content)]))

    def close(self) -> None:
        self._writer.close()

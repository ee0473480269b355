"""Devices, how a run's arrays lie on them, and the processes of a job. The only module that knows them."""

import errno
import json
import math
import os
import socket
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from typing import Any, NamedTuple, TypeVar

import jax
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from jaxvae.errors import InputError, SaveError

T = TypeVar("T")

AXIS = "data"
JOIN_SECONDS = 120.0  # To wait for the other processes of a job.
LEAVE_SECONDS = 30  # To wait for them at the end, where one of them failed.


# --- Devices ------------------------------------------------------------------------------------------------


class Placement(NamedTuple):
    """How the arrays of a run lie on the devices, all of one mesh.

    `state` is a sharding, or a tree of them that is a prefix of the train state; `batch` is that of
    an array whose first axis is the batch's; `images` that of the training and test images.
    """

    state: Any
    batch: NamedSharding
    images: NamedSharding

    @property
    def shares(self) -> int:
        """Into how many parts a batch is cut."""
        axes = self.batch.spec[0] if len(self.batch.spec) else None
        names = () if axes is None else axes if isinstance(axes, tuple) else (axes,)
        return math.prod(self.batch.mesh.shape[name] for name in names)

    @property
    def replicated(self) -> NamedSharding:
        """All of an array on every device."""
        return NamedSharding(self.batch.mesh, PartitionSpec())


def data_parallel(devices: Sequence[jax.Device]) -> Placement:
    """Every device has the state and the images, and works on an equal share of each batch."""
    mesh = Mesh(np.array(devices), (AXIS,), axis_types=(AxisType.Auto,))
    everywhere = NamedSharding(mesh, PartitionSpec())
    return Placement(state=everywhere, batch=NamedSharding(mesh, PartitionSpec(AXIS)), images=everywhere)


def select_devices(count: int | None = None) -> list[jax.Device]:
    """The first `count` devices of every process, or all.

    Raises:
      InputError: a process has fewer.
    """
    every: list[jax.Device] = jax.devices()
    if count is None:
        return every
    selected = []
    for process in range(jax.process_count()):
        owned = [device for device in every if device.process_index == process]
        if not 1 <= count <= len(owned):
            where = f"process {process}" if jax.process_count() > 1 else "this machine"
            raise InputError(f"--devices {count}: {where} has {len(owned)} ({every[0].device_kind})")
        selected += owned[:count]
    return selected


def check_divisible(batch_size: int, placement: Placement) -> None:
    """Raise `InputError` for a batch that cannot be cut into equal shares."""
    if batch_size % placement.shares:
        raise InputError(f"--batch-size {batch_size} does not divide over {placement.shares} devices (see --devices)")


def place(tree: Any, sharding: Any) -> Any:
    """Host arrays, which every process has as a whole, on the devices: a tree of `jax.Array`.

    Args:
      tree: of arrays.
      sharding: for all of them, or a tree of shardings that is a prefix of `tree`.
    """
    if jax.process_count() == 1:
        return jax.device_put(tree, sharding)

    def put(array: Any, sharding: NamedSharding) -> jax.Array:
        host = np.asarray(array)
        return jax.make_array_from_callback(host.shape, sharding, lambda index: host[index])

    return jax.tree.map(put, tree, jax.tree.broadcast(sharding, tree))


# --- Processes ----------------------------------------------------------------------------------------------


def join(
    coordinator: str | None = None,
    num_processes: int | None = None,
    process_id: int | None = None,
    timeout: float = JOIN_SECONDS,
) -> None:
    """Join the processes of a job, before JAX is used for anything else.

    With no argument: what Slurm, Open MPI or Kubernetes say, or nothing where none of them started
    several processes.

    Args:
      coordinator: HOST:PORT at which process 0 is to be reached by all, and listens.
      num_processes: of the job.
      process_id: of this process, from 0.
      timeout: seconds to wait for the others.

    Raises:
      InputError: an argument is missing or out of range, or the others were not there in time.
    """
    given = {"--coordinator": coordinator, "--num-processes": num_processes, "--process-id": process_id}
    if all(value is None for value in given.values()):
        if started_by_a_scheduler(os.environ):
            _initialize("the job's coordinator", timeout)
        return
    if missing := [name for name, value in given.items() if value is None]:
        raise InputError(f"{', '.join(missing)} missing: a process of a job needs {', '.join(given)}")
    assert coordinator is not None and num_processes is not None and process_id is not None
    host, _, port = coordinator.rpartition(":")
    if not host or not port.isascii() or not port.isdigit() or not 0 < int(port) < 2**16:
        raise InputError(f"--coordinator {coordinator}: must be HOST:PORT")
    if num_processes < 1:
        raise InputError(f"--num-processes must be at least 1, not {num_processes}")
    if not 0 <= process_id < num_processes:
        raise InputError(f"--process-id must be from 0 to {num_processes - 1}, not {process_id}")
    _meet(coordinator, num_processes, process_id, timeout)
    _initialize(
        f"--coordinator {coordinator}",
        timeout,
        coordinator_address=coordinator,
        num_processes=num_processes,
        process_id=process_id,
        cluster_detection_method="deactivate",
    )


def started_by_a_scheduler(environment: Mapping[str, str]) -> bool:
    """Whether the environment is that of one of several processes, in a form that `jax.distributed` understands."""

    def has(*names: str) -> bool:
        return all(environment.get(name) for name in names)

    slurm = has("SLURM_JOB_ID", "SLURM_STEP_NODELIST", "SLURM_PROCID", "SLURM_LOCALID")
    open_mpi = has("OMPI_MCA_orte_hnp_uri", "OMPI_COMM_WORLD_RANK")
    kubernetes = has("KUBERNETES_SERVICE_HOST", "JOB_COMPLETION_INDEX")
    return (
        (slurm and environment.get("SLURM_NTASKS", "1") != "1")
        or (open_mpi and environment.get("OMPI_COMM_WORLD_SIZE", "1") != "1")
        or kubernetes
    )


def _initialize(coordinator: str, timeout: float, **arguments: Any) -> None:
    try:
        jax.distributed.initialize(
            initialization_timeout=math.ceil(timeout), shutdown_timeout_seconds=LEAVE_SECONDS, **arguments
        )
    except (RuntimeError, ValueError) as error:
        reason = " ".join(str(error).split())[:200]
        raise InputError(f"{coordinator}: the processes of the job did not meet: {reason}") from None


def _meet(coordinator: str, num_processes: int, process_id: int, timeout: float) -> None:
    """Return once all processes of the job are there, at the address that JAX is to use next.

    JAX itself aborts, with a C++ trace, where a process does not come.
    """
    host, _, port = coordinator.rpartition(":")
    end = time.monotonic() + timeout
    if process_id == 0:
        _await_all(coordinator, int(port), num_processes, end)
        return
    try:
        with _connect(host.strip("[]"), int(port), end) as connection:
            connection.sendall(f"jaxvae {process_id} of {num_processes}\n".encode())
            connection.settimeout(max(end - time.monotonic(), 0.1))
            answer = connection.makefile(encoding="utf-8", errors="replace").readline().strip()
    except OSError as error:
        reason = error.strerror or error
        raise InputError(f"--coordinator {coordinator} did not answer in {timeout:g} s: {reason}") from None
    if answer != "go":
        raise InputError(f"--coordinator {coordinator}: {answer or 'process 0 gave up waiting for the others'}")


def _connect(host: str, port: int, end: float) -> socket.socket:
    while True:
        try:
            connection = socket.create_connection((host, port), timeout=max(end - time.monotonic(), 0.1))
            if connection.getsockname() != connection.getpeername():
                return connection
            connection.close()  # TCP can meet itself where nobody listens yet, on ports it deals out.
            raise ConnectionRefusedError(errno.ECONNREFUSED, os.strerror(errno.ECONNREFUSED))
        except OSError:
            if time.monotonic() >= end:
                raise
            time.sleep(0.2)


def _await_all(coordinator: str, port: int, num_processes: int, end: float) -> None:
    dual = socket.has_dualstack_ipv6()
    family = socket.AF_INET6 if dual else socket.AF_INET
    try:
        server = socket.create_server(("", port), family=family, dualstack_ipv6=dual)
    except OSError as error:
        raise InputError(f"--coordinator {coordinator}: cannot listen there: {error.strerror}") from None
    missing = set(range(1, num_processes))
    with server, ExitStack() as connections:
        arrived = []
        while missing:
            try:
                server.settimeout(max(end - time.monotonic(), 0.01))
                connection = connections.enter_context(server.accept()[0])
            except TimeoutError:
                names = ", ".join(map(str, sorted(missing)))
                raise InputError(
                    f"--coordinator {coordinator}: of {num_processes} processes, {names} did not come"
                ) from None
            try:
                connection.settimeout(5)
                said = connection.makefile(encoding="utf-8", errors="replace").readline(100).split()
                if said[:1] != ["jaxvae"]:
                    continue  # Somebody else who tries ports.
                number, count = int(said[1]), int(said[3])
            except (OSError, ValueError, IndexError):
                continue
            if count != num_processes or number not in missing:
                reason = f"process {number} of {count} does not fit a job of {num_processes}, or came twice"
                connection.sendall(f"{reason}\n".encode())
                raise InputError(f"--coordinator {coordinator}: {reason}")
            missing.remove(number)
            arrived.append(connection)
        for connection in arrived:
            connection.sendall(b"go\n")


def is_lead() -> bool:
    """Whether this process is the one that prints, writes and draws."""
    return jax.process_index() == 0


def gather(value: Any) -> list[Any]:
    """The `value`, JSON, of every process, in their order. All of them must call it, together."""
    if jax.process_count() == 1:
        return [value]
    text = np.frombuffer(json.dumps(value).encode(), np.uint8)
    sizes = multihost_utils.process_allgather(np.asarray([text.size], np.int32)).ravel()
    padded = np.zeros(sizes.max(), np.uint8)
    padded[: text.size] = text
    texts = multihost_utils.process_allgather(padded)
    return [json.loads(bytes(row[:size])) for row, size in zip(texts, sizes, strict=True)]


def agreed(prepare: Callable[[], T], summary: Callable[[T], dict[str, Any]]) -> T:
    """``prepare()``, once it has been done in every process with one and the same summary.

    Args:
      prepare: what each process does by itself. It may raise `InputError` or `SaveError`.
      summary: JSON of what all processes must have in common.

    Raises:
      InputError, SaveError: it failed in one of the processes, or their summaries differ; raised in all.
    """
    said: dict[str, Any] = {}
    failure: InputError | SaveError | None = None
    try:
        result = prepare()
        said = summary(result)
    except (InputError, SaveError) as error:
        failure = error
    told = None if failure is None else [isinstance(failure, SaveError), str(failure)]
    everyone = gather({"failure": told, "summary": said})
    if failure is not None:
        raise failure
    first: dict[str, Any] = everyone[0]["summary"]
    for process, other in enumerate(everyone):
        if other["failure"] is not None:
            save, message = other["failure"]
            raise (SaveError if save else InputError)(f"process {process}: {message}")
        differences = [
            f"{k}: {v} and {other['summary'].get(k)}" for k, v in first.items() if v != other["summary"].get(k)
        ]
        if differences:
            raise InputError(f"processes 0 and {process} were started differently: {'; '.join(differences)}")
    return result


def on_lead(action: Callable[[], T]) -> T | None:
    """``action()`` on process 0, None on the others, which wait. Raises its `InputError` or `SaveError` in all."""
    return agreed(lambda: action() if is_lead() else None, lambda _: {})


def from_lead(tree: Any) -> Any:
    """Process 0's host arrays in every process, bit for bit.

    Args:
      tree: of arrays; on the other processes, any with the same shapes and dtypes.
    """
    if jax.process_count() == 1:
        return tree
    arrays = jax.tree.map(np.asarray, tree)
    # As bytes: they are added to zeros, which would lose the sign of -0.
    sent = multihost_utils.broadcast_one_to_all(jax.tree.map(lambda a: np.frombuffer(a.tobytes(), np.uint8), arrays))
    return jax.tree.map(lambda a, s: np.frombuffer(np.asarray(s).tobytes(), a.dtype).reshape(a.shape), arrays, sent)

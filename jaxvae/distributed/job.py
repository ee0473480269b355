"""The processes of a job: how they join, agree, watch each other and leave. Nothing here knows what they compute."""

import atexit
import json
import math
import os
import sys
import time
import traceback
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

import jax
import numpy as np
from jax.experimental import multihost_utils

from jaxvae.distributed.meeting import Link, Peer, meet, this_process
from jaxvae.distributed.watch import LOSS_SECONDS, Watch, relay
from jaxvae.errors import InputError, JobError, SaveError, one_line

T = TypeVar("T")

JOIN_SECONDS = 120.0  # To wait for the other processes of a job.
GOODBYE_SECONDS = 30  # To wait for them when JAX shuts down, which all do together.
HEARTBEAT_SECONDS = 24 * 60 * 60  # JAX's own, which aborts with a trace: the watch must find out first.

_watch: Watch | None = None  # Of the job that this process joined.
_agreed_to_end = False  # Whether all processes know the error that ends them.


def join(
    coordinator: str | None = None,
    num_processes: int | None = None,
    process_id: int | None = None,
    run_dir: Path | None = None,
    timeout: float = JOIN_SECONDS,
) -> None:
    """Join the processes of a job, before JAX is used for anything else.

    Without arguments, Slurm, Open MPI, Kubernetes or a slice of TPUs gives them; if none of these started several
    processes, nothing happens. From here on, if another process is lost, this one says so in one line and ends with
    exit code `jaxvae.distributed.watch.EXIT_JOB`.

    Args:
      coordinator: HOST:PORT at which process 0 listens and all can reach it.
      num_processes: of the job.
      process_id: of this process, from 0.
      run_dir: what to resume if a process is lost.
      timeout: seconds to wait for the others.

    Raises:
      InputError: an argument is missing or out of range, or the others did not connect in time.
    """
    given = {"--coordinator": coordinator, "--num-processes": num_processes, "--process-id": process_id}
    scheduled = all(value is None for value in given.values())
    if scheduled:
        if not started_by_a_scheduler(os.environ):
            return
        coordinator, num_processes, process_id = _scheduled(timeout)
    if missing := [name for name, value in given.items() if value is None and not scheduled]:
        raise InputError(f"{', '.join(missing)} missing: a process of a job needs {', '.join(given)}")
    assert coordinator is not None and num_processes is not None and process_id is not None
    name = f"the job's coordinator {coordinator}" if scheduled else f"--coordinator {coordinator}"
    host, _, port = coordinator.rpartition(":")
    if not host or not port.isascii() or not port.isdigit() or not 0 < int(port) < 2**16:
        raise InputError(f"{name}: must be HOST:PORT")
    if num_processes < 1:
        raise InputError(f"--num-processes must be at least 1, not {num_processes}")
    if not 0 <= process_id < num_processes:
        raise InputError(f"--process-id must be from 0 to {num_processes - 1}, not {process_id}")
    own = this_process(process_id)
    _keep_watch(own, meet(name, coordinator, own, num_processes, timeout), run_dir)
    try:
        if any(os.environ.get(name) for name in ("grpc_proxy", "https_proxy", "http_proxy")):
            # gRPC would use the proxy even for an address of this machine.
            os.environ.setdefault("no_grpc_proxy", "127.0.0.1")
        jax.distributed.initialize(
            coordinator if process_id == 0 else relay(host.strip("[]"), int(port), timeout),
            num_processes,
            process_id,
            # A scheduler says which of a machine's devices belong to this process.
            cluster_detection_method=None if scheduled else "deactivate",
            initialization_timeout=math.ceil(timeout),
            heartbeat_timeout_seconds=HEARTBEAT_SECONDS,
            shutdown_timeout_seconds=GOODBYE_SECONDS,
        )
    except (RuntimeError, ValueError) as error:
        reason = " ".join(str(error).split())[:200]
        raise InputError(f"{name}: the processes of the job did not meet: {reason}") from None


def _scheduled(timeout: float) -> tuple[str, int, int]:
    """The coordinator's address, the number of processes, and this process's number, as the scheduler says.

    JAX knows the schedulers, but has no public function for this.

    Raises:
      InputError: JAX cannot read it, or a variable of a TPU slice does not hold a number.
    """
    if workers := tpu_workers(os.environ):
        return workers
    from jax._src.clusters import ClusterEnv

    found: Any = ClusterEnv.auto_detect_unset_distributed_params(None, None, None, None, None, math.ceil(timeout))
    address, count, number, _ = found
    if address is None or count is None or number is None:
        # On Kubernetes, JAX needs an extra package for this.
        raise InputError(
            "a scheduler started this process, but JAX cannot tell which job it belongs to: on Kubernetes, pip install "
            "'jax[k8s]'; or give --coordinator, --num-processes and --process-id"
        )
    return address, count, number


def tpu_workers(environment: Mapping[str, str]) -> tuple[str, int, int] | None:
    """The coordinator's address, the number of processes, and this process's number, on a slice of TPUs or several.

    GKE sets these variables in the containers of a slice, one for each host: see "Deploy TPU workloads in GKE". JAX
    would look for them only where it sees a TPU.

    Returns:
      None: they are not set.

    Raises:
      InputError: a variable that must hold a whole number does not.
    """
    hosts = environment.get("TPU_PROCESS_ADDRESSES") or environment.get("TPU_WORKER_HOSTNAMES")
    if not hosts or not environment.get("TPU_WORKER_ID"):
        return None
    numbers = {"MEGASCALE_NUM_SLICES": 1, "MEGASCALE_SLICE_ID": 0, "TPU_WORKER_ID": 0, "JAX_COORDINATOR_PORT": 8482}
    for name, default in numbers.items():
        given = environment.get(name) or str(default)
        if not (given.isascii() and given.isdigit()):
            raise InputError(f"{name} must be a whole number, not {given}")
        numbers[name] = int(given)
    each = hosts.split(",")
    lead = (environment.get("MEGASCALE_COORDINATOR_ADDRESS") or each[0]).partition(":")[0]
    count = len(each) * numbers["MEGASCALE_NUM_SLICES"]
    number = len(each) * numbers["MEGASCALE_SLICE_ID"] + numbers["TPU_WORKER_ID"]
    return f"{lead}:{numbers['JAX_COORDINATOR_PORT']}", count, number


def started_by_a_scheduler(environment: Mapping[str, str]) -> bool:
    """Whether the environment is that of one of several processes, in a form that `join` understands."""
    if workers := tpu_workers(environment):
        return workers[1] > 1

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


def _keep_watch(own: Peer, links: Sequence[Link], run_dir: Path | None) -> None:
    global _watch
    advice = f"go on with --resume --run-dir {run_dir or 'DIR'}, in as many processes or another number"
    _watch = Watch(own, links, advice)
    # For programs that end without `leave`. Their traceback has been printed by then.
    atexit.register(lambda: leave(getattr(sys, "last_value", None), code=1))


def leave(error: BaseException | None = None, code: int | None = None) -> None:
    """Leave the job, if this process is in one: together with the others; after an error, alone, and it ends here.

    Args:
      error: what ends this process, if anything. Unless `agreed` has raised it in all processes, the others are told,
        and end.
      code: the exit code for it; None: it is a bug, and its traceback is printed.
    """
    global _watch
    watch, _watch = _watch, None
    if watch is None:
        return
    if error is None or _agreed_to_end:
        watch.leave()
        return
    if code is None:
        # If a process is lost, what needs it fails in many ways: then the watch ends this process in the meantime.
        time.sleep(LOSS_SECONDS)
        traceback.print_exception(error)
    watch.fail(f"{watch.own} failed: {_described(error)}")
    for stream in (sys.stdout, sys.stderr):
        stream.flush()
    os._exit(1 if code is None else code)  # Without JAX's shutdown, which waits for the others and aborts.


def request_stop(number: int) -> None:
    """Tell every process of the job about the signal `number`. Waits for nothing. Any thread may call it."""
    if _watch is not None:
        _watch.request_stop(number)


def stop_requested() -> int | None:
    """The signal that a process of the job received, if it is known here. Others may know it sooner or later."""
    return None if _watch is None else _watch.stop


def is_lead() -> bool:
    """Whether this process is the one that prints, writes and draws."""
    return jax.process_index() == 0


def gather(value: Any) -> list[Any]:
    """The `value`, JSON, of every process, in order. All processes must call this together."""
    if jax.process_count() == 1:
        return [value]
    text = np.frombuffer(json.dumps(value).encode(), np.uint8)
    sizes = multihost_utils.process_allgather(np.asarray([text.size], np.int32)).ravel()
    padded = np.zeros(sizes.max(), np.uint8)
    padded[: text.size] = text
    texts = multihost_utils.process_allgather(padded)
    return [json.loads(bytes(row[:size])) for row, size in zip(texts, sizes, strict=True)]


def agreed(prepare: Callable[[], T], summary: Callable[[T], dict[str, Any]]) -> T:
    """The result of ``prepare()``, once every process has called it with the same summary.

    Args:
      prepare: what each process does by itself. It may raise anything.
      summary: JSON of what all processes must have in common.

    Raises:
      InputError, SaveError: one of the processes raised it, or the summaries differ; raised in all.
      JobError: another process raised any other error. That process raises the error itself.
    """
    global _agreed_to_end
    said: dict[str, Any] = {}
    failure: BaseException | None = None
    try:
        result = prepare()
        said = summary(result)
    except BaseException as error:  # KeyboardInterrupt too: the others would wait for ever.
        failure = error
    everyone = gather({"failure": None if failure is None else _told(failure), "summary": said})
    try:
        if failure is not None:
            raise failure
        for process, other in enumerate(everyone):
            if other["failure"] is not None:
                kind, message = other["failure"]
                raise _KINDS.get(kind, JobError)(f"process {process}: {message}")
        first: dict[str, Any] = everyone[0]["summary"]
        for process, other in enumerate(everyone):
            differences = [
                f"{k}: {v} and {other['summary'].get(k)}" for k, v in first.items() if v != other["summary"].get(k)
            ]
            if differences:
                raise InputError(f"processes 0 and {process} were started differently: {'; '.join(differences)}")
    except BaseException:
        _agreed_to_end = True
        raise
    return result


_KINDS = {"InputError": InputError, "SaveError": SaveError}  # Errors that all processes raise alike.


def _told(error: BaseException) -> tuple[str, str]:
    """What the other processes are told about an error."""
    for name, kind in _KINDS.items():
        if isinstance(error, kind):
            return name, str(error)
    return "", _described(error)


def _described(error: BaseException) -> str:
    return one_line(f"{type(error).__name__}: {error}" if str(error) else type(error).__name__)[:1000]


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
    # As bytes: JAX adds them to zeros, which would lose the sign of -0.
    sent = multihost_utils.broadcast_one_to_all(jax.tree.map(lambda a: np.frombuffer(a.tobytes(), np.uint8), arrays))
    return jax.tree.map(lambda a, s: np.frombuffer(np.asarray(s).tobytes(), a.dtype).reshape(a.shape), arrays, sent)

"""The shards of a split made by Apache Beam: by processes of this machine, or by Flink, Spark or Dataflow.

Imported when a runner is asked for; Beam is an extra. A runner only hands the orders out: how a shard is made stands in
`preparation.Order`, and a shard that is whole is kept, whoever made it. So it does no harm when a runner gives an order
twice, or again after a worker has died.
"""

import contextlib
import io
import logging
import pickle
import signal
import threading
from collections.abc import Iterator, Sequence

import apache_beam
from apache_beam.options.pipeline_options import DirectOptions, PipelineOptions, StandardOptions, WorkerOptions
from apache_beam.portability.api import beam_provision_api_pb2
from apache_beam.runners.portability.fn_api_runner import FnApiRunner
from apache_beam.runners.portability.fn_api_runner.fn_runner import ExtendedProvisionInfo
from apache_beam.runners.portability.portable_runner import JobServiceHandle
from etils import epath

from fixres_jax.core import files
from fixres_jax.core.errors import RunError, UsageError, nearest
from fixres_jax.data.preparation import Job, Order

DIRECT = 'DirectRunner'
JOB = '.job.incomplete'  # swept away by the next run if this one is killed
ATTEMPTS = 5  # of Beam's direct runner, which gives up when a worker dies; the others try again by themselves
log = logging.getLogger('fixres_jax')


def read_options(runner: str, flags: Sequence[str], workers: int) -> PipelineOptions:
    """Return the options of a pipeline.

    Args:
      runner: name of Beam's runner.
      flags: Beam's own options, as on a command line.
      workers: processes of the direct runner; 0 to work in this one. The others have options of their own.

    Raises:
      UsageError: for one that Beam does not know, or a wrong value.
    """
    said = io.StringIO()
    try:
        with contextlib.redirect_stderr(said):
            options = PipelineOptions(list(flags), runner=runner)
            unknown = set(options.get_all_options(retain_unknown_options=True)) - set(options.get_all_options())
    except SystemExit:
        raise UsageError(f'{runner}: {said.getvalue().strip().splitlines()[-1].partition("error: ")[2]}.') from None
    # Flink's and Spark's job servers have more options than Beam's Python part knows.
    if unknown and runner in (DIRECT, 'DataflowRunner'):
        name = min(unknown)
        raise UsageError(f'{runner} has no option --{name}.{nearest(name, options.get_all_options())}')
    logs = options.view_as(WorkerOptions)
    logs.default_sdk_harness_log_level = logs.default_sdk_harness_log_level or 'ERROR'
    direct = options.view_as(DirectOptions)
    if runner == DIRECT and workers and not any(flag.startswith('--direct_') for flag in flags):
        direct.direct_num_workers, direct.direct_running_mode = workers, 'multi_processing'
    return options


def run(job: Job, options: PipelineOptions) -> None:
    """Make the shards of a job.

    Args:
      job: what to make. Its folders must be reached under the same paths by all workers.
      options: of the pipeline.

    Raises:
      RunError: when the pipeline failed; what is whole is kept.
    """
    logging.getLogger('apache_beam').setLevel(logging.ERROR)
    runner, place = options.view_as(StandardOptions).runner, job.out / JOB
    files.write(place, pickle.dumps(job))
    try:
        for attempt in range(1, ATTEMPTS + 1):
            if _finished(str(place), options):
                return
            log.warning('A worker died in attempt %d of %d; what is whole is kept.', attempt, ATTEMPTS)
        raise RunError(f'A worker died in each of {ATTEMPTS} attempts. Often memory is short: give fewer --workers.')
    except RunError:
        raise
    except Exception as error:
        reason = ' '.join(str(error).split())[:400]
        raise RunError(f'{runner} failed: {type(error).__name__}: {reason}. What is whole is kept.') from error
    finally:
        place.unlink(missing_ok=True)


def _finished(place: str, options: PipelineOptions) -> bool:
    """Run the pipeline to its end; return False when a worker process of the direct runner has died."""
    direct = options.view_as(StandardOptions).runner == DIRECT
    pipeline = apache_beam.Pipeline(runner=_direct_runner(options) if direct else None, options=options)
    # One worker reads the job, and orders reach the others as data: they may be more than a pipeline can hold.
    orders = pipeline | apache_beam.Create([place]) | 'Order' >> apache_beam.FlatMap(orders_of)
    _ = orders | apache_beam.Reshuffle() | 'Make' >> apache_beam.Map(make)
    if not direct:
        pipeline.run().wait_until_finish()
        return True
    try:
        with _watched():
            pipeline.run().wait_until_finish()
    except _WorkerDied as error:
        if isinstance(error.__context__, KeyboardInterrupt):  # Ctrl-C ends the workers too.
            raise error.__context__ from None
        return False
    return True


def _direct_runner(options: PipelineOptions) -> FnApiRunner:
    """Return the direct runner that is Python alone: left to choose, Beam would download another."""
    encoded = JobServiceHandle.encode_pipeline_options(options.get_all_options())
    return FnApiRunner(
        provision_info=ExtendedProvisionInfo(beam_provision_api_pb2.ProvisionInfo(pipeline_options=encoded))
    )


def orders_of(place: str) -> Iterator[Order]:
    """Iterate over the orders of a job, given the file that holds it."""
    job = pickle.loads(epath.Path(place).read_bytes())
    yield from map(job.order, range(job.num_shards))


def make(order: Order) -> None:
    """Make a shard; note a bad image, which no other attempt would make better."""
    try:
        order.make()
    except RunError as error:
        order.fail(error)


class _WorkerDied(BaseException):
    """Leaves the direct runner, whatever it is waiting for."""


@contextlib.contextmanager
def _watched() -> Iterator[None]:
    """Raise `_WorkerDied` when a worker process of the direct runner dies: it would wait for it forever."""
    died = threading.Event()

    def see(arguments: threading.ExceptHookArgs) -> None:
        # The thread that waits for a worker process ends with this error; others that talk to it follow.
        if isinstance(arguments.exc_value, RuntimeError) and 'subprocess exited' in str(arguments.exc_value):
            if not died.is_set():
                died.set()
                signal.pthread_kill(threading.main_thread().ident, signal.SIGUSR1)
        elif not died.is_set():
            hook(arguments)

    def leave(number: int, frame: object) -> None:
        raise _WorkerDied

    hook, threading.excepthook = threading.excepthook, see
    handler = signal.signal(signal.SIGUSR1, leave)
    try:
        yield
    finally:
        threading.excepthook = hook
        signal.signal(signal.SIGUSR1, handler)

"""The whole method: train -> sweep the test resolution -> adapt there, and at the training size -> evaluate -> report.

Each phase leaves its result as `<phase>.json` in the workdir; a phase whose result is there is not run again.
"""

import os
import time
from typing import Any

import jax
from etils import epath

from fixres_jax.core import files, progress
from fixres_jax.core.progress import duration, log
from fixres_jax.machines import compilation, processes
from fixres_jax.runs import provenance, settings
from fixres_jax.runs.phases import PHASES
from fixres_jax.runs.run import Run, open_run
from fixres_jax.runs.workdir import check_restore_step, claim, hold
from fixres_jax.training import metrics_log


def run(config: Any, workdir: str | epath.Path) -> None:
    """Run the phases of `config.task` in a workdir, leaving out those whose results are there.

    Args:
      config: a ConfigDict with the fields of `configs/base.py`.
      workdir: folder of the run; made if absent.

    Raises:
      UsageError: for anything in the config that cannot work.
      RunError: when the run cannot go on.
      Preempted: after a SIGTERM.
    """
    s = settings.read(config)
    settings.check_task(s)
    metrics_log.check_tracker(s.tracker)
    workdir = files.reachable(workdir)
    check_restore_step(workdir, s.restore_step)
    _keep_compiled_programs(workdir, s.compilation_cache)
    with hold(workdir):
        opened = open_run(s, workdir)
        claim(workdir, config.to_dict(), _defaults(config), provenance.parts(opened.images))
        _run_phases(opened)


def _keep_compiled_programs(workdir: epath.Path, folder: str) -> None:
    """Keep them in a folder, of the workdir unless absolute or in a bucket; '' leaves it to JAX's own variables."""
    if folder:
        elsewhere = '://' in folder or os.path.isabs(folder)
        jax.config.update('jax_compilation_cache_dir', folder if elsewhere else str(workdir / folder))
        jax.config.update('jax_persistent_cache_min_compile_time_secs', 0.0)
    files.reachable(jax.config.jax_compilation_cache_dir or '')


def _defaults(config: Any) -> dict[str, Any]:
    """Return the default of every field, which the configs of `configs/` tell; {} of a config that does not."""
    return config.defaults() if hasattr(config, 'defaults') else {}


def _run_phases(opened: Run) -> None:
    results: dict[str, Any] = {}
    for phase in opened.settings.phases:
        path = opened.workdir / f'{phase}.json'
        done = processes.from_host0(files.read_json(path)) if phase != 'report' else None
        if done is not None:
            log.info('Phase %s is done: %s is there.', phase, path)
            results[phase] = done
            continue
        log.info('Phase %s begins.', phase)
        began = time.monotonic()
        with progress.Activity(f'phase {phase}'), compilation.told():
            results[phase] = PHASES[phase](opened, results)
        seconds = time.monotonic() - began + results[phase].pop('earlier_seconds', 0.0)
        results[phase]['seconds'] = seconds
        if processes.is_host0() and phase != 'report':
            files.write_json(path, results[phase])
        log.info('Phase %s took %s.', phase, duration(seconds))

"""The whole method: train -> sweep the test resolution -> adapt there -> evaluate -> report.

Each phase leaves its result as `<phase>.json` in the workdir; a phase whose result is there is not run again.
"""

import datetime
import importlib.metadata
import json
import platform
import subprocess
import sys
import time
from typing import Any

import jax
from etils import epath

from fixres_jax import analyze, files, phases, processes, settings
from fixres_jax.analysis import html, report
from fixres_jax.metrics import write_json
from fixres_jax.plan import Plan, make
from fixres_jax.progress import duration, log
from fixres_jax.workdir import check_restore_step, claim, hold, read_json


def report_phase(plan: Plan, results: dict[str, Any]) -> dict[str, Any]:
    """Write report.json, report.md, report.html and the plots, on host 0."""
    if not processes.is_host0():
        return {}
    value = report.build(
        results,
        train_resolution=plan.train_resolution,
        config=json.loads((plan.workdir / 'config.json').read_text()),
        environment=_environment(),
    )
    report.write(plan.workdir, value)
    files.write(plan.workdir / 'report.html', html.page(plan.workdir, value))
    log.info('\n%s', report.summary(value))
    log.info('The report is in %s.', plan.workdir / 'report.md')
    return {}


PHASES = {
    'train': phases.train_phase,
    'sweep': phases.sweep_phase,
    'adapt': phases.adapt_phase,
    'finetune': phases.finetune_phase,
    'evaluate': phases.evaluate_phase,
    'studies': analyze.studies_phase,
    'report': report_phase,
    'extract': phases.extract_phase,
    'analyze': analyze.analyze_phase,
}
TASKS = {
    'recipe': ('train', 'sweep', 'ADAPTATION', 'evaluate', 'studies', 'report'),
    'train': ('train',),
    'adapt': ('adapt',),
    'finetune': ('finetune',),
    'evaluate': ('evaluate',),
    'extract': ('extract',),
    'analyze': ('analyze',),
}


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
    settings.check_task(settings.read(config))
    workdir = epath.Path(workdir)
    check_restore_step(workdir, config.restore_step)
    if config.compilation_cache:
        jax.config.update('jax_compilation_cache_dir', str(workdir / config.compilation_cache))
        jax.config.update('jax_persistent_cache_min_compile_time_secs', 0.0)
    with hold(workdir):
        plan = make(config, workdir)
        names = (plan.adaptation if name == 'ADAPTATION' else name for name in TASKS[config.task])
        claim(workdir, config.to_dict(), _defaults(config), plan.images)
        _run_phases(plan, tuple(names))


def _defaults(config: Any) -> dict[str, Any]:
    """Return the default of every field, which the configs of `configs/` tell; {} of a config that does not."""
    return config.defaults() if hasattr(config, 'defaults') else {}


def _run_phases(plan: Plan, names: tuple[str, ...]) -> None:
    results: dict[str, Any] = {}
    for phase in names:
        path = plan.workdir / f'{phase}.json'
        done = processes.from_host0(read_json(path)) if phase != 'report' else None
        if done is not None:
            log.info('Phase %s is done: %s is there.', phase, path)
            results[phase] = done
            continue
        log.info('Phase %s begins.', phase)
        began = time.monotonic()
        results[phase] = PHASES[phase](plan, results)
        seconds = time.monotonic() - began + results[phase].pop('earlier_seconds', 0.0)
        results[phase]['seconds'] = seconds
        if processes.is_host0() and phase != 'report':
            write_json(path, results[phase])
        log.info('Phase %s took %s.', phase, duration(seconds))


def _environment() -> dict[str, Any]:
    """Say what the run ran on and how to run it again."""
    device = jax.devices()[0]
    packages = ('jax', 'flax', 'optax', 'orbax-checkpoint', 'grain', 'numpy', 'Pillow')
    return {
        'command': f'python -m fixres_jax.main {" ".join(sys.argv[1:])}',
        'date': datetime.datetime.now(datetime.UTC).strftime('%Y-%m-%d'),
        'devices': f'{jax.device_count()} x {device.device_kind} ({device.platform})',
        'commit': _commit(),
        'host': f'{platform.machine()}, {platform.system()}',
        'versions': {'python': platform.python_version()}
        | {name: importlib.metadata.version(name) for name in packages},
    }


def _commit() -> str:
    """Return the git commit that the program was started from, marked when files differ from it; '' without git."""
    command = 'git describe --always --dirty --abbrev=12 --match='.split()
    try:
        folder = epath.Path(__file__).parent
        done = subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=10, check=True)
        return done.stdout.strip()
    except (OSError, subprocess.SubprocessError):
        return ''

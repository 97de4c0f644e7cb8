"""launch/slurm.sh on a real Slurm of one node: submitted, told to stop, requeued, finished.

apt-get install slurm-wlm munge     # and root
python -m pytest -m slow tests/test_slurm.py
"""

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest

from conftest import QUICK_TO_COMPILE

ROOT = Path(__file__).resolve().parent.parent
CONFIG = """
ClusterName=test
SlurmctldHost={host}(127.0.0.1)
SlurmctldPort={port}
SlurmdPort={other_port}
AuthType=auth/munge
AuthInfo=socket={folder}/munge.socket,cred_expire=5
SlurmUser=root
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd.pid
SlurmctldLogFile={folder}/slurmctld.log
SlurmdLogFile={folder}/slurmd.log
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
JobAcctGatherType=jobacct_gather/none
SelectType=select/cons_tres
SelectTypeParameters=CR_CPU
ReturnToService=2
NodeName={host} NodeAddr=127.0.0.1 CPUs={cpus}
PartitionName=all Nodes=ALL Default=YES MaxTime=INFINITE State=UP
"""
SMALL = (
    '--config=configs/quickstart.py',
    '--config.model.width=8',
    '--config.model.bn_group_size=16',
    '--config.data.drawings.train=200',
    '--config.data.drawings.val=45',
    '--config.train.resolution=32',
    '--config.train.batch_size=16',
    '--config.train.epochs=8',
    '--config.adapt.max_iterations=3',
    '--config.adapt.weight_decays=(0.001,)',
    '--config.test.resolutions=(32, 48)',
    '--config.log_every_steps=1',
    '--config.checkpoint_every_steps=1000',
)


def free_port():
    with socket.socket() as probe:
        probe.bind(('127.0.0.1', 0))
        return probe.getsockname()[1]


@pytest.fixture
def slurm(tmp_path):
    """A Slurm of one node with two CPUs; the environment for its commands."""
    if not shutil.which('slurmctld') or os.geteuid():
        pytest.skip('needs root and the packages slurm-wlm and munge')
    for name in ('state', 'spool'):
        (tmp_path / name).mkdir()
    key = tmp_path / 'munge.key'
    key.write_bytes(os.urandom(128))
    key.chmod(0o600)
    tmp_path.chmod(0o755)
    configuration = tmp_path / 'slurm.conf'
    configuration.write_text(
        CONFIG.format(
            folder=tmp_path, host=socket.gethostname().split('.')[0], port=free_port(), other_port=free_port(), cpus=2
        )
    )
    environment = os.environ | {'SLURM_CONF': str(configuration)}
    names = ('socket', 'pid-file', 'log-file', 'seed-file')
    paths = [f'--{name}={tmp_path}/munge.{name.split("-")[0]}' for name in names]
    commands = (
        ['munged', '--foreground', '--force', f'--key-file={key}', *paths],
        ['slurmctld', '-D', '-f', str(configuration)],
        ['slurmd', '-D', '-f', str(configuration)],
    )
    daemons = []
    for command in commands:
        with open(tmp_path / f'{command[0]}.out', 'w') as out:
            daemons.append(subprocess.Popen(command, env=environment, stdout=out, stderr=out))
        time.sleep(2)
    try:
        wait(lambda: 'idle' in call(environment, 'sinfo', '--noheader', '--format=%T'), 60, 'the node to be idle')
        yield environment
    finally:
        for daemon in reversed(daemons):
            daemon.send_signal(signal.SIGTERM)
            daemon.wait(30)


def call(environment, *command):
    return subprocess.run(command, env=environment, capture_output=True, text=True, check=True, cwd=ROOT).stdout


def wait(condition, seconds, what):
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, f'waited {seconds} s for {what}'
        time.sleep(1)


def show(environment, job):
    """Return the fields of a job, name -> text."""
    words = call(environment, 'scontrol', 'show', 'job', job).split()
    return dict(word.partition('=')[::2] for word in words if '=' in word)


def submit(environment, output, *options):
    command = ['sbatch', '--parsable', f'--output={output}', '--open-mode=append', *options]
    return call(environment, *command).strip()


@pytest.fixture
def stand_in(slurm, tmp_path):
    """The environment for jobs whose tasks run a few lines of shell in the place of the interpreter."""
    script = tmp_path / 'python'

    def write(lines):
        script.write_text(f'#!/bin/bash\n{lines}\n')
        script.chmod(0o755)
        return slurm | {'PYTHON': str(script)}

    return write


@pytest.mark.slow
def test_a_job_is_requeued_when_its_tasks_were_stopped_and_ends_when_they_are_done(stand_in, tmp_path):
    environment = stand_in('echo "$SRUN_CPUS_PER_TASK cores: $*"; [ "${SLURM_RESTART_COUNT:-0}" = 2 ] || exit 75')
    options = ('--ntasks=1', '--cpus-per-task=2', 'launch/slurm.sh', '--config.task=train')
    job = submit(environment, tmp_path / 'job.log', *options)
    wait(lambda: show(environment, job)['JobState'] == 'COMPLETED', 300, 'the job to finish')
    assert show(environment, job)['Restarts'] == '2'
    printed = (tmp_path / 'job.log').read_text()
    assert printed.count('2 cores: -m fixres_jax.main --distributed --config.task=train') == 3, printed
    assert printed.count('the job is requeued') == 2


@pytest.mark.slow
@pytest.mark.parametrize('lines, code', [
    ('exit 2', '2:0'),  # wrong input
    ('[ "$SLURM_PROCID" = 1 ] && exit 1; sleep 5; exit 134', '134:0'),  # an error, and what it does to another task
    ('[ "$SLURM_PROCID" = 1 ] && exit 75; kill $$', '143:0'),  # killed from outside
])  # fmt: skip
def test_a_job_that_fails_is_not_requeued(stand_in, tmp_path, lines, code):
    environment = stand_in(lines)
    job = submit(environment, tmp_path / 'job.log', '--ntasks=2', 'launch/slurm.sh')
    wait(lambda: show(environment, job)['JobState'] == 'FAILED', 120, 'the job to fail')
    shown = show(environment, job)
    assert shown['Restarts'] == '0' and shown['ExitCode'] == code
    assert 'requeued' not in (tmp_path / 'job.log').read_text()


@pytest.mark.slow
def test_a_job_that_its_user_cancels_is_not_requeued(stand_in, tmp_path):
    environment = stand_in('trap "exit 75" TERM; echo started; while true; do sleep 0.1; done')
    job = submit(environment, tmp_path / 'job.log', '--ntasks=2', 'launch/slurm.sh')
    log = tmp_path / 'job.log'
    wait(lambda: log.exists() and log.read_text().count('started') == 2, 120, 'the tasks to start')
    call(environment, 'scancel', job)
    time.sleep(10)
    shown = show(environment, job)
    assert shown['JobState'] == 'CANCELLED' and shown['Restarts'] == '0'


@pytest.mark.slow
def test_a_job_is_stopped_by_the_signal_requeued_and_finished(slurm, tmp_path):
    workdir, output = tmp_path / 'run', tmp_path / 'job.log'
    environment = slurm | {
        'PYTHON': sys.executable,
        'JAX_PLATFORMS': 'cpu',
        'XLA_FLAGS': QUICK_TO_COMPILE,
        'JAX_COMPILATION_CACHE_DIR': str(tmp_path / 'cache'),
        'JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS': '0',
    }
    job = submit(environment, output, '--ntasks=2', 'launch/slurm.sh', f'--workdir={workdir}', *SMALL)
    metrics = workdir / 'train' / 'metrics.jsonl'
    wait(lambda: metrics.exists() and len(metrics.read_text().splitlines()) > 20, 900, 'the run to train')
    call(environment, 'scancel', '--signal=TERM', job)

    wait(lambda: show(environment, job)['Restarts'] == '1', 120, 'the job to be requeued')
    assert not (workdir / 'report.json').exists()
    wait(lambda: show(environment, job)['JobState'] == 'COMPLETED', 1500, 'the job to finish')
    assert json.loads((workdir / 'report.json').read_text())['numbers']['adapted']['count'] == 45
    steps = [json.loads(line)['step'] for line in metrics.read_text().splitlines()]
    assert steps == list(range(1, steps[-1] + 1))
    printed = output.read_text()
    assert 'told to stop; stopped at step' in printed and 'the job is requeued' in printed
    assert 'train goes on from step' in printed

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


@pytest.mark.slow
def test_a_job_is_stopped_by_the_signal_requeued_and_finished(slurm, tmp_path):
    workdir, output = tmp_path / 'run', tmp_path / 'job.log'
    environment = slurm | {
        'PYTHON': sys.executable,
        'JAX_PLATFORMS': 'cpu',
        'XLA_FLAGS': '--xla_backend_optimization_level=0 --xla_llvm_disable_expensive_passes=true',
        'JAX_COMPILATION_CACHE_DIR': str(tmp_path / 'cache'),
        'JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS': '0',
    }
    command = ['sbatch', '--parsable', '--ntasks=2', f'--output={output}', 'launch/slurm.sh', f'--workdir={workdir}']
    job = call(environment, *command, *SMALL).strip()
    metrics = workdir / 'train' / 'metrics.jsonl'
    wait(lambda: metrics.exists() and len(metrics.read_text().splitlines()) > 20, 900, 'the run to train')
    call(environment, 'scancel', '--signal=TERM', job)

    def restarts():
        lines = call(environment, 'scontrol', 'show', 'job', job).split()
        return next(line for line in lines if line.startswith('Restarts=')), next(
            line for line in lines if line.startswith('JobState=')
        )

    wait(lambda: restarts()[0] == 'Restarts=1', 120, 'the job to be requeued')
    assert not (workdir / 'report.json').exists()
    wait(lambda: restarts()[1] == 'JobState=COMPLETED', 1500, 'the job to finish')
    assert json.loads((workdir / 'report.json').read_text())['numbers']['adapted']['count'] == 45
    steps = [json.loads(line)['step'] for line in metrics.read_text().splitlines()]
    assert steps == list(range(1, steps[-1] + 1))
    printed = output.read_text()
    assert 'told to stop; stopped at step' in printed and 'the job is requeued' in printed
    assert 'train goes on from step' in printed

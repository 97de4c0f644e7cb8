"""What the launchers rely on: fields of the JobSet, files that the container recipes name, shell that parses."""

import math
import os
import re
import shlex
import shutil
import subprocess
import venv
from pathlib import Path

import pytest

yaml = pytest.importorskip('yaml')

ROOT = Path(__file__).resolve().parent.parent
LAUNCH = ROOT / 'launch'
INSTRUCTIONS = {'FROM', 'WORKDIR', 'COPY', 'RUN', 'ENV', 'ENTRYPOINT'}


@pytest.fixture(scope='module')
def job():
    return yaml.safe_load((LAUNCH / 'jobset.yaml').read_text())


def test_the_jobset_runs_one_pod_for_each_machine_of_the_slice(job):
    assert (job['apiVersion'], job['kind']) == ('jobset.x-k8s.io/v1alpha2', 'JobSet')
    annotations = job['metadata']['annotations']
    assert annotations['alpha.jobset.sigs.k8s.io/exclusive-topology'] == 'cloud.google.com/gke-nodepool'
    assert job['spec']['failurePolicy']['maxRestarts'] > 0
    (slice_,) = job['spec']['replicatedJobs']
    spec = slice_['template']['spec']
    pod = spec['template']['spec']
    (container,) = pod['containers']
    chips = math.prod(int(side) for side in pod['nodeSelector']['cloud.google.com/gke-tpu-topology'].split('x'))
    assert spec['parallelism'] == spec['completions'] == chips / container['resources']['limits']['google.com/tpu']
    assert spec['completionMode'] == 'Indexed' and spec['backoffLimit'] == 0 and slice_['replicas'] == 1
    assert container['resources']['requests'] == container['resources']['limits']
    assert pod['restartPolicy'] == 'Never' and pod['terminationGracePeriodSeconds'] >= 120


def test_the_jobset_starts_the_program_with_shared_memory(job):
    pod = job['spec']['replicatedJobs'][0]['template']['spec']['template']['spec']
    (container,) = pod['containers']
    assert {'--distributed'} <= set(container['args'])
    assert {'--config', '--workdir', '--config.data.source'} <= {a.partition('=')[0] for a in container['args']}
    assert [variable['name'] for variable in container['env']] == ['JAX_COMPILATION_CACHE_DIR']
    (mount,) = container['volumeMounts']
    (volume,) = pod['volumes']
    assert mount == {'name': volume['name'], 'mountPath': '/dev/shm'} and volume['emptyDir']['medium'] == 'Memory'
    config = next(a for a in container['args'] if a.startswith('--config=')).removeprefix('--config=')
    assert (ROOT / config.split(':')[0]).is_file()


def instructions(path):
    text = re.sub(r'\\\n', ' ', path.read_text())
    lines = [line for line in text.splitlines() if line and not line.startswith('#')]
    return [line.split(maxsplit=1) for line in lines]


@pytest.mark.parametrize('name, extra', [('cuda', 'jax[cuda13]'), ('tpu', 'jax[tpu]')])
def test_a_container_recipe_installs_and_starts_the_program(name, extra):
    steps = instructions(LAUNCH / f'Dockerfile.{name}')
    assert {keyword for keyword, _ in steps} == INSTRUCTIONS and steps[0][0] == 'FROM'
    for keyword, rest in steps:
        if keyword == 'COPY':
            assert (ROOT / shlex.split(rest)[0]).exists(), rest
    (command,) = [rest for keyword, rest in steps if keyword == 'RUN']
    assert shlex.split(command) == ['pip', 'install', '--no-cache-dir', '-r', 'requirements.txt', extra]
    assert yaml.safe_load(steps[-1][1]) == ['python', '-m', 'fixres_jax.main']


@pytest.mark.slow
@pytest.mark.parametrize('name', ['tpu', 'cuda'])
def test_the_commands_of_a_container_recipe_run_in_a_clean_environment(name, tmp_path):
    venv.create(tmp_path / 'venv', with_pip=True)
    folder = tmp_path / 'fixres-jax'
    folder.mkdir()
    environment = {'PATH': f'{tmp_path}/venv/bin:{os.environ["PATH"]}', 'HOME': str(tmp_path), 'JAX_PLATFORMS': 'cpu'}
    for keyword, rest in instructions(LAUNCH / f'Dockerfile.{name}'):
        if keyword == 'COPY':
            source, target = shlex.split(rest)
            subprocess.run(['cp', '-r', ROOT / source, folder / target], check=True)
        elif keyword == 'RUN':
            subprocess.run(shlex.split(rest), cwd=folder, env=os.environ | environment, check=True)
        elif keyword == 'ENTRYPOINT':
            options = ['--config=configs/quickstart.py', f'--workdir={tmp_path}/run', '--config.task=train']
            options += [f'--config.data.drawings.{split}=600' for split in ('train', 'val')]
            options += ['--config.train.epochs=0.03']
            subprocess.run([*yaml.safe_load(rest), *options], cwd=folder, env=environment, check=True)
    assert (tmp_path / 'run' / 'train' / 'fixres.json').exists()


@pytest.mark.parametrize('path', sorted(LAUNCH.glob('*.sh')), ids=lambda path: path.name)
def test_shell_scripts_parse_and_pass_shellcheck(path):
    subprocess.run(['bash', '-n', str(path)], check=True)
    if not shutil.which('shellcheck'):
        pytest.skip('shellcheck is not installed')
    subprocess.run(['shellcheck', str(path)], check=True)


def test_the_slurm_script_asks_for_the_signal_and_the_requeue():
    text = (LAUNCH / 'slurm.sh').read_text()
    assert '\n#SBATCH --signal=TERM@300\n' in text and '\n#SBATCH --requeue\n' in text
    refused = subprocess.run(['bash', str(LAUNCH / 'slurm.sh'), '--config', 'x'], capture_output=True, text=True)
    assert refused.returncode == 2 and '--workdir is missing' in refused.stderr


def test_the_tpu_script_refuses_what_it_does_not_know():
    for arguments in ([], ['fly', 'name', 'zone']):
        refused = subprocess.run(['bash', str(LAUNCH / 'tpu.sh'), *arguments], capture_output=True, text=True)
        assert refused.returncode == 2 and 'launch/tpu.sh' in refused.stderr


def test_the_tpu_script_runs_one_command_on_all_workers(tmp_path):
    (tmp_path / 'gcloud').write_text('#!/bin/sh\nprintf "%s\\n" "$@"\n')
    (tmp_path / 'gcloud').chmod(0o755)
    done = subprocess.run(
        ['bash', str(LAUNCH / 'tpu.sh'), 'run', 'name', 'zone', '--config', 'c.py', '--workdir', 'gs://b/a run'],
        env={'PATH': f'{tmp_path}:/usr/bin:/bin'},
        capture_output=True,
        text=True,
        check=True,
    )
    arguments = done.stdout.splitlines()
    assert '--worker=all' in arguments and arguments[:4] == ['compute', 'tpus', 'tpu-vm', 'ssh']
    assert shlex.split(done.stdout.split('--command=')[1])[-6:] == [
        'fixres_jax.main', '--distributed', '--config', 'c.py', '--workdir', 'gs://b/a run',
    ]  # fmt: skip

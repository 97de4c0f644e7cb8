"""What the launchers rely on: fields of the JobSet, files that the container recipes name, shell that parses."""

import contextlib
import itertools
import math
import os
import re
import shlex
import shutil
import signal
import subprocess
import time
import tomllib
import venv
from pathlib import Path

import pytest

from fixres_jax.machines import preemption

yaml = pytest.importorskip('yaml')

ROOT = Path(__file__).resolve().parent.parent
LAUNCH = ROOT / 'launch'
SCRIPTS = [*sorted(LAUNCH.glob('*.sh')), *sorted((ROOT / '.ci').iterdir())]
INSTRUCTIONS = {'FROM', 'WORKDIR', 'COPY', 'RUN', 'ENV', 'ENTRYPOINT'}


@pytest.fixture(scope='module')
def documents():
    return {document['kind']: document for document in yaml.safe_load_all((LAUNCH / 'jobset.yaml').read_text())}


@pytest.fixture(scope='module')
def job(documents):
    return documents['JobSet']


def test_the_jobs_template_is_valid_for_kubernetes(documents):
    kubernetes_validate = pytest.importorskip('kubernetes_validate')
    (slice_,) = documents['JobSet']['spec']['replicatedJobs']
    job = {'apiVersion': 'batch/v1', 'kind': 'Job', 'metadata': {'name': slice_['name']}, **slice_['template']}
    for document in (job, documents['ServiceAccount']):
        kubernetes_validate.validate(document, kubernetes_validate.latest_version(), strict=True)


def test_the_jobset_may_use_the_bucket_and_spot_nodes(documents):
    pod = documents['JobSet']['spec']['replicatedJobs'][0]['template']['spec']['template']['spec']
    assert pod['serviceAccountName'] == documents['ServiceAccount']['metadata']['name']
    taint = {'key': 'cloud.google.com/gke-spot', 'value': 'true', 'effect': 'NoSchedule'}
    assert pod['tolerations'] == [taint | {'operator': 'Equal'}]


def what_follows(job, code):
    """Return what the JobSet does after a container has exited with a code, by the rules of both controllers."""
    (slice_,) = job['spec']['replicatedJobs']
    spec = slice_['template']['spec']
    (container,) = spec['template']['spec']['containers']
    reason = 'BackoffLimitExceeded'
    for rule in spec['podFailurePolicy']['rules']:
        wanted = rule['onExitCodes']
        assert wanted['containerName'] == container['name'] and 0 not in wanted['values']
        if (code in wanted['values']) == (wanted['operator'] == 'In'):
            assert rule['action'] == 'FailJob'
            reason = 'PodFailurePolicy'
            break
    if code == 0:
        return 'done'
    rules = (rule for rule in job['spec']['failurePolicy']['rules'] if reason in rule['onJobFailureReasons'])
    return next((rule['action'] for rule in rules), 'RestartJobSet')


@pytest.mark.parametrize('code, expected', [
    (0, 'done'),
    (2, 'FailJobSet'),  # wrong input
    (preemption.CODES[signal.SIGTERM], 'RestartJobSet'),  # drained
    (1, 'RestartJobSet'),  # another process is gone
    (128 + signal.SIGKILL, 'RestartJobSet'),
])  # fmt: skip
def test_the_jobset_restarts_what_was_stopped_and_not_wrong_input(job, code, expected):
    assert what_follows(job, code) == expected


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


@pytest.mark.parametrize('name, extras', [('cuda', ('cuda',)), ('tpu', ('tpu', 'gcs'))])
def test_a_container_recipe_installs_and_starts_the_program(name, extras):
    steps = instructions(LAUNCH / f'Dockerfile.{name}')
    assert {keyword for keyword, _ in steps} == INSTRUCTIONS and steps[0][0] == 'FROM'
    for keyword, rest in steps:
        if keyword == 'COPY':
            assert (ROOT / shlex.split(rest)[0]).exists(), rest
    (command,) = [rest for keyword, rest in steps if keyword == 'RUN']
    optional = tomllib.loads((ROOT / 'pyproject.toml').read_text())['project']['optional-dependencies']
    packages = list(itertools.chain(*(optional[extra] for extra in extras)))
    assert shlex.split(command) == ['pip', 'install', '--no-cache-dir', '-r', 'requirements.txt', *packages]
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


@pytest.mark.parametrize('path', SCRIPTS, ids=lambda path: path.name)
def test_shell_scripts_parse_and_pass_shellcheck(path):
    subprocess.run(['bash', '-n', str(path)], check=True)
    if not shutil.which('shellcheck'):
        pytest.skip('shellcheck is not installed')
    subprocess.run(['shellcheck', str(path)], check=True)


@pytest.mark.parametrize('path', sorted((ROOT / '.github' / 'workflows').glob('*.yml')), ids=lambda path: path.name)
def test_a_workflow_runs_scripts_that_are_there(path):
    (job,) = yaml.safe_load(path.read_text())['jobs'].values()
    scripts = [step['run'].split()[0] for step in job['steps'] if step.get('run', '').startswith('.ci/')]
    assert scripts
    for script in scripts:
        assert os.access(ROOT / script, os.X_OK), script


def test_the_newest_releases_are_those_without_upper_bounds():
    (command,) = [line for line in (ROOT / '.ci' / 'newest').read_text().splitlines() if line.startswith('sed ')]
    command = command.partition(' >')[0]
    newest = subprocess.run(['bash', '-c', command], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    lines = [line for line in newest.splitlines() if line and not line.startswith('#')]
    assert len(lines) > 15
    for line in lines:
        assert '<' not in line.partition(';')[0] and '>=' in line, line


@pytest.fixture
def commands(tmp_path):
    """Put shell scripts in the place of programs; the environment that finds them."""

    def write(**scripts):
        folder = tmp_path / 'bin'
        folder.mkdir(exist_ok=True)
        for name, lines in scripts.items():
            (folder / name).write_text(f'#!/bin/bash\n{lines}\n')
            (folder / name).chmod(0o755)
        return {'PATH': f'{folder}:/usr/bin:/bin', 'HOME': str(tmp_path), 'TMP': str(tmp_path)}

    return write


def test_the_slurm_script_asks_for_the_signal_and_the_requeue():
    text = (LAUNCH / 'slurm.sh').read_text()
    assert '\n#SBATCH --signal=TERM@300\n' in text and '\n#SBATCH --requeue\n' in text


@pytest.mark.parametrize('code, requeued', [(0, False), (1, False), (2, False), (75, True), (134, False), (143, False)])
def test_a_slurm_job_is_requeued_by_the_exit_code_of_a_stopped_run_alone(commands, code, requeued):
    assert (code == preemption.CODES[signal.SIGTERM]) == requeued
    scripts = {
        'srun': f'echo "$SRUN_CPUS_PER_TASK cores: $*"; exit {code}',
        'scontrol': 'echo "scontrol $*"',
    }
    environment = commands(**scripts) | {'SLURM_JOB_ID': '7', 'SLURM_CPUS_PER_TASK': '6', 'PYTHON': 'py'}
    ran = subprocess.run(
        ['bash', str(LAUNCH / 'slurm.sh'), '--workdir', 'a run'], env=environment, capture_output=True, text=True
    )
    assert ran.returncode == code and ran.stdout.startswith('6 cores: '), ran
    assert ran.stdout.splitlines()[0].endswith('py -m fixres_jax.main --distributed --workdir a run')
    assert ('scontrol requeue 7' in ran.stdout) == requeued


def test_the_tpu_script_refuses_what_it_does_not_know():
    for arguments in ([], ['fly', 'name', 'zone']):
        refused = subprocess.run(['bash', str(LAUNCH / 'tpu.sh'), *arguments], capture_output=True, text=True)
        assert refused.returncode == 2 and 'launch/tpu.sh' in refused.stderr


# Runs the command of `gcloud compute tpus tpu-vm ssh` in the home of each worker; there are two.
GCLOUD = """
for argument in "$@"; do
  case $argument in
    --worker=all) workers='0 1' ;;
    --worker=*) workers=${argument#--worker=} ;;
    --command=*) command=${argument#--command=} ;;
  esac
done
for worker in $workers; do
  mkdir -p "$TMP/home$worker" && cd "$TMP/home$worker" && HOME=$PWD bash -c "$command" || exit
done
"""
# Prints what it is given, and then works until it is told to stop.
PROGRAM = """#!/bin/bash
trap 'echo stopped; exit 75' TERM
printf '%s\n' "$@" "in $PWD"
while true; do sleep 0.1; done
"""


def tpu(environment, *arguments):
    # Tests under nohup ignore the signal, and so would the script.
    script = ['env', '--default-signal=HUP', 'bash', str(LAUNCH / 'tpu.sh')]
    command = [*script, arguments[0], 'name', 'zone', *arguments[1:]]
    return subprocess.Popen(
        command,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )


def ended(process):
    """Return the exit code of a process, and what it printed."""
    printed = process.communicate(timeout=60)[0]
    return process.returncode, printed


def wait_until(condition):
    end = time.monotonic() + 30
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.05)


def test_a_run_on_a_tpu_slice_survives_a_lost_connection_and_is_stopped(commands, tmp_path):
    environment = commands(gcloud=GCLOUD)
    homes = [tmp_path / f'home{worker}' for worker in (0, 1)]
    logs = [home / 'fixres.log' for home in homes]
    for home in homes:
        program = home / 'fixres-jax' / '.venv' / 'bin' / 'python'
        program.parent.mkdir(parents=True)
        program.write_text(PROGRAM)
        program.chmod(0o755)
    options = ('--config', 'c.py', '--workdir', 'gs://b/a run')
    expected = ['-m', 'fixres_jax.main', '--distributed', *options]
    try:
        connection = tpu(environment, 'run', *options)
        wait_until(lambda: all(log.exists() and 'in ' in log.read_text() for log in logs))
        os.killpg(connection.pid, signal.SIGHUP)
        ended(connection)
        for home, log in zip(homes, logs, strict=True):
            os.kill(int((home / 'fixres.pid').read_text()), 0)  # it is still there
            assert log.read_text().splitlines() == [*expected, f'in {home}/fixres-jax']
        code, printed = ended(tpu(environment, 'run', *options))
        assert code == 2 and 'a run goes on here' in printed
        following = tpu(environment, 'follow')
        assert ended(tpu(environment, 'stop'))[0] == 0 and 'stopped' in ended(following)[1]
        assert all(log.read_text().count('stopped') == 1 for log in logs)
        again = tpu(environment, 'run', *options)
        wait_until(lambda: logs[1].read_text().count('in /') == 2)
        assert ended(tpu(environment, 'stop'))[0] == 0 == ended(again)[0]
    finally:
        for home in homes:
            with contextlib.suppress(OSError, ValueError):
                os.killpg(int((home / 'fixres.pid').read_text()), signal.SIGKILL)


def test_a_tpu_slice_may_be_set_up_twice(commands, tmp_path):
    environment = commands(gcloud=GCLOUD, python3='echo "python3 $*"')
    repository = tmp_path / 'a repository'

    def git(*arguments):
        who = {f'GIT_{role}_{what}': 'somebody' for role in ('AUTHOR', 'COMMITTER') for what in ('NAME', 'EMAIL')}
        subprocess.run(['git', '-C', str(repository), *arguments], env=environment | who, check=True)

    repository.mkdir()
    git('init', '--quiet')
    for content in ('old', 'new'):
        (repository / 'file').write_text(content)
        git('add', '.')
        git('commit', '--quiet', '-m', content)
        code, printed = ended(tpu(environment, 'setup', f'file://{repository}'))
        assert code == 0, printed
        for worker in (0, 1):
            assert (tmp_path / f'home{worker}' / 'fixres-jax' / 'file').read_text() == content
        assert re.findall('python3 -m uv pip install .*', printed) == 2 * [
            'python3 -m uv pip install --quiet --python .venv/bin/python --editable .[tpu,gcs]'
        ], printed
        assert printed.count('uv venv --quiet --allow-existing --python 3.12 .venv') == 2
    code, printed = ended(tpu(environment, 'setup', f'file://{tmp_path}/none'))
    assert code and 'uv' not in printed, printed

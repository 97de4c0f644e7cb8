"""What happens to files: damaged, of another run, on a full or read-only disk, in use, or of a dead process."""

import contextlib
import errno
import json
import logging
import os
import re
import signal
import subprocess
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from etils import epath

from fixres_jax import models
from fixres_jax.core import disk, trees
from fixres_jax.core.errors import RunError, UsageError
from fixres_jax.data import pipeline, sources, transforms
from fixres_jax.machines import sharding
from fixres_jax.runs import workdir
from fixres_jax.training import loop, state
from fixres_jax.training.optimization import make_sgd
from fixres_jax.training.schedules import make_schedule
from fixres_jax.training.state import TrainState
from fixres_jax.weights import checkpoint, state_dicts, torch_weights
from fixres_jax.weights.checkpoint import Checkpoints

ROOT = Path(__file__).resolve().parent.parent
TX = make_sgd(make_schedule('constant', 0.1, num_steps=5), momentum=0.9, weight_decay=1e-4)


@pytest.fixture(scope='module')
def mesh():
    return sharding.make_mesh()


def make_state(mesh, step, *, trainable='.*', classes=3, name='conv1', layout='replicated'):
    rng = np.random.default_rng(step)
    params = {name: {'kernel': np.float32(rng.random((64, 64)))}, 'fc': {'bias': np.zeros(classes, np.float32)}}
    selected, _ = trees.split(params, trainable)
    made = TrainState(jnp.int32(step), params, {'bn1': {'mean': np.zeros(3, np.float32)}}, TX.init(selected))
    return jax.device_put(made, sharding.place(made, mesh, layout))


def abstract(made):
    return jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding), made)


def restore(checkpoints, like, step=None):
    """Return the state that was saved, with the shapes and the shardings of another."""
    return state.from_items(checkpoints.restore(abstract(like).items, step))


@pytest.fixture
def saved(tmp_path, mesh):
    """A folder with checkpoints of steps 1 and 2, and the manager that wrote them."""
    with contextlib.closing(Checkpoints(epath.Path(tmp_path), 3)) as checkpoints:
        for step in (1, 2):
            checkpoints.save(step, make_state(mesh, step).items)
        checkpoints.wait()
        yield tmp_path, checkpoints


def largest_file(folder):
    return max((path for path in folder.rglob('*') if path.is_file()), key=lambda path: path.stat().st_size)


def flip(path):
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(bytes(data))


def truncate(path):
    path.write_bytes(path.read_bytes()[:-10])


@pytest.mark.parametrize('damage', [flip, truncate, Path.unlink])
@pytest.mark.parametrize('item', ['model', 'training'])
def test_a_damaged_checkpoint_is_named_and_the_one_before_loads(saved, mesh, damage, item):
    folder, checkpoints = saved
    path = largest_file(folder / 'checkpoints' / '2' / item)
    damage(path)
    with pytest.raises(RunError) as error:
        restore(checkpoints, make_state(mesh, 0))
    assert str(path) in str(error.value) and '--config.restore_step=1' in str(error.value)
    restored = restore(checkpoints, make_state(mesh, 0), 1)
    jax.tree.map(np.testing.assert_array_equal, restored, make_state(mesh, 1))
    assert checkpoints.steps == [1]
    checkpoints.save(2, make_state(mesh, 2).items)  # The run goes over the damaged step again.
    checkpoints.wait()
    assert int(restore(checkpoints, make_state(mesh, 0)).step) == 2


def test_a_damaged_network_is_named(saved):
    folder, _ = saved
    checkpoint.write_metadata(folder, {'architecture': 'none'})
    checkpoint.load_model(folder)
    path = largest_file(folder / 'checkpoints' / '2' / 'model')
    flip(path)
    with pytest.raises(RunError, match='has other bytes than when it was written'):
        checkpoint.load_model(folder)


@pytest.mark.parametrize(
    'other, message',
    [
        ({'name': 'conv2'}, 'another network.*\n.*missing: params/conv2/kernel'),
        ({'classes': 4}, r'another network.*\n.*shape of params/fc/bias: expected \(4,\), found \(3,\)'),
        ({'trainable': 'fc/.*'}, 'another optimizer or selection of trained parameters'),
    ],
)
def test_a_checkpoint_of_another_run_is_refused(saved, mesh, other, message):
    _, checkpoints = saved
    with pytest.raises(UsageError, match=message):
        restore(checkpoints, make_state(mesh, 0, **other))


def test_a_step_that_is_not_there_is_refused(saved, mesh):
    with pytest.raises(UsageError, match=r'no checkpoint of step 7, only of \[1, 2\]'):
        restore(saved[1], make_state(mesh, 0), 7)


@pytest.mark.parametrize('layouts', [('replicated', 'fsdp'), ('fsdp', 'replicated')])
def test_a_checkpoint_moves_between_layouts_and_devices(tmp_path, mesh, layouts):
    with contextlib.closing(Checkpoints(epath.Path(tmp_path))) as checkpoints:
        written = make_state(mesh, 1, layout=layouts[0])
        checkpoints.save(1, written.items)
        checkpoints.wait()
        small = sharding.make_mesh(jax.devices()[:2])
        restored = restore(checkpoints, make_state(small, 0, layout=layouts[1]))
    jax.tree.map(np.testing.assert_array_equal, restored, written)
    assert len(restored.params['conv1']['kernel'].sharding.device_set) == 2


@contextlib.contextmanager
def mounted(path, options):
    """Mount a file system of its own, which needs root."""
    path.mkdir(exist_ok=True)
    if subprocess.run(['mount', '-t', 'tmpfs', '-o', options, 'tmpfs', str(path)], capture_output=True).returncode:
        pytest.skip('mounting a file system needs root')
    try:
        yield path
    finally:
        subprocess.run(['umount', '-l', str(path)], check=True)


def save_until_full(place):
    """Save steps 1, 2, ... to a small disk; prints the one line it ends in."""
    checkpoints = Checkpoints(epath.Path(place), 9)
    try:
        for step in range(1, 9):
            checkpoints.save(step, make_state(sharding.make_mesh(), step).items)
            checkpoints.wait()
    except RunError as error:
        print(error)


@contextlib.contextmanager
def small_disks(folder):
    """Mount disks of which each fills up while another file is written."""
    sizes = ('150k', '180k', '200k', '220k', '260k')
    with contextlib.ExitStack() as stack:
        yield [stack.enter_context(mounted(folder / size, f'size={size}')) for size in sizes]


def test_a_full_disk_ends_in_one_line_and_leaves_the_last_checkpoint(tmp_path, mesh):
    with small_disks(tmp_path) as places:
        # In a process of its own: what the failed writers' threads still throw is not this test's.
        code = f'from tests.test_durability import *\nfor place in {[*map(str, places)]}: save_until_full(place)'
        environment = os.environ | {'TPU_SKIP_MDS_QUERY': '1'}
        ran = subprocess.run([sys.executable, '-c', code], cwd=ROOT, env=environment, capture_output=True, text=True)
        for place, line in zip(places, ran.stdout.splitlines(), strict=True):
            with contextlib.closing(Checkpoints(epath.Path(place), 9)) as again:
                good = again.steps
                assert good and good == list(range(1, len(good) + 1)), ran.stderr
                restored = restore(again, make_state(mesh, 0))
            assert re.search(f'could not be written.*no space left.*The last good one there: step {good[-1]}', line), (
                line
            )
            jax.tree.map(np.testing.assert_array_equal, restored, make_state(mesh, good[-1]))
    assert ran.stderr == '', 'the line on the output is all there is to say'


def test_a_network_that_finds_no_room_ends_in_one_line(tmp_path):
    with mounted(tmp_path / 'disk', 'size=100k') as place:
        with pytest.raises(RunError, match='could not be written to .*no space left on device.. Make room'):
            checkpoint.save_model(
                epath.Path(place) / 'x', {'params': {'a': np.random.default_rng(0).random(65536)}}, {}
            )


@pytest.mark.parametrize('module, arguments', [
    ('prepare', ['DATA', 'DISK/out', '--workers', '0']),
    ('prepare', ['DATA', 'DISK/out', '--workers', '2']),
    ('convert', ['resnet18', 'WEIGHTS', 'DISK/out']),
    ('convert', ['--to-torch', 'NETWORK', 'DISK/x.safetensors']),
    ('convert', ['--to-torch', 'NETWORK', 'DISK/x.pth']),
])  # fmt: skip
def test_commands_that_find_no_room_end_in_one_line(tmp_path, tiny_folder, module, arguments):
    model = models.create('resnet18', 4, width=8)
    variables = jax.device_get(model.init(jax.random.key(0)))
    checkpoint.save_model(tmp_path / 'network', variables, {'architecture': 'resnet18'})
    state_dicts.save(tmp_path / 'x.safetensors', torch_weights.to_torch(variables, model), {})
    with mounted(tmp_path / 'disk', 'size=100k') as place:
        places = {
            'DATA': tiny_folder,
            'DISK': place,
            'WEIGHTS': tmp_path / 'x.safetensors',
            'NETWORK': tmp_path / 'network',
        }
        command = [sys.executable, '-m', f'fixres_jax.{module}']
        for argument in arguments:
            head, slash, tail = argument.partition('/')
            command.append(f'{places.get(head, head)}{slash}{tail}')
        environment = os.environ | {'TPU_SKIP_MDS_QUERY': '1'}
        ran = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
        left = [path.name for path in place.rglob('*') if path.is_file() and not path.name.startswith('.')]
    assert ran.returncode == 1, ran.stderr
    *progress, line = ran.stderr.splitlines()  # of a machine that is slow
    assert all(one.startswith('prepare train: ') for one in progress), ran.stderr
    assert 'no space left on device' in line and 'Make room or mend the disk' in line, ran.stderr
    assert not left


def test_only_errors_of_the_disk_are_kept_from_the_log(caplog):
    disk.quieten()
    log = logging.getLogger('absl')
    for error in (OSError(errno.ENOSPC, os.strerror(errno.ENOSPC)), ValueError('another')):
        log.error('%s', type(error).__name__, exc_info=error)
    log.error('no exception')
    assert [record.getMessage() for record in caplog.records] == ['ValueError', 'no exception']


def test_a_network_is_loaded_without_a_word(saved):
    folder, _ = saved
    checkpoint.write_metadata(folder, {'architecture': 'none'})
    code = 'import sys; from fixres_jax.weights import checkpoint; checkpoint.load_model(sys.argv[1])'
    environment = os.environ | {'TPU_SKIP_MDS_QUERY': '1'}
    command = [sys.executable, '-c', code, str(folder)]
    ran = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
    assert (ran.returncode, ran.stderr) == (0, '')


def test_a_read_only_workdir_is_refused(tmp_path):
    with mounted(tmp_path / 'disk', 'size=100k,ro') as disk:
        with pytest.raises(UsageError, match='cannot be written: Read-only file system. Give another --workdir'):
            with workdir.hold(epath.Path(disk)):
                pass


def test_a_workdir_has_one_run_at_a_time(tmp_path):
    folder = epath.Path(tmp_path)
    with workdir.hold(folder):
        with pytest.raises(UsageError, match=f'in use by another run .process {os.getpid()} on'):
            with workdir.hold(folder):
                pass
    with workdir.hold(folder):
        pass


def test_a_killed_run_leaves_its_workdir_free(tmp_path):
    code = (
        'import sys, time; from etils import epath; from fixres_jax.runs import workdir\n'
        'with workdir.hold(epath.Path(sys.argv[1])): print("held", flush=True); time.sleep(60)'
    )
    process = subprocess.Popen([sys.executable, '-c', code, str(tmp_path)], stdout=subprocess.PIPE, text=True)
    assert process.stdout.readline() == 'held\n'
    with pytest.raises(UsageError, match=f'process {process.pid} on'):
        with workdir.hold(epath.Path(tmp_path)):
            pass
    process.kill()
    process.wait()
    process.stdout.close()
    with workdir.hold(epath.Path(tmp_path)):
        pass


IMAGES = {'training': {'count': 96, 'names': 'ab'}, 'test': {'count': 24, 'names': 'cd'}}


def claim(folder, config, defaults=None, images=IMAGES):
    workdir.claim(epath.Path(folder), config, defaults or {}, images)


def test_execution_fields_may_change_and_others_may_not(tmp_path):
    claim(tmp_path, {'seed': 1, 'keep_checkpoints': 2, 'train': {'lr': 0.1}})
    claim(tmp_path, {'seed': 1, 'keep_checkpoints': 3, 'train': {'lr': 0.1}})
    with pytest.raises(UsageError, match='train.lr was 0.1, now 0.2'):
        claim(tmp_path, {'seed': 1, 'keep_checkpoints': 3, 'train': {'lr': 0.2}})
    assert json.loads((tmp_path / 'config.json').read_text())['keep_checkpoints'] == 3


def test_a_field_that_a_workdir_is_older_than_had_its_default(tmp_path):
    claim(tmp_path, {'seed': 1, 'train': {'lr': 0.1}})
    defaults = {'seed': 0, 'train': {'lr': 0.02, 'ratio': (0.75, 1.5)}, 'study': ''}
    config = {'seed': 1, 'train': {'lr': 0.1, 'ratio': (0.75, 1.5)}, 'study': ''}
    with pytest.raises(UsageError, match=r'train.ratio was \[0.75, 1.5\], now \[1.0, 1.5\]'):
        claim(tmp_path, config | {'train': {'lr': 0.1, 'ratio': (1.0, 1.5)}}, defaults)
    with pytest.raises(UsageError, match='seed was 1, now 0'):  # A field that was there is what it was.
        claim(tmp_path, config | {'seed': 0}, defaults)
    claim(tmp_path, config, defaults)
    assert json.loads((tmp_path / 'config.json').read_text())['train']['ratio'] == [0.75, 1.5]
    with pytest.raises(UsageError, match=r'study was \'\', now \'roc\''):
        claim(tmp_path, config | {'study': 'roc'}, defaults)


def test_a_workdir_goes_on_with_the_images_that_it_began_with(tmp_path):
    claim(tmp_path, {'seed': 1})
    more = IMAGES | {'training': {'count': 97, 'names': 'ac'}}
    with pytest.raises(UsageError, match='began with 96 training images, now 97. Bring back'):
        claim(tmp_path, {'seed': 1}, images=more)
    others = IMAGES | {'test': {'count': 24, 'names': 'ce'}}
    with pytest.raises(UsageError, match='24 test images, now 24 of other names'):
        claim(tmp_path, {'seed': 1}, images=others)
    claim(tmp_path, {'seed': 1})


def test_a_refusal_names_the_versions_where_they_differ(tmp_path, monkeypatch):
    monkeypatch.setattr(workdir, '__version__', '7.1')
    claim(tmp_path, {'seed': 1})
    with pytest.raises(UsageError) as error:
        claim(tmp_path, {'seed': 2})
    assert '7.1' not in str(error.value)
    monkeypatch.setattr(workdir, '__version__', '7.2')
    claim(tmp_path, {'seed': 1})
    for different in ({'config': {'seed': 2}}, {'config': {'seed': 1}, 'images': {'test': {'count': 1, 'names': 'x'}}}):
        with pytest.raises(UsageError, match='begun by version 7.1 of this program, and this is 7.2'):
            claim(tmp_path, **different)
    (tmp_path / 'run.json').unlink()
    with pytest.raises(UsageError, match='does not say which images .* begun by an earlier version .* and this is 7.2'):
        claim(tmp_path, {'seed': 1})


@pytest.mark.parametrize('bad', ['loss', 'gradient_norm'])
def test_a_gradient_that_is_not_finite_stops_the_run_before_it_is_saved(tmp_path, mesh, bad):
    def step_fn(now, batch, key):
        scalars = {'loss': 1.0, 'top1': 0.0, 'gradient_norm': 1.0}
        return now.replace(step=now.step + 1), scalars | ({bad: float('nan')} if int(now.step) == 3 else {})

    batch = {'image': np.zeros((8, 2, 2, 3), np.uint8), 'label': np.zeros(8, np.int32)}
    with contextlib.closing(Checkpoints(epath.Path(tmp_path))) as checkpoints:
        with pytest.raises(RunError, match='not finite at step 4 of 9 .*last good checkpoint is step 2'):
            loop.fit(
                make_state(mesh, 0),
                step_fn,
                iter([batch] * 9),
                loop.Pace(9, 8, 'train', lambda step: 0.1, log_every_steps=1, checkpoint_every_steps=2),
                key=jax.random.key(0),
                mesh=mesh,
                directory=epath.Path(tmp_path),
                checkpoints=checkpoints,
            )
        assert checkpoints.steps == [2]


def test_a_dead_reader_process_ends_the_run_in_one_line(tiny_folder):
    batches = pipeline.train_batches(
        sources.create(str(tiny_folder), 'train'),
        transforms.make_train(16),
        pipeline.Readers(workers=1),
        batch_size=4,
        seed=0,
        start_step=0,
        num_steps=10_000,
    )
    next(batches)
    children = [pid for path in Path('/proc/self/task').glob('*/children') for pid in path.read_text().split()]
    readers = [pid for pid in children if b'spawn_main' in Path(f'/proc/{pid}/cmdline').read_bytes()]
    os.kill(int(readers[-1]), signal.SIGKILL)
    with pytest.raises(RunError, match='A process that reads images died.*fewer data.workers'):
        for _ in batches:
            pass

import concurrent.futures
import contextlib
import hashlib
import itertools
import multiprocessing
import os
import pathlib
import shutil
import signal
import subprocess
import sys
import threading
import time

import numpy as np
import pytest

from fixres_jax.core.errors import RunError, UsageError
from fixres_jax.data import pipeline, sources, transforms
from fixres_jax.data.pipeline import Readers

TRAIN = transforms.make_train(32)


@pytest.fixture(scope='module')
def source(tiny_folder):
    return sources.create(str(tiny_folder), 'train')


def train(source, **arguments):
    arguments = {'batch_size': 16, 'seed': 5, 'start_step': 0, 'num_steps': 9} | arguments
    readers = {name: arguments.pop(name) for name in ('host', 'num_hosts', 'workers', 'threads') if name in arguments}
    return list(pipeline.train_batches(source, TRAIN, Readers(**readers), **arguments))


def assert_equal(first, second):
    assert len(first) == len(second)
    for a, b in zip(first, second, strict=True):
        assert a.keys() == b.keys() and all(np.array_equal(a[name], b[name]) for name in a)


def join(shares):
    """Join what hosts got of one batch."""
    return {name: np.concatenate([share[name] for share in shares]) for name in shares[0]}


def test_batches_have_the_promised_form(source):
    batch = train(source, num_steps=1)[0]
    assert {name: (value.dtype, value.shape) for name, value in batch.items()} == {
        'image': (np.uint8, (16, 32, 32, 3)),
        'label': (np.int32, (16,)),
        'mask': (bool, (16,)),
        'index': (np.int32, (16,)),
    }
    assert batch['mask'].all() and (batch['label'] == source.labels[batch['index']]).all()


@pytest.mark.parametrize('repeats', [1, 2, 3])
def test_each_image_once_an_epoch_times_its_repeats(source, repeats):
    steps = 3 * repeats
    batches = train(source, num_steps=2 * steps, repeats=repeats)
    epochs = [np.concatenate([batch['index'] for batch in part]) for part in (batches[:steps], batches[steps:])]
    for epoch in epochs:
        assert np.bincount(epoch).tolist() == [repeats] * 48
    assert epochs[0].tolist() != epochs[1].tolist()
    assert epochs[0].tolist() != sorted(epochs[0])


@pytest.mark.parametrize('batch_size, repeats', [(24, 3), (16, 3), (16, 2)])
def test_copies_are_spread_over_hosts_and_groups(source, batch_size, repeats):
    for batch in train(source, batch_size=batch_size, repeats=repeats, num_steps=6):
        for index in set(batch['index'].tolist()):
            places = np.flatnonzero(batch['index'] == index)
            assert len(places) <= repeats and (np.diff(places) >= batch_size // repeats).all()


def test_copies_share_a_batch_and_differ(source):
    for batch in train(source, batch_size=24, repeats=3, num_steps=6):
        index, copies = np.unique(batch['index'], return_counts=True)
        assert (copies == 3).all()
        images = batch['image'][batch['index'] == index[0]]
        assert len({image.tobytes() for image in images}) == 3


@pytest.mark.parametrize('workers', [1, 2])
def test_workers_change_nothing(source, workers):
    assert_equal(train(source), train(source, workers=workers))


def test_a_reader_process_is_started_with_interrupts_blocked(source):
    """Ctrl-C reaches it too, and before it can ignore that, Python would print a traceback of its own start."""
    batches = pipeline.train_batches(
        source, TRAIN, Readers(workers=2), batch_size=16, seed=0, start_step=0, num_steps=99
    )
    next(batches)
    masks = []
    for status in pathlib.Path('/proc').glob('[0-9]*/status'):
        with contextlib.suppress(OSError):
            fields = dict(line.split(':\t', 1) for line in status.read_text().splitlines() if ':\t' in line)
            command = (status.parent / 'cmdline').read_bytes()
            if int(fields['PPid']) == os.getpid() and b'spawn_main' in command:
                masks.append(int(fields['SigBlk'], 16))
    batches.close()
    assert len(masks) == 2 and all(mask >> (signal.SIGINT - 1) & 1 for mask in masks)
    assert signal.SIGINT not in signal.pthread_sigmask(signal.SIG_BLOCK, [])  # here it is heard


def test_threads_chunks_and_batch_size_change_nothing(source, monkeypatch):
    reference = train(source, threads=1)
    monkeypatch.setattr(pipeline, 'CHUNK', 5)
    assert_equal(reference, train(source, threads=3))
    wide = train(source, batch_size=48, num_steps=3)
    for name in ('image', 'index'):
        assert np.array_equal(*(np.concatenate([batch[name] for batch in part]) for part in (reference, wide)))


@pytest.mark.parametrize('num_hosts', [2, 4])
@pytest.mark.parametrize('repeats', [1, 3])
def test_hosts_together_are_one_host(source, num_hosts, repeats):
    shares = [train(source, host=host, num_hosts=num_hosts, repeats=repeats) for host in range(num_hosts)]
    assert shares[0][0]['image'].shape[0] == 16 // num_hosts
    assert_equal(train(source, repeats=repeats), [join(parts) for parts in zip(*shares, strict=True)])


def digest_of_host(job):
    """Return a checksum of each batch's pixels and indices, in whatever process this runs."""
    root, workers, host, num_hosts = job
    batches = train(sources.create(root, 'train'), host=host, num_hosts=num_hosts, workers=workers, repeats=2)
    return [[(int(i), hashlib.sha256(image).hexdigest()) for i, image in zip(b['index'], b['image'], strict=True)]
            for b in batches]  # fmt: skip


@pytest.mark.parametrize('workers', [0, 1, 2])
def test_two_processes_together_are_one(tiny_folder, workers):
    root = str(tiny_folder)
    jobs = [(root, workers, host, 2) for host in (0, 1)]
    with concurrent.futures.ProcessPoolExecutor(2, multiprocessing.get_context('spawn')) as pool:
        shares = list(pool.map(digest_of_host, jobs))
    joined = [sum(parts, []) for parts in zip(*shares, strict=True)]
    assert joined == digest_of_host((root, 0, 0, 1))
    pixels = [digest for batch in joined for _, digest in batch]
    assert len(set(pixels)) == len(pixels)  # no two samples share their draws


class Noted:
    """A source that notes in a folder which records were read, by whatever process."""

    def __init__(self, source, folder):
        self.source, self.folder, self.labels, self.class_names = source, folder, source.labels, source.class_names

    def __len__(self):
        return len(self.source)

    def name(self, index):
        return self.source.name(index)

    def __getitem__(self, index):
        (self.folder / str(index)).touch()
        return self.source[index]


def wait_for(condition, seconds=60):
    deadline = time.monotonic() + seconds
    while not condition() and time.monotonic() < deadline:
        time.sleep(0.01)
    return condition()


@pytest.mark.parametrize('workers', [0, 1, 2])
def test_reading_begins_before_the_first_batch_is_asked_for(source, tmp_path, workers):
    noted = Noted(source, tmp_path)
    batches = pipeline.train_batches(
        noted, TRAIN, Readers(workers=workers, threads=1), batch_size=16, seed=5, start_step=0, num_steps=9
    )
    try:
        assert wait_for(lambda: len(list(tmp_path.iterdir())) >= 16)
        assert np.array_equal(next(batches)['index'], train(source, num_steps=1)[0]['index'])
    finally:
        batches.close()


@pytest.mark.parametrize('workers', [0, 2])
def test_batches_that_nobody_asks_for_can_be_closed(source, workers):
    threads, children = threading.active_count(), multiprocessing.active_children()
    batches = pipeline.train_batches(
        source, TRAIN, Readers(workers=workers, threads=2), batch_size=16, seed=5, start_step=0, num_steps=9
    )
    assert threading.active_count() > threads
    batches.close()
    assert wait_for(lambda: threading.active_count() <= threads)
    assert wait_for(lambda: multiprocessing.active_children() == children)


def test_resumed_run_continues(source):
    assert_equal(train(source)[4:], train(source, start_step=4))


def test_seeds_and_samples_have_their_own_randomness(source):
    first, second = train(source, num_steps=1), train(source, num_steps=1, seed=6)
    assert not np.array_equal(first[0]['index'], second[0]['index'])
    draws = {
        pipeline.sample_rng(sample, seed).integers(2**62) for sample, seed in itertools.product(range(500), range(4))
    }
    assert len(draws) == 2000


@pytest.mark.parametrize('workers', [0, 1])
@pytest.mark.parametrize('batch_size', [4, 7, 24])
def test_evaluation_sees_every_image_once_on_any_number_of_hosts(tiny_folder, batch_size, workers):
    source = sources.create(str(tiny_folder), 'val')
    two = {16: transforms.make_test(16), 24: transforms.make_test(24)}
    batches = list(pipeline.eval_batches(source, two, Readers(workers=workers), batch_size=batch_size))
    index, mask = (np.concatenate([batch[name] for batch in batches]) for name in ('index', 'mask'))
    assert index[mask].tolist() == list(range(24)) and (index[~mask] == -1).all()
    assert all(batch['image'][size].shape == (batch_size, size, size, 3) for batch in batches for size in two)
    image = transforms.decode(source[5]['encoded'], '', 5)
    step, place = divmod(5, batch_size)
    assert np.array_equal(batches[step]['image'][24][place], two[24](image))
    assert batches[step]['label'][place] == source.labels[5]


def test_evaluation_on_two_hosts_and_from_the_middle(tiny_folder):
    source = sources.create(str(tiny_folder), 'val')
    two = {16: transforms.make_test(16)}
    shares = [list(pipeline.eval_batches(source, two, Readers(host, 2), batch_size=10)) for host in (0, 1)]
    assert [len(share) for share in shares] == [3, 3]
    seen = [batch['index'][batch['mask']].tolist() for share in shares for batch in share]
    assert sorted(sum(seen, [])) == list(range(24))
    late = list(pipeline.eval_batches(source, two, batch_size=10, start=17))
    assert late[0]['index'].tolist() == [*range(17, 24), -1, -1, -1] and len(late) == 1


@pytest.mark.parametrize('workers', [0, 1])
def test_bad_image_stops_the_run_with_one_line(tiny_folder, tmp_path, workers):
    for number, path in enumerate(sorted((tiny_folder / 'val' / 'ant').iterdir())):
        (tmp_path / 'ant').mkdir(exist_ok=True)
        data = path.read_bytes()
        (tmp_path / 'ant' / path.name).write_bytes(data if number != 3 else data[:300])
    source = sources.create(str(tmp_path), '')
    for batches in (
        pipeline.eval_batches(source, {16: transforms.make_test(16)}, Readers(workers=workers), batch_size=6),
        pipeline.train_batches(
            source, TRAIN, Readers(workers=workers), batch_size=6, seed=0, start_step=0, num_steps=2
        ),
    ):
        with pytest.raises(RunError) as caught:
            list(batches)
        message = str(caught.value)
        assert message.startswith(f'Image 3, {tmp_path}/ant/val_03.jpg, cannot be decoded') and '\n' not in message
        assert not getattr(caught.value, '__notes__', None) and caught.value.__suppress_context__


@pytest.mark.parametrize('arguments', [
    {'batch_size': 15, 'num_hosts': 2}, {'host': 2, 'num_hosts': 2}, {'repeats': 0}, {'seed': -1}, {'start_step': 10},
])  # fmt: skip
def test_impossible_arguments_are_refused(source, arguments):
    with pytest.raises(UsageError):
        train(source, **arguments)


def test_empty_source_is_refused(source):
    with pytest.raises(UsageError, match='empty'):
        train(sources.subset(source, []))


def test_the_papers_epoch():
    assert pipeline.epoch_samples(1_281_167, repeats=3) == 5005 * 512
    assert pipeline.epoch_samples(1_281_167) == 1_281_167


def test_program_that_meets_a_bad_image_prints_one_line(tiny_folder, tmp_path):
    shutil.copytree(tiny_folder / 'val', tmp_path / 'val')
    (tmp_path / 'val' / 'cat' / 'val_02.jpg').write_bytes(b'')
    program = tmp_path / 'program.py'
    program.write_text(
        'import sys\n'
        'from fixres_jax.data import pipeline, sources, transforms\n'
        'from fixres_jax.core.errors import RunError\n'
        'if __name__ == "__main__":\n'
        f'    source = sources.create({str(tmp_path)!r}, "val")\n'
        '    batches = pipeline.train_batches(source, transforms.make_train(32), pipeline.Readers(workers=2),\n'
        '                                     batch_size=8, seed=0, start_step=0, num_steps=9)\n'
        '    try:\n'
        '        list(batches)\n'
        '    except RunError as error:\n'
        '        sys.exit(str(error))\n'
    )
    environment = os.environ | {'PYTHONPATH': str(pathlib.Path(pipeline.__file__).parents[2])}
    done = subprocess.run([sys.executable, program], capture_output=True, text=True, env=environment)
    assert done.returncode == 1 and not done.stdout
    assert done.stderr.count('\n') == 1 and 'val_02.jpg, cannot be decoded: the file is empty' in done.stderr


def test_the_order_of_many_records_is_computed_and_is_that_of_every_version(monkeypatch):
    """Or a run would not go on where it stopped."""
    many = 10**9
    found = [pipeline.sample_record(sample, many, seed=3) for sample in (0, 1, 2, many - 1, many)]
    places = 697905874, 757671371, 970669216, 504033881, 488310056
    assert found == list(zip((0, 0, 0, 0, 1), places, strict=True))
    monkeypatch.setattr(pipeline, 'LISTED', 10)
    pipeline._order.cache_clear()
    try:
        epochs = [[pipeline.sample_record(e * 50 + i, 50, seed=3)[1] for i in range(50)] for e in range(3)]
    finally:
        pipeline._order.cache_clear()
    assert all(sorted(epoch) == list(range(50)) for epoch in epochs)
    assert epochs[0] != epochs[1] != epochs[2] and epochs[0] != list(range(50))

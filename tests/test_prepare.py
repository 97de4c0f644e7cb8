import concurrent.futures
import io
import json
import os
import shutil
import signal
import subprocess
import sys
import threading
import time

import numpy as np
import pytest
from etils import epath
from PIL import Image

from conftest import pattern
from fixres_jax import prepare
from fixres_jax.core.errors import RunError, UsageError
from fixres_jax.data import decoding, jpeg, preparation, shards, sources


def encode(image: Image.Image, kind: str = 'JPEG', **options) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def manifest(folder) -> dict:
    return json.loads((folder / shards.MANIFEST).read_text())


@pytest.fixture
def folder(tmp_path):
    """A split with good and bad images."""
    root = tmp_path / 'data' / 'train'
    good = encode(Image.fromarray(pattern(90, 120)))
    files = {'a/0.jpg': good, 'a/1.jpg': good[:500], 'a/2.jpg': good, 'b/0.jpg': b'', 'b/1.jpg': good}
    for name, data in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(data)
    return tmp_path / 'data'


def test_convert_changes_only_what_it_must():
    photo = Image.fromarray(pattern(120, 160))
    for encoded in (encode(photo), encode(photo.convert('L')), encode(photo, 'PNG')):
        assert preparation.convert(encoded, '', 0, 0, 95) == (encoded, (160, 120))
        assert preparation.convert(encoded, '', 0, 120, 95) == (encoded, (160, 120))  # never enlarged
    for mode, kind in (('CMYK', 'JPEG'), ('P', 'PNG'), ('RGBA', 'PNG')):
        original = encode(photo.convert(mode), kind)
        encoded, size = preparation.convert(original, '', 0, 0, 95)
        image = Image.open(io.BytesIO(encoded))
        assert (image.format, image.mode, image.size, size) == ('JPEG', 'RGB', (160, 120), (160, 120))
        difference = np.asarray(image, int) - np.asarray(decoding.decode(original, '', 0), int)
        assert np.abs(difference).mean() < 20


def test_shorter_side_is_resized_with_rows_that_can_be_skipped():
    for size, expected in (((300, 200), (144, 96)), ((200, 300), (96, 144))):
        photo = Image.fromarray(pattern(size[1], size[0]))
        for mode in ('RGB', 'L'):
            encoded, original = preparation.convert(encode(photo.convert(mode)), '', 0, 96, 95)
            image = Image.open(io.BytesIO(encoded))
            assert image.size == expected and image.mode == mode and original == size
            assert jpeg.layout(encoded).restarts


@pytest.mark.parametrize('workers', ['0', '2'])
def test_bad_image_stops_or_is_left_out_as_asked(folder, tmp_path, workers, capsys):
    out = tmp_path / 'out'
    command = [str(folder), str(out), '--workers', workers, '--shards', '2']
    with pytest.raises(RunError, match='a/1.jpg, cannot be decoded') as caught:
        prepare.main(command)
    assert '\n' not in str(caught.value) and not (out / 'train' / shards.MANIFEST).exists()
    whole = tmp_path / 'out2'
    prepare.main([*command[:1], str(whole), *command[2:], '--skip-bad'])
    assert '3 images of 2 classes in 2 shards' in (printed := capsys.readouterr().out) and '2 left out' in printed
    left_out = manifest(whole / 'train')['left_out']
    assert len(left_out) == 2 and 'a/1.jpg' in left_out[0] and 'the file is empty' in left_out[1]
    source = sources.create(str(whole), 'train')
    assert source.labels.tolist() == [0, 0, 1]
    assert [source.name(index) for index in range(3)] == ['a/0.jpg', 'a/2.jpg', 'b/1.jpg']


def test_a_line_break_in_a_name_is_a_bad_image(folder, tmp_path):
    (folder / 'train' / 'a' / '1.jpg').rename(folder / 'train' / 'a' / 'one\ntwo.jpg')
    (folder / 'train' / 'b' / '0.jpg').unlink()
    command = [str(folder), str(tmp_path / 'out'), '--workers', '0']
    with pytest.raises(RunError, match=r"one\\ntwo.jpg', has a line break in its name: rename"):
        prepare.main(command)
    prepare.main([*command[:1], str(tmp_path / 'out2'), *command[2:], '--skip-bad'])
    assert len(sources.create(str(tmp_path / 'out2'), 'train')) == 3


def test_two_workers_may_make_the_same_shard(tiny_folder, tmp_path):
    """A runner gives an order again when it doubts the first worker, which may still be at it."""
    source = sources.create(str(tiny_folder), 'train')
    jobs = [
        preparation.Job(source, 'same', epath.Path(tmp_path / out), 2, 0, 95, False) for out in ('alone', 'together')
    ]
    for job in jobs:
        job.out.mkdir()
    jobs[0].order(0).make()
    first, second = jobs[1].order(0), jobs[1].order(0)
    real, waiting = shards.pack, threading.Barrier(2, timeout=60)

    def pack(*record):
        if record[2] == 'ant/train_05.jpg':
            waiting.wait()  # both are in the middle of it
        return real(*record)

    with pytest.MonkeyPatch.context() as patch, concurrent.futures.ThreadPoolExecutor(2) as pool:
        patch.setattr(shards, 'pack', pack)
        for future in [pool.submit(order.make) for order in (first, second)]:
            future.result()
    files = [{path.name: path.read_bytes() for path in job.out.iterdir()} for job in jobs]
    assert len(files[0]) == 2
    assert files[0]['images-00000-of-00002.array_record'] == files[1]['images-00000-of-00002.array_record']
    notes = [json.loads(found['images-00000-of-00002.json']) for found in files]
    assert len(files[1]) == 2 and notes[0] == notes[1]


def test_second_run_makes_only_what_is_lacking(tiny_folder, tmp_path):
    command = [str(tiny_folder), str(tmp_path), '--split', 'train', '--shards', '4', '--workers', '0']
    prepare.main(command)
    first, files = manifest(tmp_path / 'train'), sorted((tmp_path / 'train').glob('*.array_record'))
    data = bytearray(files[1].read_bytes())
    data[200] ^= 1
    files[1].write_bytes(data)
    files[2].unlink()
    before = {path: path.stat().st_mtime_ns for path in files if path.exists()}
    prepare.main(command)
    changed = [path for path in before if path.stat().st_mtime_ns != before[path]]
    assert changed == [files[1]] and files[2].exists() and manifest(tmp_path / 'train') == first
    assert all(shards.checksum(path) == shard['sha256'] for path, shard in zip(files, first['shards'], strict=True))


def test_other_options_do_not_mix(tiny_folder, tmp_path):
    command = [str(tiny_folder), str(tmp_path), '--split', 'val', '--workers', '0']
    prepare.main(command)
    with pytest.raises(UsageError, match='other images or options'):
        prepare.main([*command, '--short-side', '32'])


@pytest.mark.parametrize('change', ['replaced', 'other size', 'renamed', 'moved'])
def test_another_image_is_not_mixed_with_the_shards_of_before(tmp_path, change):
    source, out = tmp_path / 'data' / 'train', tmp_path / 'out'
    for index in range(8):
        place = source / 'ab'[index % 2]
        place.mkdir(parents=True, exist_ok=True)
        (place / f'{index}.jpg').write_bytes(encode(Image.fromarray(pattern(40, 50, seed=index))))
    command = [str(tmp_path / 'data'), str(out), '--shards', '4', '--workers', '0']
    prepare.main(command)
    if change == 'replaced':  # counts and classes stay, and so does every other file
        (source / 'a' / '2.jpg').unlink()
        (source / 'a' / '9.jpg').write_bytes(encode(Image.fromarray(pattern(40, 50, seed=9))))
    elif change == 'other size':
        (source / 'a' / '2.jpg').write_bytes(encode(Image.fromarray(pattern(60, 50, seed=2))))
    elif change == 'renamed':
        (source / 'a' / '2.jpg').rename(source / 'a' / '9.jpg')
    else:
        (source / 'a' / '2.jpg').rename(source / 'b' / '2.jpg')
        (source / 'b' / '3.jpg').rename(source / 'a' / '3.jpg')
    for path in (out / 'train').glob('images-00002-*'):
        path.unlink()
    before = sorted((path, path.stat().st_mtime_ns) for path in out.rglob('*'))
    with pytest.raises(UsageError, match='holds shards of other images or options.*added, removed or changed'):
        prepare.main(command)
    assert before == sorted((path, path.stat().st_mtime_ns) for path in out.rglob('*'))


def test_the_same_images_in_another_place_go_on(tiny_folder, tmp_path):
    moved, out = shutil.copytree(tiny_folder, tmp_path / 'moved'), tmp_path / 'out'
    options = ['--split', 'val', '--shards', '2', '--workers', '0']
    prepare.main([str(tiny_folder), str(out), *options])
    first = manifest(out / 'val')
    next((out / 'val').glob('images-00001-*.array_record')).unlink()
    prepare.main([str(moved), str(out), *options])
    assert manifest(out / 'val') == first


def test_shards_of_other_shards_are_not_mixed(folder, tmp_path):
    for short_side in ('0', '32'):
        prepare.main(
            [str(folder), str(tmp_path / short_side), '--skip-bad', '--short-side', short_side, '--workers', '0']
        )
    prepare.main([str(tmp_path / '0'), str(tmp_path / 'out'), '--workers', '0'])
    prepare.main([str(tmp_path / '0'), str(tmp_path / 'out'), '--workers', '0'])
    with pytest.raises(UsageError, match='holds shards of other images'):
        prepare.main([str(tmp_path / '32'), str(tmp_path / 'out'), '--workers', '0'])


def test_a_damaged_note_is_named(tiny_folder, tmp_path):
    command = [str(tiny_folder), str(tmp_path), '--split', 'val', '--workers', '0']
    prepare.main(command)
    note = next((tmp_path / 'val').glob('images-*.json'))
    note.write_text(note.read_text()[:20])
    with pytest.raises(UsageError, match=f'{note} is damaged. Delete it'):
        prepare.main(command)
    note.unlink()
    prepare.main(command)
    assert len(sources.create(str(tmp_path), 'val')) == 24


@pytest.mark.parametrize('source, out', [
    ('data', 'data'), ('data', 'data/out'), ('data', 'data/train/out'), ('data', 'data/../data/out'),
    ('data', 'link/out'), ('link', 'data/out'), ('data', 'elsewhere/train/out'), ('data', './data/train'),
    ('data/train', 'data/train/out'), ('data/train', '.'),
])  # fmt: skip
def test_shards_are_not_written_into_what_is_read(tiny_folder, tmp_path, monkeypatch, source, out):
    monkeypatch.chdir(tmp_path)
    shutil.copytree(tiny_folder, 'elsewhere')
    os.mkdir('data')
    os.symlink(tmp_path / 'elsewhere' / 'train', 'data/train')
    os.symlink('data', 'link')
    if out == '.':  # SOURCE/train is what --split train is written to
        monkeypatch.chdir('data')
        source, tail = 'train', ['--split', 'train']
    else:
        tail = []
    before = sorted(tmp_path.rglob('*'))
    with pytest.raises(UsageError, match='which is read: the shards would become a class.*outside, such as .*-shards'):
        prepare.main([source, out, '--workers', '0', *tail])
    assert sorted(tmp_path.rglob('*')) == before


def test_killed_and_started_again(tiny_folder, tmp_path):
    """Kill it while a shard is half written: no shard is there under its name, and the next run completes all."""
    command = [str(tiny_folder), str(tmp_path), '--split', 'train', '--shards', '4', '--workers', '0']
    script = (
        'import os, signal\n'
        'from fixres_jax import prepare\n'
        'from fixres_jax.data import shards\n'
        'real = shards.pack\n'
        'def pack(encoded, label, name, size):\n'
        '    if name == "cat/train_03.jpg": os.kill(os.getpid(), signal.SIGKILL)\n'
        '    return real(encoded, label, name, size)\n'
        'shards.pack = pack\n'
        f'prepare.main({command!r})\n'
    )
    killed = subprocess.run([sys.executable, '-c', script], cwd=os.path.dirname(os.path.dirname(prepare.__file__)))
    assert killed.returncode == -signal.SIGKILL
    done = sorted((tmp_path / 'train').glob('*.array_record'))
    assert len(done) == 2 and list((tmp_path / 'train').glob('.*.incomplete'))
    with pytest.raises(UsageError):
        sources.create(str(tmp_path), 'train')
    before = [path.stat().st_mtime_ns for path in done]
    prepare.main(command)
    assert [path.stat().st_mtime_ns for path in done] == before
    assert not list((tmp_path / 'train').glob('.*.incomplete'))
    assert len(sources.create(str(tmp_path), 'train')) == 48


@pytest.mark.parametrize('arguments, expected', [
    (['/nowhere', 'out'], 'There is no folder'),
    (['/nowhere', 'out', '--split', 'train'], 'There is no folder'),
    (['x', 'out', '--quality', '0'], '--quality=0: expected 1 to 100'),
    (['x'], 'required: out'),
])  # fmt: skip
def test_wrong_arguments_are_one_line_and_exit_code_2(arguments, expected):
    command = [sys.executable, '-m', 'fixres_jax.prepare', *arguments]
    begin = time.monotonic()
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 2 and expected in done.stderr and done.stderr.count('\n') == 1, done.stderr
    assert time.monotonic() - begin < 60

"""What it takes to open a large data set: seconds and memory, on shards without images.

    python benchmarks/index.py FOLDER [--records 100000000]

The manifest, the labels, the names and their hashes are made as `fixres_jax.prepare` would make them; the shards are
holes of the right size. Then a new process takes the steps from opening to the first samples, and prints for each the
time that it took, the most memory that the process has had by then (files that are mapped count as long as they are in
memory) and what it has now, files not counted.
"""

import argparse
import json
import os
import resource
import subprocess
import sys
import time
from pathlib import Path

import numpy as np

from fixres_jax.data import pipeline, preparation, shards, sources

CLASSES, LINE = 1000, len('n000/00000000000.jpg\n')
BYTES_PER_IMAGE = 20_000


def make(folder: Path, count: int) -> None:
    """Write what stands beside the shards of `count` images, and their holes."""
    rng = np.random.default_rng(0)
    folder.mkdir(parents=True)
    number = preparation.num_shards(count)
    edges = [count * shard // number for shard in range(number + 1)]
    entries = []
    with (folder / shards.LABELS).open('wb') as labels, (folder / shards.NAMES).open('wb') as names:
        with (folder / shards.DIGESTS).open('wb') as digests:
            for shard, (first, last) in enumerate(zip(edges, edges[1:], strict=False)):
                numbers = np.arange(first, last)
                label = (numbers * CLASSES // count).astype('<i4')
                labels.write(label.tobytes())
                digests.write(rng.integers(0, 2**64, last - first, np.uint64).astype('<u8').tobytes())
                lines = np.tile(np.frombuffer(b'n000/00000000000.jpg\n', np.uint8), (last - first, 1))
                for values, end, digits in ((label, 4, 3), (numbers, 16, 11)):
                    for place in range(digits):
                        lines[:, end - 1 - place] = ord('0') + values // 10**place % 10
                names.write(lines.tobytes())
                path = folder / f'images-{shard:05d}-of-{number:05d}.array_record'
                path.touch()
                size = BYTES_PER_IMAGE * (last - first)
                os.truncate(path, size)
                entry = {'file': path.name, 'bytes': size, 'count': last - first, 'sha256': f'{shard:064x}'}
                entries.append(entry | {'name_bytes': LINE * (last - first)})
    manifest = {'format': 2, 'records': count, 'class_names': [f'n{k:03}' for k in range(CLASSES)], 'shards': entries}
    (folder / shards.MANIFEST).write_text(json.dumps(manifest | {'checksums': {}, 'left_out': []}, indent=1))


def measure(folder: Path) -> None:
    """Print time and memory of each step from opening a data set to its first samples."""

    def say(step: str, begin: float) -> None:
        anonymous = next(line for line in open('/proc/self/status') if line.startswith('RssAnon')).split()[1]
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        print(
            f'{step}: {time.monotonic() - begin:.2f} s, peak {peak / 1e3:.0f} MB, now {int(anonymous) / 1e3:.0f} MB',
            flush=True,
        )

    say('program loaded', time.monotonic())
    begin = time.monotonic()
    source = sources.create(str(folder), '')
    say(f'opened, {len(source):,} records', begin)
    begin = time.monotonic()
    numbers = np.random.default_rng(0).integers(0, len(source), 1000)
    assert all(int(source.name(index)[5:-4]) == index for index in numbers)
    say('1,000 names anywhere', begin)
    begin = time.monotonic()
    rest, held = sources.hold_out(source, 0.02, seed=0)
    say(f'{len(held):,} held out', begin)
    begin = time.monotonic()
    places = [pipeline.sample_record(sample, len(rest), 0)[1] for sample in range(10_000)]
    say('order of 10,000 samples', begin)
    begin = time.monotonic()
    assert len({int(rest.indices[place]) for place in places}) == 10_000
    say('their places', begin)
    for name, part in (('held-out', held), ('training', rest)):
        begin = time.monotonic()
        mark = sources.fingerprint(part)
        say(f'hash of the {name} names, {mark[:8]}', begin)
    begin = time.monotonic()
    assert len(np.bincount(source.labels)) == CLASSES
    say('all labels', begin)


def main() -> None:
    """Make the data set unless it is there, and measure."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument('folder', type=Path)
    parser.add_argument('--records', type=int, default=10**8)
    parser.add_argument('--measure', action='store_true', help='only measure, in this process')
    arguments = parser.parse_args()
    if arguments.measure:
        measure(arguments.folder)
        return
    if not arguments.folder.exists():
        make(arguments.folder, arguments.records)
    subprocess.run([sys.executable, __file__, str(arguments.folder), '--measure'], check=True)


if __name__ == '__main__':
    main()

"""How long the quickstart takes to its first step: with nothing compiled, and again with what the first start kept.

    python benchmarks/start.py [--trees . ../before] --rounds 3 --json docs/start.json

The images are drawn beforehand. Every start is a process of its own that is killed after its first step; the clock
runs from the start of Python to the line of metrics.jsonl that the step writes. Several trees of this project take
turns, and the ratios are to the first of them, within a round.
"""

import argparse
import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
COMMAND = (sys.executable, '-m', 'fixres_jax.main', '--config=configs/quickstart.py', '--config.log_every_steps=1')


def seconds_to_a_step(tree, workdir, *options):
    """Start the program, kill it when a step has written its numbers; return the seconds until then."""
    numbers = workdir / 'train' / 'metrics.jsonl'
    command = [*COMMAND, f'--workdir={workdir}', '--config.task=train', *options]
    environment = os.environ | {'JAX_PLATFORMS': 'cpu', 'PYTHONPATH': str(tree)}
    began = time.monotonic()
    process = subprocess.Popen(command, cwd=tree, env=environment, stderr=subprocess.DEVNULL)
    try:
        while process.poll() is None:
            if numbers.exists() and numbers.read_text():
                return time.monotonic() - began
            time.sleep(0.01)
        raise SystemExit(f'The program ended with code {process.wait()} before its first step.')
    finally:
        process.kill()
        process.wait()


def two_starts(tree, drawn, folder):
    """Return the seconds of a start with nothing compiled and of the next one."""
    shutil.rmtree(folder, ignore_errors=True)
    row = {}
    for name in ('first', 'second'):
        workdir = folder / name
        shutil.copytree(drawn, workdir / 'data')
        row[name] = seconds_to_a_step(tree, workdir, f'--config.compilation_cache={folder / "cache"}')
    return row


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--trees', type=Path, nargs='+', default=[ROOT], help='checkouts; this one if not given')
    parser.add_argument('--rounds', type=int, default=3)
    parser.add_argument('--json')
    args = parser.parse_args()
    trees = {str(tree): tree.resolve() for tree in args.trees}
    rounds = {name: [] for name in trees}
    with tempfile.TemporaryDirectory() as folder:
        drawn = Path(folder) / 'drawn'
        for tree in trees.values():
            seconds_to_a_step(tree, drawn)  # draws the images, compiles what data/ compiles
            shutil.rmtree(drawn / 'train')
        for _ in range(args.rounds):
            for name, tree in trees.items():
                rounds[name].append(two_starts(tree, drawn / 'data', Path(folder) / 'starts'))
    result = {name: _summary(rows, next(iter(rounds.values()))) for name, rows in rounds.items()}
    print(json.dumps(result, indent=2))
    if args.json:
        Path(args.json).write_text(json.dumps(result, indent=2) + '\n')


def _summary(rows, base):
    """Return medians over the rounds: seconds, the first start over the second, and both over those of the base."""
    result = {name: statistics.median(row[name] for row in rows) for name in ('first', 'second')}
    result['first_over_second'] = statistics.median(row['first'] / row['second'] for row in rows)
    for name in ('first', 'second'):
        ratios = [row[name] / other[name] for row, other in zip(rows, base, strict=True)]
        result[f'{name}_over_base'] = statistics.median(ratios)
    return result | {'rounds': rows}


if __name__ == '__main__':
    main()

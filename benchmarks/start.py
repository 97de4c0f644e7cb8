"""How long the quickstart takes to its first step: with nothing compiled, and again with what the first start kept.

    python benchmarks/start.py --rounds 3 --json docs/start.json

The images are drawn beforehand. Every start is a process of its own that is killed after its first step; the clock runs
from the start of Python to the line of the log that the step writes.
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


def seconds_to(word, workdir, *options):
    """Start the program, kill it when it prints a word; return the seconds until then."""
    began = time.monotonic()
    command = [*COMMAND, f'--workdir={workdir}', '--config.task=train', *options]
    process = subprocess.Popen(
        command, cwd=ROOT, env=os.environ | {'JAX_PLATFORMS': 'cpu'}, stderr=subprocess.PIPE, text=True
    )
    try:
        for line in process.stderr:
            if word in line:
                return time.monotonic() - began
        raise SystemExit(f'The program ended with code {process.wait()} before it printed {word!r}.')
    finally:
        process.kill()
        process.wait()
        process.stderr.close()


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--rounds', type=int, default=3)
    parser.add_argument('--json')
    args = parser.parse_args()
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        drawn = Path(folder) / 'drawn'
        seconds_to('loss', drawn)  # draws the images, compiles what data/ compiles
        for _ in range(args.rounds):
            cache = Path(folder) / 'cache'
            shutil.rmtree(cache, ignore_errors=True)
            row = {}
            for name in ('first', 'second'):
                workdir = Path(folder) / name
                shutil.rmtree(workdir, ignore_errors=True)
                shutil.copytree(drawn / 'data', workdir / 'data')
                row[name] = seconds_to('loss', workdir, f'--config.compilation_cache={cache}')
            rows.append(row)
    result = {name: statistics.median(row[name] for row in rows) for name in ('first', 'second')}
    result |= {'ratio': statistics.median(row['first'] / row['second'] for row in rows), 'rounds': rows}
    print(json.dumps(result, indent=2))
    if args.json:
        Path(args.json).write_text(json.dumps(result, indent=2) + '\n')


if __name__ == '__main__':
    main()

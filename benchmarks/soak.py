"""Kill a run at random moments, start it again each time, and compare the end with that of a run left alone.

    python benchmarks/soak.py --kills 40 --seed 0 --json docs/soak.json
    python benchmarks/soak.py --kills 20 --seed 0 --everything --json docs/soak_everything.json

The run is the whole recipe on small drawings, which holds every phase; with --everything, of a network that trains with
all that can be mixed, drawn, dropped and averaged, at rising sizes. A kill is a SIGKILL a random time after the
start or, for every other, after a phase was seen to begin, so that short phases are met too. Afterwards, compared with
the run that nobody killed: the networks are the same bits, `metrics.jsonl` has every step exactly once, the numbers of
the report are equal, and no unfinished file has a final name. Exits with 1 when anything differs.
"""

import argparse
import collections
import contextlib
import json
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

ROOT = Path(__file__).resolve().parent.parent
OPTIONS = (
    '--config=configs/quickstart.py',
    '--config.model.width=8',
    '--config.model.bn_group_size=8',
    '--config.data.drawings.train=120',
    '--config.data.drawings.val=90',
    '--config.train.resolution=32',
    '--config.train.batch_size=16',
    '--config.train.epochs=2',
    '--config.adapt.max_iterations=5',
    '--config.adapt.weight_decays=(0.001, 0.01)',
    '--config.test.resolutions=(32, 48)',
    '--config.log_every_steps=1',
    '--config.checkpoint_every_steps=4',
)
EVERYTHING = (
    '--config.seed=3',
    '--config.model.drop_path=0.2',
    '--config.model.zero_init_residual=True',
    '--config.train.epochs=4',
    '--config.train.progressive=((0.4, 32), (0.7, 40))',
    '--config.train.resolution=48',
    '--config.train.accumulate_steps=2',
    '--config.train.repeats=2',
    '--config.train.optimizer=lamb',
    '--config.train.lr=0.01',
    '--config.train.schedule_every=epoch',
    '--config.train.warmup_epochs=1',
    '--config.train.warmup_lr=0.001',
    '--config.train.weight_decay=0.02',
    '--config.train.weight_decay_on=kernels',
    '--config.train.layer_decay=0.9',
    '--config.train.clip_norm=1.0',
    '--config.train.label_smoothing=0.1',
    '--config.train.crop=torchvision',
    '--config.train.interpolation=bicubic',
    '--config.train.augment=rand-m7-mstd0.5-inc1',
    '--config.train.loss=bce',
    '--config.train.bce_threshold=0.2',
    '--config.train.ema.decay=0.9',
    '--config.train.ema.warmup=True',
    '--config.train.ema.start_epochs=0.5',
    '--config.train.ema.every_steps=2',
    '--config.train.mixing.mixup=0.2',
    '--config.train.mixing.cutmix=1.0',
    '--config.train.mixing.probability=0.9',
    '--config.train.mixing.erasing=0.25',
    '--config.train.mixing.erasing_fill=noise',
    '--config.adapt.solver=sgd',  # which keeps what it found, however little these networks know
    "--config.test.resolutions=(48, '48x64')",
)
MOMENTS = ('Phase train begins', 'Phase sweep begins', 'Phase adapt begins', 'Phase evaluate begins')
MOMENTS += ('Phase studies begins', 'Phase report begins', 'saving')


def start(workdir, options):
    """Start the run in a process group of its own; return it and the file of its output."""
    log = open(f'{workdir}.log', 'a+')
    quick_to_compile = '--xla_backend_optimization_level=0 --xla_llvm_disable_expensive_passes=true'
    environment = os.environ | {'JAX_PLATFORMS': 'cpu', 'XLA_FLAGS': quick_to_compile}
    command = [sys.executable, '-m', 'fixres_jax.main', f'--workdir={workdir}', *options]
    process = subprocess.Popen(command, cwd=ROOT, env=environment, stdout=log, stderr=log, start_new_session=True)
    return process, log


def unfinished(workdir):
    """Return the folders of checkpoints that are being written, or were when the run was killed."""
    found = set()
    for path in Path(workdir).glob('*/checkpoints/*orbax-checkpoint-tmp*'):
        with contextlib.suppress(FileNotFoundError):  # it was finished meanwhile
            found.add(path.stat().st_ino)
    return found


def phase_of(workdir, earlier):
    """Say what a run was doing by what it left: the phase, and whether a checkpoint was being written."""
    text = Path(f'{workdir}.log').read_text()
    phases = [line.split('Phase ')[1].split()[0] for line in text.splitlines() if 'Phase ' in line and 'begins' in line]
    return (phases[-1] if phases else 'starting') + (', saving' if unfinished(workdir) - earlier else '')


def kill_once(workdir, options, rng, limit, moment):
    """Run until a random moment, kill; return what was killed, or None when the run ended first."""
    Path(f'{workdir}.log').write_text('')
    earlier = unfinished(workdir)
    process, log = start(workdir, options)
    began = time.monotonic()
    wait = rng.uniform(0.1, limit)
    if moment:
        wait = 0.0 if moment == 'saving' else rng.uniform(0, 0.4)
    while process.poll() is None:
        text = Path(f'{workdir}.log').read_text()
        met = unfinished(workdir) - earlier if moment == 'saving' else (moment or '') in text
        if moment and met:
            began, moment = time.monotonic(), None
        if not moment and time.monotonic() - began > wait:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()
            break
        time.sleep(0.005)
    log.close()
    if process.returncode not in (0, -signal.SIGKILL):
        sys.exit(f'A restarted run failed:\n{Path(f"{workdir}.log").read_text()[-3000:]}')
    return None if process.returncode == 0 else phase_of(workdir, earlier)


def finish(workdir, options):
    """Run to the end; return the seconds."""
    began = time.monotonic()
    process, log = start(workdir, options)
    code = process.wait()
    log.close()
    if code:
        sys.exit(f'A run failed:\n{Path(f"{workdir}.log").read_text()[-3000:]}')
    return time.monotonic() - began


def networks(workdir):
    """Return all arrays of the networks that a run left, by name."""
    sys.path.insert(0, str(ROOT))
    from fixres_jax.core import trees
    from fixres_jax.weights import checkpoint

    found = {}
    for path in sorted(Path(workdir).glob('*/fixres.json')):
        variables, _ = checkpoint.load_model(path.parent)
        found |= {f'{path.parent.name}/{name}': leaf for name, leaf in trees.flatten(variables).items()}
    return found


def untimed(rows):
    """Return what a report holds but for what it measured of the machine."""
    if not isinstance(rows, list):
        return rows
    return [{name: value for name, value in row.items() if name != 'milliseconds'} for row in rows]


def compare(alone, killed):
    """Return what differs between two workdirs, one line each."""
    wrong = []
    first, second = networks(alone), networks(killed)
    if first.keys() != second.keys():
        wrong.append('other networks')
    wrong += [f'other bits in {name}' for name in first if not np.array_equal(first[name], second[name])]
    for path in sorted(alone.glob('*/metrics.jsonl')):
        steps, others = ([json.loads(line) for line in p.read_text().splitlines()]
                         for p in (path, killed / path.relative_to(alone)))  # fmt: skip
        if [line['step'] for line in others] != list(range(1, len(steps) + 1)):
            wrong.append(f'{path.parent.name}/metrics.jsonl does not have every step once')
        if [line['loss'] for line in steps] != [line['loss'] for line in others]:
            wrong.append(f'{path.parent.name}/metrics.jsonl has other losses')
    reports = [json.loads((folder / 'report.json').read_text()) for folder in (alone, killed)]
    for name in ('numbers', 'curve', 'held_out_curve', 'adapted_minus_larger'):
        if untimed(reports[0][name]) != untimed(reports[1][name]):
            wrong.append(f'other {name} in report.json')
    names = [{str(path.relative_to(folder)) for path in folder.rglob('*')} for folder in (alone, killed)]
    for name in names[0] - names[1]:
        if not any(part in name for part in ('checkpoints/', 'tensorboard/')):
            wrong.append(f'{name} is missing')
    wrong += [f'{name} was left behind' for name in names[1] if 'orbax-checkpoint-tmp' in name]
    for path in killed.rglob('*.json'):
        try:
            json.loads(path.read_text())
        except ValueError:
            wrong.append(f'{path} is not whole')
    return wrong


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--kills', type=int, default=40)
    parser.add_argument('--seed', type=int, default=0)
    parser.add_argument('--everything', action='store_true', help="train with every piece of today's recipes")
    parser.add_argument('--folder', help='where to work; a temporary one by default')
    parser.add_argument('--json', help='file for the table')
    args = parser.parse_args()
    folder = Path(args.folder or tempfile.mkdtemp(prefix='fixres_soak_'))
    folder.mkdir(parents=True, exist_ok=True)
    rng = random.Random(args.seed)
    options = (*OPTIONS, *(EVERYTHING if args.everything else ()), f'--config.compilation_cache={folder / "cache"}')
    finish(folder / 'warm', options)
    limit = finish(folder / 'alone', options)
    print(f'A run left alone takes {limit:.0f} s.', flush=True)
    killed, rounds, wrong, table = 0, 0, [], collections.Counter()
    while killed < args.kills and not wrong:
        rounds += 1
        workdir = folder / f'round{rounds}'
        while killed < args.kills:
            moment = rng.choice(MOMENTS) if rng.random() < 0.5 else None
            what = kill_once(workdir, options, rng, limit, moment)
            if what is None:
                break
            killed += 1
            table[what] += 1
            print(f'kill {killed} in round {rounds}: {what}', flush=True)
        finish(workdir, options)
        wrong = compare(folder / 'alone', workdir)
        print(f'round {rounds} ended: {"; ".join(wrong) or "the same as the run left alone"}', flush=True)
        result = {'everything': args.everything, 'kills': killed, 'rounds': rounds, 'seed': args.seed}
        result |= {'differences': wrong, 'killed_while': table}
        if args.json:
            Path(args.json).write_text(json.dumps(result, indent=2) + '\n')
    print(json.dumps(result, indent=2))
    sys.exit(bool(wrong))


if __name__ == '__main__':
    main()

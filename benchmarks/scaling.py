"""Dry runs of the paper's networks over growing TPU slices, and the tables of docs/scaling.md made from them.

python benchmarks/scaling.py run     # compiles what has no file in docs/scaling/ yet, one after the other; hours
python benchmarks/scaling.py table   # prints the tables
"""

import argparse
import json
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
FOLDER = ROOT / 'docs' / 'scaling'
PER_CHIP = 128  # images of a step on a chip
SLICES = {'v5e:2x2': 4, 'v5e:4x4': 16, 'v5e:16x16': 256, 'v5p:2x2x1': 4}


def resnet50(resolution, topology, *extra, steps='train'):
    batch = PER_CHIP * SLICES[topology]
    options = [f'--config.{part}.batch_size={batch}' for part in ('train', 'finetune', 'test')]
    return [f'configs/resnet50.py:{resolution}', topology, steps, *options, *extra]


def resnext(topology, *extra, steps='finetune'):
    return ['configs/finetune.py:resnext101_32x48d', topology, steps, '--config.train.batch_size=256', *extra]


FSDP, REMAT = '--config.sharding=fsdp', '--config.model.remat=block'
# name -> config, topology, steps, options; in order of interest, for those who stop early.
RUNS = (
    {f'resnet50_{r}_{t.replace(":", "_")}': resnet50(r, t) for r in (128, 224) for t in ('v5e:2x2', 'v5e:4x4')}
    | {'resnet50_128_v5e_2x2_global_bn': resnet50(128, 'v5e:2x2', '--config.model.bn_group_size=0')}
    | {f'resnet50_{r}_v5e_16x16': resnet50(r, 'v5e:16x16') for r in (128, 224)}
    | {f'resnet50_{r}_v5p_2x2x1': resnet50(r, 'v5p:2x2x1') for r in (128, 224)}
    | {
        'resnext_adapt_replicated': resnext('v5e:4x4'),
        'resnext_adapt_fsdp': resnext('v5e:4x4', FSDP),
        'resnext_train_fsdp_remat': resnext('v5e:4x4', FSDP, REMAT, steps='train'),
        'resnet50_224_all': resnet50(224, 'v5e:4x4', steps='finetune,evaluate'),
    }
)


def run():
    """Compile what is missing; a run that fails is reported and left out."""
    FOLDER.mkdir(exist_ok=True)
    for name, (config, topology, steps, *options) in RUNS.items():
        path = FOLDER / f'{name}.json'
        if path.exists():
            continue
        command = [sys.executable, '-m', 'fixres_jax.dryrun', '--config', config, '--topology', topology]
        command += ['--steps', steps, '--json', str(path), *options]
        print(name, ' '.join(command[1:]), flush=True)
        result = subprocess.run(command, cwd=ROOT)
        if result.returncode:
            print(f'{name} failed with code {result.returncode}.', flush=True)


def table():
    """Print one row for each compiled step."""
    names = ('run', 'step', 'chips', 'batch', 'parameters', 'optimizer', 'temporary', 'in all', 'fits')
    names += ('TFLOP', 'GB moved', 'collectives', 'ms at best', 'images/s')
    print(f'| {" | ".join(names)} |\n|{"---|" * len(names)}')
    for path in (FOLDER / f'{name}.json' for name in RUNS):
        if not path.exists():
            continue
        result = json.loads(path.read_text())
        for s in result['steps']:
            kinds = [f'{e["count"]} {kind} ({e["bytes"] / 1e6:.0f} MB)' for kind, e in s['collectives'].items()]
            sizes = [f'{s[name] / 1e9:.2f}' for name in ('parameters', 'optimizer', 'temporary', 'memory')]
            row = [path.stem, f'{s["step"]} {s["resolution"]}', str(result['num_devices']), f'{s["batch_size"]:,}']
            row += sizes
            row += ['yes' if s['fits'] else 'no', f'{s["flops"] / 1e12:.2f}', f'{s["bytes_accessed"] / 1e9:.1f}']
            row += [', '.join(kinds) or 'none', f'{1e3 * s["seconds"]["step"]:.1f}', f'{s["images_per_second"]:,.0f}']
            print(f'| {" | ".join(row)} |')


if __name__ == '__main__':
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('action', choices=['run', 'table'])
    {'run': run, 'table': table}[parser.parse_args().action]()

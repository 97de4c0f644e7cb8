"""Dry runs of the paper's networks over growing slices of TPUs and on GPUs, and the tables of docs/scaling.md.

python benchmarks/scaling.py run     # compiles what has no file in docs/scaling/ yet, one after the other; hours
python benchmarks/scaling.py table   # prints the tables

TPU programs need libtpu, GPU programs the CUDA build of jax. In an environment without one of them its runs fail, and
the same command in another environment adds them.
"""

import argparse
import json
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
FOLDER = ROOT / 'docs' / 'scaling'
PER_CHIP = 128  # images of a step on a chip
CHIPS = {'v5e:2x2': 4, 'v5e:4x4': 16, 'v5e:16x16': 256, 'v5p:2x2x1': 4, 'h100': 1, 'h100:8': 8}
FSDP, REMAT = '--config.sharding=fsdp', '--config.model.remat=block'
VIT = 'vit_base_patch16_224'
LARGE = {'resnext101_32x48d': 16, 'tf_efficientnet_l2': 8, VIT: 64}  # networks that fsdp is for -> images a chip


def resnet50(resolution, topology, *extra, steps='train'):
    batch = PER_CHIP * CHIPS[topology]
    options = [f'--config.{part}.batch_size={batch}' for part in ('train', 'finetune', 'test')]
    return [f'configs/resnet50.py:{resolution}', topology, steps, *options, *extra]


def large(name, topology, *extra, steps='finetune'):
    batch = LARGE[name] * CHIPS[topology]
    options = [f'--config.{part}.batch_size={batch}' for part in ('train', 'finetune', 'test')]
    return [f'configs/finetune.py:{name},paper', topology, steps, *options, *extra]


def file_name(*parts):
    return '_'.join(str(part).replace(':', '_') for part in parts)


SIZES = (128, 224)
# name -> config, topology, steps, options; in order of interest, for those who stop early.
RUNS = (
    {file_name('resnet50', r, t): resnet50(r, t) for r in SIZES for t in ('v5e:4x4', 'h100', 'h100:8')}
    | {file_name('resnet50_224_all', t): resnet50(224, t, steps='finetune,evaluate') for t in ('v5e:4x4', 'h100')}
    | {file_name('resnet50_128', t, 'fsdp'): resnet50(128, t, FSDP) for t in ('v5e:4x4', 'h100:8')}
    | {file_name(name, 'v5e:4x4'): large(name, 'v5e:4x4', steps='finetune,evaluate') for name in LARGE}
    | {file_name(name, 'v5e:4x4_fsdp'): large(name, 'v5e:4x4', FSDP, steps='finetune,evaluate') for name in LARGE}
    | {file_name(name, 'h100:8'): large(name, 'h100:8') for name in LARGE}
    | {file_name(name, 'h100:8_fsdp'): large(name, 'h100:8', FSDP) for name in LARGE}
    | {file_name(name, 'v5e:4x4_fsdp_train'): large(name, 'v5e:4x4', FSDP, REMAT, steps='train') for name in LARGE}
    | {file_name(VIT, t, 'train'): large(VIT, t, steps='train') for t in ('v5e:4x4', 'h100:8')}
    | {file_name(VIT, t, 'train_fsdp'): large(VIT, t, FSDP, steps='train') for t in ('v5e:4x4', 'h100:8')}
    | {file_name('resnet50', r, t): resnet50(r, t) for t in ('v5e:2x2', 'v5e:16x16', 'v5p:2x2x1') for r in SIZES}
    | {'resnet50_128_v5e_2x2_global_bn': resnet50(128, 'v5e:2x2', '--config.model.bn_group_size=0')}
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
    """Print, for ResNet-50 and for the large networks, a table of memory and one of times, a row for each step."""
    for wanted in (('resnet50',), tuple(LARGE)):
        steps = []
        for path in (FOLDER / f'{name}.json' for name in RUNS if name.startswith(wanted)):
            if path.exists():
                result = json.loads(path.read_text())
                steps += [(path.stem, result['num_devices'], step) for step in result['steps']]
        memory_table(steps)
        time_table(steps)


def memory_table(steps):
    names = ('run', 'step', 'chips', 'batch', 'parameters', 'optimizer', 'temporary', 'in all', 'fits', 'collectives')
    print_row(*names)
    print_row(*['---'] * len(names))
    for name, chips, s in steps:
        kinds = [f'{e["count"]} {kind} ({e["bytes"] / 1e6:.0f} MB)' for kind, e in s['collectives'].items()]
        sizes = [f'{s[name] / 1e9:.2f}' for name in ('parameters', 'optimizer', 'temporary', 'memory')]
        fits, between = 'yes' if s['fits'] else 'no', ', '.join(kinds) or 'none'
        print_row(name, f'{s["step"]} {s["resolution"]}', chips, f'{s["batch_size"]:,}', *sizes, fits, between)
    print()


def time_table(steps):
    bounds = ('arithmetic', 'memory', 'cycles', 'links')
    names = ('run', 'step', 'TFLOP', 'GB moved', *(f'{name} ms' for name in bounds), 'estimate ms', 'images/s')
    print_row(*names)
    print_row(*['---'] * len(names))
    for name, _, s in steps:
        times = [f'{1e3 * s["seconds"][bound]:.1f}' if bound in s['seconds'] else '' for bound in (*bounds, 'step')]
        work = f'{s["flops"] / 1e12:.2f}', f'{s["bytes_moved"] / 1e9:.1f}'
        print_row(name, f'{s["step"]} {s["resolution"]}', *work, *times, f'{s["images_per_second"]:,.0f}')
    print()


def print_row(*cells):
    print('|', ' | '.join(map(str, cells)), '|')


if __name__ == '__main__':
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('action', choices=['run', 'table'])
    {'run': run, 'table': table}[parser.parse_args().action]()

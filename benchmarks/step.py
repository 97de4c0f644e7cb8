"""Images per second of the train step, the fine-tune step and the forward pass, beside the same model in torch.

The ResNets are torchvision's there, all others timm's; no numbers are dropped on either side.

Both frameworks run in this one process, on the same machine, turn by turn, on the same number of images that lie on
the device already; each figure is the median over the turns. Without torch, or with --no_torch, only this project's
steps are timed.

    python benchmarks/step.py --model resnet50 --batch_size 256 --resolutions 128 224 --dtype bfloat16
"""

import argparse
import functools
import json
import re
import statistics
import time

import jax
import jax.numpy as jnp
import numpy as np

from fixres_jax import models
from fixres_jax.machines import sharding
from fixres_jax.models import resnet
from fixres_jax.training import state
from fixres_jax.training.optimization import make_sgd
from fixres_jax.training.schedules import make_schedule
from fixres_jax.training.step import make_train_step

WORK = ('train', 'finetune', 'forward')


def jax_work(args, resolution):
    """Return {kind: function that does `args.steps` steps and waits}, with this project's step functions."""
    mesh = sharding.make_mesh()
    architecture = models.find(args.model)
    options = {rate: 0.0 for rate in ('dropout', 'drop_path') if rate in architecture.options}
    options |= {'dtype': jnp.dtype(args.dtype), 'bn_group_size': args.bn_group_size or None}
    model = models.create(args.model, 1000, **options)
    tx = make_sgd(make_schedule('constant', 1e-3, num_steps=1), momentum=0.9, weight_decay=1e-4)
    rng = np.random.default_rng(0)
    batch = sharding.put(
        {
            'image': rng.integers(0, 256, (args.batch_size, resolution, resolution, 3), dtype=np.uint8),
            'label': rng.integers(0, 1000, args.batch_size, dtype=np.int32),
        },
        mesh,
    )
    key = jax.random.key(0)

    def make_training(trainable, mode):
        step = make_train_step(model, tx, trainable, mode, mesh=mesh)
        kept = [state.create(model, tx, trainable, key=key, mesh=mesh)]

        def work():
            for _ in range(args.steps):
                kept[0], scalars = step(kept[0], batch, key)
            jax.block_until_ready(scalars)

        return work

    forward_fn = jax.jit(lambda variables, image: model.apply(variables, image, models.EVAL)[0].argmax(-1))
    variables = jax.jit(model.init, out_shardings=sharding.replicated(mesh))(key)

    def forward():
        for _ in range(args.steps):
            out = forward_fn(variables, batch['image'])
        jax.block_until_ready(out)

    regexes = architecture.finetune()
    return {
        'train': make_training('.*', models.TRAIN),
        'finetune': make_training(regexes['trainable'], models.Mode(regexes['batch_norm'])),
        'forward': forward,
    }


def torch_work(args, resolution):
    """Return the same in torch: channels_last, autocast, torch.compile on a GPU; images normalized on the device."""
    import torch

    architecture = models.find(args.model)
    try:
        import torchvision
    except (ImportError, RuntimeError):  # PyPI's torchvision beside a CPU build of torch
        from tests import torchvision_cpu  # noqa: F401

        # isort: split
        import torchvision

    gpu = torch.cuda.is_available()
    device = torch.device('cuda' if gpu else 'cpu')
    if gpu:
        torch.backends.cudnn.benchmark = True
    low = torch.bfloat16 if args.dtype == 'bfloat16' else None
    image = torch.randint(0, 256, (args.batch_size, 3, resolution, resolution), dtype=torch.uint8, device=device)
    image = image.contiguous(memory_format=torch.channels_last)
    label = torch.randint(0, 1000, (args.batch_size,), device=device)
    mean, std = (torch.tensor(v, device=device).view(1, 3, 1, 1) for v in (architecture.mean, architecture.std))

    if args.model in resnet.ROWS:
        create = getattr(torchvision.models, args.model)
    else:
        import timm

        create = functools.partial(timm.create_model, args.model)

    def make(kind):
        net = create().to(device, memory_format=torch.channels_last)
        net.train(kind == 'train')
        if kind == 'finetune':
            regexes = architecture.finetune()
            for name, module in net.named_modules():
                module.train(bool(re.fullmatch(regexes['batch_norm'], name.replace('.', '/'))))
            for name, parameter in net.named_parameters():
                parameter.requires_grad_(name.startswith(f'{architecture.classifier.replace("/", ".")}.'))
        parameters = [p for p in net.parameters() if p.requires_grad]
        optimizer = torch.optim.SGD(parameters, 1e-3, momentum=0.9, weight_decay=1e-4)

        def logits():
            with torch.autocast(device.type, dtype=low, enabled=low is not None):
                return net((image.float() / 255 - mean) / std)

        logits_fn = torch.compile(logits) if gpu and not args.no_compile else logits

        def work():
            for _ in range(args.steps):
                if kind == 'forward':
                    with torch.no_grad():
                        logits_fn().argmax(-1)
                    continue
                loss = torch.nn.functional.cross_entropy(logits_fn().float(), label)
                optimizer.zero_grad(set_to_none=True)
                loss.backward()
                optimizer.step()
            if gpu:
                torch.cuda.synchronize()

        return work

    return {kind: make(kind) for kind in WORK}


def measure(args, resolution):
    """Time all kinds of work turn by turn; return {framework: {kind: images per second}}."""
    works = {'fixres_jax': jax_work(args, resolution)}
    if not args.no_torch:
        try:
            works['torch'] = torch_work(args, resolution)
        except ImportError as error:
            print(f'torch is left out: {error}.')
    seconds = {(framework, kind): [] for framework in works for kind in args.work}
    for turn in range(args.turns + 1):  # the first turn compiles and warms up
        for framework, kind in seconds:
            began = time.perf_counter()
            works[framework][kind]()
            if turn:
                seconds[framework, kind].append(time.perf_counter() - began)
    images = args.steps * args.batch_size
    return {
        framework: {kind: images / statistics.median(seconds[framework, kind]) for kind in args.work}
        for framework in works
    }


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--model', default='resnet50', choices=models.ARCHITECTURES)
    parser.add_argument('--batch_size', type=int, default=32)
    parser.add_argument('--bn_group_size', type=int, default=0, help='0: the whole batch, as torch does on one device')
    parser.add_argument('--resolutions', type=int, nargs='+', default=[128, 224])
    parser.add_argument('--dtype', default='float32', choices=['float32', 'bfloat16'])
    parser.add_argument('--steps', type=int, default=3, help='steps a turn')
    parser.add_argument('--turns', type=int, default=5)
    parser.add_argument('--work', nargs='+', default=WORK, choices=WORK)
    parser.add_argument('--no_torch', action='store_true')
    parser.add_argument('--no_compile', action='store_true', help='torch without torch.compile')
    parser.add_argument('--json', help='file to add a line of results to')
    args = parser.parse_args()
    device = jax.devices()[0]
    print(f'{args.model}, {args.dtype}, batch {args.batch_size}, {jax.device_count()} x {device.device_kind}')
    for resolution in args.resolutions:
        rates = measure(args, resolution)
        ours, theirs = rates['fixres_jax'], rates.get('torch', {})
        for kind in args.work:
            line = f'{resolution:4d} px  {kind:9s} {ours[kind]:10.1f} images/s'
            if kind in theirs:
                line += f'   torch {theirs[kind]:10.1f}   ratio {ours[kind] / theirs[kind]:.2f}'
            print(line, flush=True)
        if {'finetune', 'forward'} <= set(args.work):
            print(f'{resolution:4d} px  a fine-tune step costs {ours["forward"] / ours["finetune"]:.3f} forward passes')
        if args.json:
            with open(args.json, 'a') as file:
                row = vars(args) | {'resolution': resolution, 'device': device.device_kind, 'rates': rates}
                file.write(json.dumps(row) + '\n')


if __name__ == '__main__':
    main()

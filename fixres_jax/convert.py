"""Bring torch weights in, take a network back to torch, or list released weights.

    fixres convert resnet50 weights.pth OUT               # torch's, timm's or the FixRes authors' file
    fixres convert hf:timm/resnet50.a1_in1k OUT
    fixres convert --to-torch runs/adapted adapted.pth    # or .safetensors, or a folder for timm
    fixres convert --to-jax adapted.safetensors OUT       # a program of jax.export, for those without this package
    fixres convert --list

OUT is a folder that every command and config takes as a network.
"""

import argparse
import contextlib
import json
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from etils import epath

from fixres_jax.core import command
from fixres_jax.core.errors import RunError, UsageError
from fixres_jax.weights import hub, imports, network, portable, releases, state_dicts, torch_weights


def _import(arguments: argparse.Namespace, name: str, path: str, out: str) -> str:
    """Convert a file of torch weights into a folder that every task accepts; return what to tell.

    With a `path` of the hub the name may be ''.
    """
    folder = command.empty_folder(out)
    told_about = {field: getattr(arguments, field) for field in imports.FIELDS if getattr(arguments, field) is not None}
    source = path
    if path.startswith(hub.PREFIX):
        found, path, fields = hub.fetch(path)
        if name not in ('', found):
            raise UsageError(f'{source} is a {found}, not a {name}.')
        name, told_about = found, fields | told_about
    loaded, notes = imports.read(
        path,
        name,
        release=arguments.release,
        ema=arguments.ema,
        num_classes=arguments.num_classes,
        reset_head=arguments.reset_head,
        about=told_about,
        **{option: value for option in ('width', 'padding') if (value := getattr(arguments, option))},
    )
    try:
        network.save(folder, loaded)
    except RunError:
        _remove(folder)  # half a network, which would be in the way of the next attempt
        raise
    described = f'{out} holds {source} as {name}:\n{json.dumps(loaded.about, indent=1)}'
    return '\n'.join((*notes, described))


def _remove(folder: epath.Path) -> None:
    """Remove a folder that threads of orbax may still be writing to: until it stays away."""
    for _ in range(20):
        with contextlib.suppress(OSError):
            folder.rmtree(missing_ok=True)
        time.sleep(0.1)
        if not folder.exists():
            return


def _export(run: str, out: str) -> str:
    """Write the network of a run as a torch file, or as a folder for timm; return what to tell."""
    if '://' in out:
        raise UsageError(f'Torch files are written to a local or mounted folder, not to {out}: copy them after.')
    loaded = _load(run)
    state_dict = torch_weights.to_torch(loaded.variables, loaded.model)
    told = f'{out} holds the {loaded.about["architecture"]} of {run}: {len(state_dict)} arrays.'
    if Path(out).suffix:
        state_dicts.save(out, state_dict, loaded.about)
    else:
        state_dicts.save_folder(out, state_dict, loaded.about)
        told += f"\nIn timm: timm.create_model('local-dir:{out}', pretrained=True)"
    if loaded.about.get('resize') == 'height':
        told += '\nIts test images have their height resized, which timm cannot do: it resizes the shorter side.'
    return told


def _load(path: str) -> network.Network:
    """Return the network of a run, or of a file that this program wrote."""
    return (
        network.load(path) if Path(path).suffix not in ('.safetensors', *state_dicts.PICKLES) else imports.read(path)[0]
    )


def _program(run: str, out: str, resolution: int | None) -> str:
    """Write the network of a run as a program of jax.export; return what to tell."""
    loaded = _load(run)
    resolution = resolution or loaded.about.get('test_resolution') or loaded.about['train_resolution']
    portable.save(out, loaded, resolution)
    return (
        f'{out} holds the {loaded.about["architecture"]} of {run} for images of {resolution} pixels, on '
        f'{", ".join(portable.PLATFORMS)}. docs/convert.md shows how it is loaded without this package.'
    )


def _parser() -> argparse.ArgumentParser:
    parser = command.Parser(
        prog='python -m fixres_jax.convert',
        usage='%(prog)s MODEL WEIGHTS OUT [options] | hf:NAME OUT [options] | --to-torch|--to-jax RUN OUT | --list',
        describe=__doc__,
    )
    add = parser.add_argument
    add(
        'arguments',
        nargs='*',
        metavar='MODEL WEIGHTS OUT',
        help='architecture, weight file, folder to write; hf:timm/resnet50.a1_in1k stands for the first two',
    )
    add(
        '--to-torch',
        action='store_true',
        help='write the network of RUN as OUT: .safetensors, .pth, or else a folder for timm',
    )
    add('--to-jax', action='store_true', help='write the network of RUN as a program of jax.export into the folder OUT')
    add('--list', action='store_true', help='print the released weights that are known')
    add('--release', default='', help='which release the file is, where its name does not say so')
    add('--ema', action='store_true', help='take the moving average of the weights')
    add('--num-classes', type=int, help='another number than that of the file starts a fresh classifier')
    add('--reset-head', action='store_true', help='start a fresh classifier')
    add('--width', type=int, help='channels of the stem; those of the file, if it is not given')
    add('--padding', help='of a family with several, such as same (TensorFlow) or symmetric; the usual one of MODEL')
    about = parser.add_argument_group('what to remember with the weights, where the release is not a known one')
    about.add_argument('--mean', type=float, nargs=3, help='of the channels of an image in [0, 1]')
    about.add_argument('--std', type=float, nargs=3, help='likewise')
    about.add_argument('--train-resolution', type=int, help='pixels')
    about.add_argument('--test-resolution', type=int, help='pixels')
    about.add_argument('--resize-ratio', type=float, help='resized side over test crop')
    about.add_argument('--resize', choices=('short', 'height'), help='side that is resized')
    about.add_argument('--interpolation', choices=('bilinear', 'bicubic'))
    about.add_argument('--crop', choices=('torchvision', 'tensorflow', 'resize'), help='random crop of training')
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line; return 0, 2 for wrong input, or 1 for a file of ours that is damaged."""
    return command.run(_main, argv)


def _main(argv: Sequence[str] | None) -> None:
    parser = _parser()
    arguments = parser.parse_args(argv)
    if arguments.list:
        print(releases.table())
        return
    of_hub = bool(arguments.arguments) and arguments.arguments[0].startswith(hub.PREFIX)
    wanted = 2 if arguments.to_torch or arguments.to_jax or of_hub else 3
    if len(arguments.arguments) != wanted:
        parser.error(f'expected {wanted} arguments, found {len(arguments.arguments)}')
    if arguments.to_torch:
        print(_export(*arguments.arguments))
    elif arguments.to_jax:
        print(_program(*arguments.arguments, arguments.test_resolution))
    else:
        print(_import(arguments, *([''] if of_hub else []), *arguments.arguments))


if __name__ == '__main__':
    sys.exit(main())

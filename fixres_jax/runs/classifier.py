"""Classifier: a network that is asked about pictures and saved."""

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from etils import epath

from fixres_jax.adaptation import adapt
from fixres_jax.core import command
from fixres_jax.core.errors import UsageError
from fixres_jax.core.resolution import Resolution, shape
from fixres_jax.data import given, sources, transforms
from fixres_jax.data.reading import cores
from fixres_jax.data.transforms import Transform
from fixres_jax.evaluation import outputs
from fixres_jax.machines import sharding
from fixres_jax.machines.runtime import Feed, Runtime, usual_batch
from fixres_jax.weights import imagenet, network, state_dicts, torch_weights
from fixres_jax.weights.network import Network

FILES = ('.safetensors', *state_dicts.PICKLES)
TOP = 5  # classes that a prediction names
Prediction = list[tuple[str, float]]  # (class name, probability), the most likely first


@dataclasses.dataclass(frozen=True, repr=False)
class Classifier(Network):
    """A network that is asked about pictures and saved; what `load` and `adapt` return.

    Attributes:
      record: what an adaptation chose and on what, see `adaptation.adapt.adapt`; {} of a network that was loaded.
    """

    record: Mapping[str, Any] = dataclasses.field(default_factory=dict)

    @property
    def resolution(self) -> int | Resolution:
        """Pixels of the test that suit it: those that it was adapted or is known for, or those of its training."""
        return Resolution.parse(self.about.get('test_resolution') or self.about['train_resolution'])

    @property
    def class_names(self) -> tuple[str, ...]:
        """Names of its outputs, of which a network of 1,000 that names none has ImageNet's; () where nobody says."""
        return tuple(self.about.get('class_names') or imagenet.names_for(self.model.num_classes))

    def transform(self, resolution: int | Resolution | None = None, crop_fraction: float | None = None) -> Transform:
        """Return its test transform: picture -> uint8[resolution, resolution, 3].

        Args:
          resolution: pixels; None for `self.resolution`.
          crop_fraction: share of the resized side that is looked at; None for its own.
        """
        how = {name: self.about[name] for name in ('resize_ratio', 'resize', 'interpolation') if name in self.about}
        if crop_fraction:
            if not 0 < crop_fraction <= 1:
                raise UsageError(
                    f'The crop fraction is {crop_fraction}: expected above 0 and at most 1, such as 0.875.'
                )
            how['resize_ratio'] = 1 / crop_fraction
        return transforms.make_test(_checked(self, resolution or self.resolution), **how)

    def outputs(
        self, images: Any, *, resolution: int | Resolution | None = None, flip: bool = False, batch_size: int = 0
    ) -> dict[str, np.ndarray]:
        """Return {'softmax': float32[N, K], 'embedding': float32[N, C], 'labels': int32[N]} of pictures, in order.

        Args:
          images: as `predict` takes them; labels are -1 where they are not known.
          resolution: pixels; None for `self.resolution`.
          flip: average with the mirror image.
          batch_size: images at once; 0 for what suits the devices.
        """
        source, _ = given.images(images)
        return outputs.collect(self, source, self.transform(resolution), feed('predict', batch_size), flip=flip)

    def extract(
        self,
        images: Any,
        directory: epath.PathLike,
        *,
        resolution: int | Resolution | None = None,
        flip: bool = False,
        batch_size: int = 0,
    ) -> dict[str, Any]:
        """Write what it says of pictures as files, see `evaluation.outputs.extract`; the arguments are as above.

        Returns:
          {'count', 'directory', 'resolution', 'labelled': whether labels were written}.
        """
        source, _ = given.images(images)
        known = self.class_names
        if source.class_names and known:
            fits = set(source.class_names) <= set(known)
            source = (sources.relabelled if fits else sources.unlabelled)(source, known)
        elif source.labels.max() >= self.model.num_classes:
            source = sources.unlabelled(source, known)
        how, transform = feed('extract', batch_size), self.transform(resolution)
        told = outputs.extract(self, source, transform, how, directory=epath.Path(directory), flip=flip)
        labelled = int(source.labels.min()) != sources.UNKNOWN
        return told | {'resolution': transform.resolution, 'labelled': labelled}

    def predict(self, images: Any, *, top: int = TOP, resolution: int | Resolution | None = None) -> Any:
        """Say what is on a picture, or on each of several.

        Args:
          images: a file, its bytes, a Pillow image or uint8[H, W, 3]; or a list of those, uint8[N, H, W, 3], or a
            folder. Each goes through the network's own transform.
          top: how many classes to name.
          resolution: pixels; None for `self.resolution`.

        Returns:
          The most likely classes, [(name, probability), ...]; for several pictures a list of that.
        """
        found = self.outputs(images, resolution=resolution)['softmax']
        said = [self.likely(row, top) for row in found]
        return said[0] if given.is_single(images) else said

    def likely(self, softmax: np.ndarray, top: int = TOP) -> Prediction:
        """Return the most likely classes of one picture, from float32[K]."""
        names = self.class_names or [f'class {number}' for number in range(len(softmax))]
        order = np.argsort(-softmax, kind='stable')[:top]
        return [(imagenet.word(names[place]), float(softmax[place])) for place in order]

    def save(self, path: epath.PathLike) -> None:
        """Write it: .safetensors or .pth under torch's names, as timm and torchvision read them; else as a folder.

        Raises:
          UsageError: for a folder that is not empty, or a file of another kind.
          RunError: when it cannot be written.
        """
        if Path(path).suffix in FILES:
            state_dicts.save(path, torch_weights.to_torch(jax.device_get(self.variables), self.model), self.about)
            return
        network.save(command.empty_folder(path), self)

    def __repr__(self) -> str:
        about, size = self.about, sum(leaf.size for leaf in jax.tree.leaves(self.variables['params']))
        text = f'{about["architecture"]}: {self.model.num_classes:,} classes, {size / 1e6:.1f} million parameters, '
        text += f'trained at {about["train_resolution"]}, tested at {self.resolution}'
        return f'{text}\n{adapt.describe(self.record)}' if self.record else text


def place(loaded: Network) -> Classifier:
    """Return a network on the devices, with activations of the kind that these are fast with."""
    dtype = jnp.float32 if jax.default_backend() == 'cpu' else jnp.bfloat16
    placed = Network(loaded.model.clone(dtype=dtype), loaded.variables, dict(loaded.about)).placed(_runtime())
    return Classifier(placed.model, placed.variables, placed.about)


def _runtime() -> Runtime:
    return Runtime(sharding.make_mesh(), threads=cores())


def feed(title: str, batch_size: int) -> Feed:
    runtime = _runtime()
    return Feed(runtime, batch_size or usual_batch(runtime.mesh), title)


def _checked(net: Network, resolution: int | Resolution) -> int | Resolution:
    """Return a resolution that an architecture can take."""
    architecture, name = net.model.architecture, net.about['architecture']
    least, multiple = architecture.min_resolution, architecture.multiple
    for pixels in shape(resolution):
        if pixels < least or pixels % multiple:
            fitting = max(least, multiple * round(pixels / multiple))
            steps = f' in multiples of {multiple}' if multiple > 1 else ''
            raise UsageError(f'resolution={resolution}: {name} takes {least} or more{steps}, such as {fitting}.')
    return resolution


def names(net: Network) -> Sequence[str]:
    """Return the names of a network's outputs; their numbers where nobody says any."""
    return classed(net).class_names or [str(number) for number in range(net.model.num_classes)]


def classed(net: Network) -> Classifier:
    """Return a network as one that can be asked."""
    return net if isinstance(net, Classifier) else Classifier(net.model, net.variables, net.about)

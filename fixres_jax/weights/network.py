"""Network: a model with its weights and what one must know to use it, as one value."""

import dataclasses
from collections.abc import Mapping
from typing import Any

import jax
from etils import epath

from fixres_jax import models
from fixres_jax.core import trees
from fixres_jax.machines.runtime import Runtime
from fixres_jax.models import EVAL, Mode, Model, Variables
from fixres_jax.weights import checkpoint, hub


@dataclasses.dataclass(frozen=True)
class Network:
    """Hold a network.

    Attributes:
      model: its architecture with its options.
      variables: its weights, on this host or on the devices; None for random ones that are yet to be drawn.
      about: the content of `fixres.json`: architecture, classes, preprocessing, resolutions, what it was trained on.
    """

    model: Model
    variables: Variables | None
    about: Mapping[str, Any] = dataclasses.field(default_factory=dict)

    @property
    def head(self) -> Mapping[str, Any]:
        """The classifier's parameters, {'kernel': float32[C, K], 'bias': float32[K]}."""
        return self.model.head(self.variables)

    def apply(self, images: jax.Array, mode: Mode = EVAL) -> Any:
        """Return (logits float32[B, K], {'features', 'embedding'}) of uint8[B, R, R, 3]."""
        return self.model.apply(self.variables, images, mode)

    def placed(self, runtime: Runtime) -> 'Network':
        """Return the network with its weights on the devices."""
        return dataclasses.replace(self, variables=runtime.place(self.variables))

    def replaced(self, leaves: Mapping[str, Any]) -> 'Network':
        """Return the network with some leaves exchanged, given by their '/' names, such as 'params/fc/bias'."""
        flat = trees.flatten(self.variables)
        assert leaves.keys() <= flat.keys(), sorted(leaves.keys() - flat.keys())
        return dataclasses.replace(self, variables={'batch_stats': {}} | trees.unflatten(flat | dict(leaves)))

    def with_head(self, head: Mapping[str, Any]) -> 'Network':
        """Return the network with another classifier of the same shape."""
        prefix = f'params/{self.model.architecture.classifier}'
        return self.replaced({f'{prefix}/{name}': leaf for name, leaf in head.items()})

    def statistics(self, batch_norm: str) -> dict[str, jax.Array]:
        """Return the statistics of the layers that a regex matches, as {'layer4/2/bn3/mean': float32[C], ...}."""
        flat = trees.flatten(self.variables['batch_stats'])
        layers = models.batch_norm_layers(self.variables['batch_stats'], batch_norm)
        return {f'{layer}/{name}': flat[f'{layer}/{name}'] for layer in layers for name in ('mean', 'var')}

    def adapted_leaves(self, batch_norm: str) -> dict[str, jax.Array]:
        """Return the leaves that an adaptation may change, by their '/' names: those statistics and the classifier."""
        prefix = f'params/{self.model.architecture.classifier}'
        statistics = {f'batch_stats/{name}': leaf for name, leaf in self.statistics(batch_norm).items()}
        return statistics | {f'{prefix}/{name}': leaf for name, leaf in self.head.items()}


def load(path: epath.PathLike, **options: Any) -> Network:
    """Load a network, onto this host.

    Args:
      path: a workdir, the folder of one of its phases, converted weights, or 'hf:NAME', a repository of Hugging Face.
      **options: of the model, as `models.create` takes them, beside those that `fixres.json` tells.

    Raises:
      UsageError: when there is no network.
      RunError: when its files are damaged.
    """
    if str(path).startswith(hub.PREFIX):
        from fixres_jax.weights import imports  # which imports this

        architecture, file, fields = hub.fetch(str(path))
        loaded, _ = imports.read(file, architecture, about=fields)
        return dataclasses.replace(loaded, model=loaded.model.clone(**options)) if options else loaded
    variables, about = checkpoint.load_model(path)
    name = about['architecture']
    prefix = f'params/{models.find(name).classifier}'
    num_classes = trees.flatten(variables)[f'{prefix}/bias'].shape[0]
    told = {field: about[field] for field in ('width', 'mean', 'std', 'padding') if about.get(field)}
    return Network(models.create(name, num_classes, **told | options), {'batch_stats': {}} | variables, about)


def save(directory: epath.PathLike, network: Network) -> None:
    """Write a network that is not being trained into an absent or empty folder, as `load` reads it.

    Raises:
      RunError: when it cannot be written.
    """
    checkpoint.save_model(epath.Path(directory), network.variables, dict(network.about))

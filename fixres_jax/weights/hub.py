"""Weights of Hugging Face: `timm/resnet50.a1_in1k` fetched, with what its repository says of it; of the extra `hub`."""

import contextlib
import json
import logging
from collections.abc import Iterator
from typing import Any

from fixres_jax.core.errors import UsageError
from fixres_jax.weights import releases, timm_config

PREFIX = 'hf:'  # of names on command lines and in configs


def fetch(name: str) -> tuple[str, str, dict[str, Any]]:
    """Return (architecture, path of the weights, fields of fixres.json) of a repository.

    Files that the local cache of huggingface_hub holds are taken from there, and need no network.

    Args:
      name: of the repository, such as 'timm/resnet50.a1_in1k'; a revision may follow after '@'.

    Raises:
      UsageError: when it is not there and not in the cache, or holds no weights of a network of this program.
    """
    try:
        import huggingface_hub
        from huggingface_hub import errors
    except ImportError as error:
        raise UsageError(f'{PREFIX}{name} needs huggingface_hub: pip install "fixres-jax[hub]".') from error
    name, _, revision = name.removeprefix(PREFIX).partition('@')
    releases.refuse_look_alike(name)

    def get(file: str) -> str:
        try:
            return huggingface_hub.hf_hub_download(name, file, revision=revision or None, local_files_only=True)
        except errors.LocalEntryNotFoundError:
            return huggingface_hub.hf_hub_download(name, file, revision=revision or None)

    with _quiet(), _one_line(name):
        with open(get(timm_config.CONFIG)) as file:
            config = json.load(file)
        try:
            architecture, fields = timm_config.from_timm(config)
        except UsageError as error:
            raise UsageError(f'{PREFIX}{name}: {error}') from error
        for number, file in enumerate(timm_config.WEIGHTS, 1):
            with contextlib.suppress(*(errors.EntryNotFoundError,) if number < len(timm_config.WEIGHTS) else ()):
                path = get(file)
                break
    known = {release.name: release for release in releases.RELEASES}.get(name)
    if known is not None:  # Its row knows what it was trained at before the last stage.
        fields = known.metadata() | fields | {'train_resolution': known.train_resolution}
    return architecture, path, fields


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Keep the package's word on each of its attempts to itself: what came of them is told in one line."""
    log = logging.getLogger('huggingface_hub')
    level = log.level
    log.setLevel(logging.ERROR)
    try:
        yield
    finally:
        log.setLevel(level)


@contextlib.contextmanager
def _one_line(name: str) -> Iterator[None]:
    """Turn what goes wrong with a repository into one line."""
    from huggingface_hub import errors

    try:
        yield
    except (errors.HFValidationError, errors.RepositoryNotFoundError, errors.RevisionNotFoundError) as error:
        raise UsageError(
            f'{PREFIX}{name} is not on Hugging Face, or not for you: expected a repository such as '
            f'{PREFIX}timm/resnet50.a1_in1k. For a private one log in with `hf auth login`.'
        ) from error
    except errors.LocalEntryNotFoundError as error:
        raise UsageError(
            f'{PREFIX}{name} is not in the local cache, and Hugging Face cannot be reached. Fetch it where there is a '
            f'network with `hf download {name}`, and copy its files or the cache (HF_HOME) here.'
        ) from error
    except errors.EntryNotFoundError as error:
        wanted = ' and '.join((timm_config.CONFIG, ' or '.join(timm_config.WEIGHTS)))
        raise UsageError(f'{PREFIX}{name} does not hold {wanted}, as repositories of timm do.') from error
    except errors.HfHubHTTPError as error:
        raise UsageError(f'{PREFIX}{name} cannot be fetched: {str(error).splitlines()[0]}') from error

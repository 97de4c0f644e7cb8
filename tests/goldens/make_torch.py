"""Freeze what torchvision's networks compute: `PYTHONPATH=tests python tests/goldens/make_torch.py`.

Needs torch and torchvision, and about two minutes and 6 GB; the tests that read torch.npz need none of them.
"""

import pathlib

import numpy as np
import torch

from goldens import torch_models, weights


def forward(name: str) -> dict[str, np.ndarray]:
    """Return a row for each image of each resolution: its logits, then some of its embedding."""
    model, rows = torch_models.load(name), []
    for resolution, number in weights.BATCHES.items():
        logits, embedding = torch_models.apply(model, weights.images(number, resolution))
        rows.append(np.concatenate([logits, embedding[:, :: weights.EMBEDDING_STRIDE]], axis=1))
    return {f'{name}/forward': np.concatenate(rows)}


def train(name: str) -> dict[str, np.ndarray]:
    """Return a summary of every parameter and statistic after some steps of training."""
    state_dict = torch_models.train(torch_models.load(name, weights.smooth_weight).train(), **weights.TRAIN)
    rows = [weights.summary(key, state_dict[key]) for key in sorted(state_dict) if not key.endswith('tracked')]
    return {f'{name}/trained': np.stack(rows)}


def finetune(name: str) -> dict[str, np.ndarray]:
    """Return a summary of what the reference's fine-tuning changes: the classifier and layer4[2].bn3's statistics."""
    model = torch_models.load(name).eval()
    model.layer4[2].bn3.train()
    for key, parameter in model.named_parameters():
        parameter.requires_grad = key.startswith('fc.')
    before = {key: value.clone().numpy() for key, value in model.state_dict().items()}
    after = torch_models.train(model, **weights.FINETUNE)
    changed = {key for key in after if not np.array_equal(before[key], after[key])}
    assert changed == {*weights.FINETUNED_KEYS, 'layer4.2.bn3.num_batches_tracked'}, changed
    return {f'{name}/finetuned': np.stack([weights.summary(key, after[key]) for key in weights.FINETUNED_KEYS])}


def main() -> None:
    golden = {}
    for name in torch_models.NETWORKS:
        with torch.device('meta'):
            shapes = {key: value.shape for key, value in torch_models.create(name, 1000).state_dict().items()}
        golden[f'{name}/signature'] = np.array(weights.signature(shapes))
        if name not in ('resnext101_32x32d', 'resnext101_32x48d'):
            golden |= forward(name)
        print(name, flush=True)
    for name in weights.TRAINED:
        golden |= train(name)
    golden |= finetune(weights.FINETUNED)
    np.savez_compressed(pathlib.Path(__file__).with_name('torch.npz'), **golden)


if __name__ == '__main__':
    main()

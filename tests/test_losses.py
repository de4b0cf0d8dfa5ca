import math

import numpy as np
import pytest
import torch

from hf_clap import contrastive_loss


def random_embeds(pairs=6, dim=5, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.nn.functional.normalize(torch.randn(2, pairs, dim, generator=generator), dim=-1)


def test_equal_embeddings_give_log_of_the_batch():
    zeros = torch.zeros(7, 4)
    assert contrastive_loss(zeros, zeros, 10.0).item() == pytest.approx(math.log(7), abs=1e-6)


def test_swapping_the_sides_changes_nothing():
    audio, text = random_embeds()
    assert contrastive_loss(audio, text, 14.3).item() == pytest.approx(
        contrastive_loss(text, audio, 14.3).item(), abs=1e-6
    )


def test_value_is_numpys():
    audio, text = random_embeds()
    logits = 14.3 * audio.double().numpy() @ text.double().numpy().T

    def cross_entropy(rows):
        return np.mean(np.log(np.exp(rows).sum(axis=1)) - np.diag(rows))

    expected = (cross_entropy(logits) + cross_entropy(logits.T)) / 2
    assert contrastive_loss(audio.double(), text.double(), 14.3).item() == pytest.approx(expected, abs=1e-12)

import math
import subprocess
import sys

import numpy as np
import pytest
import torch
from transformers import ClapConfig, ClapModel

from hf_clap import contrastive_loss, sigmoid_loss
from hf_clap.losses import caption_groups

LOSSES = [contrastive_loss, sigmoid_loss]


def random_embeds(pairs=6, dim=5, seed=0):
    generator = torch.Generator().manual_seed(seed)
    embeds = torch.randn(2, pairs, dim, generator=generator, dtype=torch.float64)
    return torch.nn.functional.normalize(embeds, dim=-1).requires_grad_()


def gradients(loss_of, *tensors):
    """(loss, gradients) of a loss of these tensors."""
    loss = loss_of(*tensors)
    return loss.detach(), torch.autograd.grad(loss, tensors)


def numpy_softmax_loss(audio, text, scale, groups=None):
    logits = scale * audio @ text.T
    if groups is not None:
        logits = np.where((groups[:, None] == groups) & ~np.eye(len(groups), dtype=bool), -np.inf, logits)

    def cross_entropy(rows):
        return np.mean(np.log(np.exp(rows).sum(axis=1)) - np.diag(rows))

    return (cross_entropy(logits) + cross_entropy(logits.T)) / 2


def numpy_sigmoid_loss(audio, text, scale, bias, groups=None):
    signs = 2 * np.eye(len(audio)) - 1
    losses = np.log1p(np.exp(-signs * (scale * audio @ text.T + bias)))
    if groups is not None:
        losses[(groups[:, None] == groups) & ~np.eye(len(groups), dtype=bool)] = 0
    return losses.sum() / len(audio)


def test_equal_embeddings_give_log_of_the_batch():
    zeros = torch.zeros(7, 4)
    assert contrastive_loss(zeros, zeros, 10.0).item() == pytest.approx(math.log(7), abs=1e-6)
    assert sigmoid_loss(zeros, zeros, 10.0).item() == pytest.approx(7 * math.log(2), abs=1e-5)
    biased = math.log1p(math.exp(3)) + 6 * math.log1p(math.exp(-3))
    assert sigmoid_loss(zeros, zeros, 10.0, -3.0).item() == pytest.approx(biased, abs=1e-5)


@pytest.mark.parametrize("loss", LOSSES)
def test_swapping_the_sides_changes_nothing(loss):
    audio, text = random_embeds()
    assert loss(audio, text, 14.3, -2.0).item() == pytest.approx(loss(text, audio, 14.3, -2.0).item(), abs=1e-12)


def test_value_is_numpys():
    audio, text = random_embeds()
    arrays = [side.detach().numpy() for side in (audio, text)]
    assert contrastive_loss(audio, text, 14.3).item() == pytest.approx(numpy_softmax_loss(*arrays, 14.3), abs=1e-12)
    expected = numpy_sigmoid_loss(*arrays, 14.3, -2.0)
    assert sigmoid_loss(audio, text, 14.3, -2.0).item() == pytest.approx(expected, abs=1e-12)


def test_pairs_of_one_group_are_not_contrasted():
    audio, text = random_embeds()
    groups = torch.tensor([0, 1, 0, 2, 3, 0])
    arrays = [side.detach().numpy() for side in (audio, text)]
    expected = numpy_softmax_loss(*arrays, 14.3, groups.numpy())
    assert contrastive_loss(audio, text, 14.3, groups=groups).item() == pytest.approx(expected, abs=1e-12)
    expected = numpy_sigmoid_loss(*arrays, 14.3, -2.0, groups.numpy())
    assert sigmoid_loss(audio, text, 14.3, -2.0, groups=groups).item() == pytest.approx(expected, abs=1e-12)
    assert contrastive_loss(audio, text, 14.3, groups=torch.zeros(6, dtype=torch.long)).item() == 0
    distinct = contrastive_loss(audio, text, 14.3, groups=torch.arange(6))
    assert distinct.item() == contrastive_loss(audio, text, 14.3).item()


@pytest.mark.parametrize("loss", LOSSES)
@pytest.mark.parametrize("chunk_size", [1, 4, 6, 100])
def test_chunks_change_nothing(loss, chunk_size):
    audio, text = random_embeds()
    scale = torch.tensor(14.3, dtype=torch.float64, requires_grad=True)
    bias = torch.tensor(-2.0, dtype=torch.float64, requires_grad=True)
    groups = torch.tensor([0, 1, 0, 2, 3, 0])

    def whole(audio, text, scale):
        return loss(audio, text, scale, bias, groups=groups)

    def chunked(audio, text, scale):
        return loss(audio, text, scale, bias, groups=groups, chunk_size=chunk_size)

    expected, result = gradients(whole, audio, text, scale), gradients(chunked, audio, text, scale)
    assert result[0].item() == pytest.approx(expected[0].item(), abs=1e-12)
    for one, other in zip(result[1], expected[1], strict=True):
        assert torch.allclose(one, other, atol=1e-12)


@pytest.mark.parametrize("loss", LOSSES)
def test_the_mean_of_parts_is_the_whole(loss):
    """What processes do that have gathered each other's embeddings: each contrasts its own pairs with all."""
    audio, text = random_embeds(8)
    groups = torch.tensor([0, 1, 0, 2, 3, 0, 4, 5])

    def in_parts(audio, text):
        parts = [
            loss(
                audio[first : first + 4],
                text[first : first + 4],
                14.3,
                -2.0,
                first,
                all_audio_embeds=audio,
                all_text_embeds=text,
                groups=groups,
            )
            for first in (0, 4)
        ]
        return sum(parts) / 2

    expected = gradients(lambda audio, text: loss(audio, text, 14.3, -2.0, groups=groups), audio, text)
    result = gradients(in_parts, audio, text)
    assert result[0].item() == pytest.approx(expected[0].item(), abs=1e-12)
    for one, other in zip(result[1], expected[1], strict=True):
        assert torch.allclose(one, other, atol=1e-12)


def test_groups_are_the_captions():
    generator = torch.Generator().manual_seed(0)
    ids = torch.randint(0, 50_000, (20_000, 12), generator=generator)
    lengths = torch.randint(1, 13, (20_000, 1), generator=generator)
    mask = (torch.arange(12) < lengths).long()
    groups = caption_groups(ids, mask)
    texts = [tuple(row[:length]) for row, length in zip(ids.tolist(), lengths[:, 0].tolist(), strict=True)]
    assert len(groups.unique()) == len(set(texts))  # no two captions fall together
    longer = torch.nn.functional.pad(ids, (0, 3), value=1)  # another batch, with more padding and other tokens in it
    assert torch.equal(caption_groups(longer, torch.nn.functional.pad(mask, (0, 3))), groups)
    one, two, again = caption_groups(torch.zeros(3, 2, dtype=torch.long), torch.tensor([[1, 0], [1, 1], [1, 1]]))
    assert one != two
    assert two == again


@pytest.mark.parametrize("offset", [-1, 3])
def test_pairs_that_are_not_among_all_are_refused(offset):
    audio, text = random_embeds()
    with pytest.raises(ValueError, match=f"4 pairs from {offset} on are not among 6"):
        contrastive_loss(audio[:4], text[:4], 1.0, offset=offset, all_audio_embeds=audio, all_text_embeds=text)


LARGE = """
import resource, torch
from hf_clap import contrastive_loss
torch.set_num_threads(2)
embeds = torch.nn.functional.normalize(torch.randn(2, 8192, 64), dim=-1).requires_grad_()
contrastive_loss(*embeds[:, :2], 10.0, chunk_size=1).backward()  # what PyTorch loads the first time does not count
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
contrastive_loss(*embeds, 10.0, chunk_size=1024).backward()
print((resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024)
"""


def test_the_logits_of_a_large_batch_are_never_whole_in_memory():
    """8,192 x 8,192 logits are 256 MB, and as much again for their gradients; those of a chunk are 32 MB."""
    finished = subprocess.run([sys.executable, "-c", LARGE], capture_output=True, text=True)
    assert finished.returncode == 0, finished.stderr
    assert float(finished.stdout) < 200


def test_transformers_leaves_audio_to_text_out():
    """The loss that its `ClapModel` returns is text -> audio twice; ours, of the same embeddings, is both ways."""
    torch.manual_seed(0)
    text = {"vocab_size": 60, "hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}
    audio = {"patch_embeds_hidden_size": 16, "hidden_size": 128, "num_attention_heads": [2, 2, 4, 8]}
    config = ClapConfig(
        text_config=text | {"intermediate_size": 40, "max_position_embeddings": 60},
        audio_config=audio | {"depths": [1, 1, 1, 1]},
        projection_dim=24,
    )
    inputs = {
        "input_ids": torch.randint(3, 60, (8, 7)),
        "input_features": torch.randn(8, 1, 1001, 64),
        "is_longer": torch.zeros(8, 1, dtype=torch.bool),
    }
    with torch.no_grad():
        peer = ClapModel(config).eval()
        theirs = peer(**inputs, return_loss=True)
        targets = torch.arange(8)
        text_to_audio = torch.nn.functional.cross_entropy(theirs.logits_per_text, targets).item()
        audio_to_text = torch.nn.functional.cross_entropy(theirs.logits_per_audio, targets).item()
        ours = contrastive_loss(theirs.audio_embeds, theirs.text_embeds, peer.logit_scale_a.exp())
    assert theirs.loss.item() == pytest.approx(text_to_audio, abs=1e-5)
    assert ours.item() == pytest.approx((audio_to_text + text_to_audio) / 2, abs=1e-5)
    assert abs(audio_to_text - text_to_audio) > 0.05


@pytest.mark.parametrize("loss", [contrastive_loss, sigmoid_loss])
def test_what_are_no_pairs_or_no_chunks_is_refused(loss):
    with pytest.raises(ValueError, match="3 clips and 4 texts are not pairs"):
        loss(torch.eye(3, 4), torch.eye(4), 1.0)
    for size in (0, -1):
        with pytest.raises(ValueError, match=f"chunk_size={size} is not possible"):
            loss(torch.eye(4), torch.eye(4), 1.0, chunk_size=size)

"""The collator gives what the processor gives, to any loader."""

import copy

import numpy as np
import pytest
import torch
from torch.utils.data import DataLoader

from conftest import noise
from hf_clap import Pair, PairCollator
from hf_clap.waveform import AudioError


@pytest.fixture
def pairs(processor):
    """Clips of 0.3, 1.2 and 10 s, so that they are filled and masked differently, and captions of several lengths."""
    rate = processor.feature_extractor.sampling_rate
    captions = ("rain", "a dog barks at a passing car, and then a door is shut", "wind")
    return [
        Pair(noise(seconds, rate, seed), caption)
        for seed, (seconds, caption) in enumerate(zip((0.3, 1.2, 10), captions, strict=True))
    ]


def assert_equal(batch, expected):
    assert batch.keys() == expected.keys() | {"return_loss"}
    for name, value in expected.items():
        assert torch.equal(batch[name], value), name


def test_a_batch_is_what_the_processor_gives(processor, pairs):
    batch = PairCollator(processor)(pairs)
    rate = processor.feature_extractor.sampling_rate
    expected = processor(
        text=[pair.caption for pair in pairs], audio=[pair.audio for pair in pairs], sampling_rate=rate
    )
    assert_equal(batch, expected)
    assert batch["return_loss"] is True
    assert type(batch) is dict
    assert batch["attention_mask"].sum(dim=1).unique().numel() > 1
    alone = processor(text="rain", audio=pairs[0].audio, sampling_rate=rate)
    assert torch.equal(batch["input_features"][0, :, :30], alone["input_features"][0, :, :30])


def test_lists_and_loaders_give_the_same(processor, pairs):
    collate = PairCollator(processor)
    expected = collate(pairs)
    plain = [(pair.audio, pair.caption) for pair in pairs]
    (batch,) = DataLoader(plain, batch_size=3, collate_fn=collate)
    for other in (collate(tuple(plain)), batch):
        assert_equal({**other}, {name: value for name, value in expected.items() if name != "return_loss"})
    one_by_one = list(DataLoader(pairs, batch_size=1, collate_fn=collate, num_workers=1))
    for number, single in enumerate(one_by_one):
        frames = single["input_features"].shape[2]
        assert torch.equal(single["input_features"][0], expected["input_features"][number, :, :frames])


def test_the_model_gives_its_loss(tiny_model, processor, pairs):
    with torch.no_grad():
        loss = tiny_model(**PairCollator(processor)(pairs)).loss
    assert loss.ndim == 0
    assert 0 < loss.item() < 20


def test_clips_that_the_stream_has_cropped_need_no_generator(processor, pairs):
    """`crop="random"` is the stream's to draw; a longer clip, in an evaluation, gives its centre each time."""
    cropping = copy.deepcopy(processor)
    cropping.feature_extractor.crop = "random"
    rate = cropping.feature_extractor.sampling_rate
    long = [*pairs, Pair(noise(13, rate, 5), "a long one")]
    expected = processor(
        text=[pair.caption for pair in long], audio=[pair.audio for pair in long], sampling_rate=rate, crop="center"
    )
    assert_equal(PairCollator(cropping)(long), expected)


def test_a_clip_that_cannot_be_used_is_an_error(processor, pairs):
    with pytest.raises(AudioError, match="NaN or infinite"):
        PairCollator(processor)([*pairs, Pair(np.full(800, np.nan, np.float32), "nothing")])


@pytest.mark.parametrize("kind", [None, "a/checkpoint"])
def test_what_is_no_processor_is_refused(kind):
    sentence = f"^A {type(kind).__name__} makes no batches; pass the model's HfClapProcessor.$"
    with pytest.raises(TypeError, match=sentence):
        PairCollator(kind)

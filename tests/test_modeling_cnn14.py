import pytest
import torch

from hf_clap import HfClapCnn14Config, HfClapCnn14Model

CNN10 = {"channels": (64, 128, 256, 512), "pool_sizes": (2, 2, 2, 2), "hidden_size": 512}


@pytest.mark.parametrize(
    ("settings", "published"),
    [
        # PANNs (table 3 of arXiv 1912.10211) counts a head of 527 classes too
        ({}, 80_753_615 - 527 * 2049),
        (CNN10, 5_219_279 - 527 * 513),
        (CNN10 | {"convs_per_block": 1, "kernel_size": 5}, 4_837_455 - 527 * 513),
    ],
    ids=["Cnn14", "Cnn10", "Cnn6"],
)
def test_number_of_parameters_is_the_published_one(settings, published):
    with torch.device("meta"):
        tower = HfClapCnn14Model(HfClapCnn14Config(**settings))
    assert sum(parameter.numel() for parameter in tower.parameters()) == published


def test_steps_keep_time():
    torch.manual_seed(0)
    tower = HfClapCnn14Model(HfClapCnn14Config(channels=(4, 4), pool_sizes=(2, 2), hidden_size=6)).eval()
    features = torch.zeros(1, 1, 80, 64)
    features[:, :, 40:] = 5.0
    with torch.inference_mode():
        steps = tower(features).last_hidden_state[0]
    assert steps.shape == (20, 6)
    assert torch.equal(steps[2], steps[6])  # far from the change all frames look alike
    assert not torch.allclose(steps[2], steps[15])


def test_impossible_input_is_refused():
    tower = HfClapCnn14Model(HfClapCnn14Config(channels=(4, 4), pool_sizes=(2, 2), hidden_size=6))
    with pytest.raises(ValueError, match="at least 4 frames and got 3"):
        tower(torch.zeros(1, 1, 3, 64))
    with pytest.raises(ValueError, match="min_length_s to None"):
        tower(torch.zeros(1, 1, 80, 64), torch.ones(1, 80))

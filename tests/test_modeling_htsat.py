"""HTS-AT against transformers' own, and fusion. What all towers share is in test_modeling_hf_clap.py."""

import pytest
import torch
from torch.nn import functional as F
from transformers import ClapAudioConfig, ClapAudioModel

from conftest import SMALL_AUDIO, noise
from hf_clap import HfClapFeatureExtractor, HfClapHtsatConfig, HfClapHtsatModel
from hf_clap.checkpoint_names import LAYOUTS

FUSION = {"mel_scale": "htk", "mel_norm": None, "crop": "fusion", "sampling_rate": 32000, "max_length_s": 3.0}


def clap_audio_model(fusion=False, seed=0):
    """transformers' tower at full size, every parameter and statistic off its default."""
    torch.manual_seed(seed)
    peer = ClapAudioModel(ClapAudioConfig(enable_fusion=fusion, fusion_type="aff_2d" if fusion else None)).eval()
    with torch.no_grad():
        for parameter in peer.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.02)
        for name, buffer in peer.named_buffers():
            if "running" in name:
                buffer.add_(torch.rand_like(buffer))
    return peer


def converted(peer):
    ours = HfClapHtsatModel(HfClapHtsatConfig(fusion=peer.config.enable_fusion)).eval()
    state = {f"audio_model.{name}": tensor for name, tensor in peer.state_dict().items()}
    renamed = LAYOUTS["transformers"].to_ours(state, [f"audio_model.{name}" for name in ours.state_dict()])
    renamed = {name.removeprefix("audio_model."): tensor for name, tensor in renamed.items()}
    ours.load_state_dict(ours.state_dict() | renamed)
    return ours


@pytest.fixture
def small():
    torch.manual_seed(0)
    return HfClapHtsatModel(HfClapHtsatConfig(**_small())).eval()


@pytest.fixture
def small_fusion():
    torch.manual_seed(0)
    return HfClapHtsatModel(HfClapHtsatConfig(**_small(), fusion=True)).eval()


def _small():
    return {name: value for name, value in SMALL_AUDIO["hf_clap_htsat"].items() if name != "model_type"}


@pytest.mark.parametrize("frames", [1024, 1001, 965, 301])
def test_embeddings_are_transformers(frames):
    peer = clap_audio_model()
    ours = converted(peer)
    features = torch.randn(2, 1, frames, 64) * 20 - 40
    with torch.inference_mode():
        expected, output = peer(features), ours(features)
        eager = converted(peer)
        eager.set_attn_implementation("eager")
        written_out = eager(features)
    assert (output.pooler_output - expected.pooler_output).abs().max() < 1e-5
    assert (output.pooler_output - written_out.pooler_output).abs().max() < 1e-5
    # transformers keeps (hidden, bins, time); ours is its mean over bins
    assert torch.allclose(output.last_hidden_state, expected.last_hidden_state.mean(dim=2).transpose(1, 2), atol=1e-5)


def test_fused_embeddings_are_transformers():
    peer = clap_audio_model(fusion=True)
    ours = converted(peer)
    features = torch.randn(3, 4, 1001, 64) * 20 - 40
    is_longer = torch.tensor([[True], [False], [True]])
    with torch.inference_mode():
        expected = peer(features, is_longer=is_longer).pooler_output
        assert (ours(features, is_longer=is_longer).pooler_output - expected).abs().max() < 1e-5


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_is_near_at_full_size(dtype):
    ours = converted(clap_audio_model())
    features = torch.randn(2, 1, 1001, 64) * 20 - 40
    with torch.inference_mode():
        expected = ours(features).pooler_output
        half = ours.to(dtype)(features.to(dtype)).pooler_output.float()
    assert F.cosine_similarity(half, expected).min() > 0.999


def test_steps_keep_time(small):
    features = torch.full((1, 1, 256, 64), -50.0)
    with torch.inference_mode():
        silence = small(features).last_hidden_state
        features[:, :, 200:] = 0.0
        steps = small(features).last_hidden_state
    change = (steps - silence).abs().amax(dim=2)[0]
    assert len(change) == 16  # two pieces of time of eight columns each
    assert change[12:].min() > 10 * change[:4].max()


def test_shifted_windows_keep_the_images_ends_apart(small):
    """The mask's own penalty, not the roll: without it the block would mix the last patch row into the first."""
    block = small.stages[0].blocks[1]
    assert (block.resolution, block.window_size, block.shift) == (32, 4, 2)
    mask = block.make_shift_mask()
    assert mask.shape == (64, 16, 16)
    assert torch.equal(mask, mask.transpose(1, 2))
    per_window = (mask != 0).sum(dim=(1, 2))
    # inner windows see all of 16 x 16; those at an edge two halves of 8; the corner four quarters of 4
    assert per_window.view(8, 8)[:7, :7].eq(0).all()
    assert per_window.view(8, 8)[7, :7].eq(2 * 8 * 8).all()
    assert per_window.view(8, 8)[:7, 7].eq(2 * 8 * 8).all()
    assert per_window[-1] == 16 * 16 - 4 * 4 * 4


def test_patches_apart_have_no_subnormal_weights(small, monkeypatch):
    """With e^-100 Intel's CPUs take 25 times as long for a product; with 0 in its place the bits are the same."""
    block, hidden = small.stages[0].blocks[1], torch.randn(2, 1024, 4)
    attention, apart = block.attention, block.shift_mask.flatten(0, 1) != 0
    weights = attention.position_bias(block.shift_mask)[0].unflatten(0, (64, -1))[:, 0].softmax(dim=-1)
    assert weights.flatten(0, 1)[apart].eq(0).all()
    assert weights.flatten(0, 1)[~apart].min() > 0.05
    with torch.inference_mode():
        output = block(hidden)
        unchanged = attention.position_bias(None)[0] + block.shift_mask[:, None]
        monkeypatch.setattr(attention, "position_bias", lambda shift_mask: unchanged.flatten(0, 1)[None])
        assert torch.equal(block(hidden), output)


def test_dropped_paths_keep_the_mean(small):
    drop_path = type(small.stages[0].blocks[0].drop_path)(0.25).train()
    torch.manual_seed(0)
    dropped = drop_path(torch.ones(20_000, 2, 3))
    assert torch.equal(dropped[:, :1, :1].expand_as(dropped), dropped)  # whole clips
    assert dropped.unique().tolist() == [0.0, pytest.approx(4 / 3)]
    assert dropped.mean().item() == pytest.approx(1, abs=0.02)


def fused_features(seconds, extractor=None):
    extractor = extractor or HfClapFeatureExtractor(**FUSION, hop_length=400)
    clips = [noise(length, seed=index) for index, length in enumerate(seconds)]
    return extractor(clips, sampling_rate=16000)


def test_whether_a_clip_is_longer_is_its_own_affair(small_fusion):
    """transformers marks a clip at random where none is longer; here a clip's embedding knows nothing of its batch."""
    together = fused_features([1.0, 5.0, 3.0, 12.0])
    assert together["input_features"].shape == (4, 4, 241, 64)
    assert together["is_longer"].tolist() == [[False], [True], [False], [True]]
    with torch.inference_mode():
        embeds = small_fusion(**together).pooler_output
        assert torch.equal(embeds, small_fusion(**together).pooler_output)
        for index, seconds in enumerate([1.0, 5.0, 3.0, 12.0]):
            alone = {name: tensor[index : index + 1] for name, tensor in together.items()}
            assert torch.allclose(small_fusion(**alone).pooler_output[0], embeds[index], atol=1e-6), seconds
        # one channel is a clip that is not longer
        whole = small_fusion(together["input_features"][:, :1]).pooler_output
    same = [torch.allclose(whole[index], embeds[index], atol=1e-6) for index in range(4)]
    assert same == [True, False, True, False]


def test_fusion_is_one_graph(small_fusion):
    features = fused_features([1.0, 5.0])
    exported = torch.export.export(small_fusion, (), dict(features)).module()
    with torch.inference_mode():
        expected = small_fusion(**features).pooler_output
        assert torch.allclose(exported(**features)["pooler_output"], expected, atol=1e-6)


def test_fusion_trains_with_one_long_clip(small_fusion):
    small_fusion.train()
    small_fusion(**fused_features([1.0, 5.0])).pooler_output.sum().backward()
    assert small_fusion.patch_embed.local_projection.weight.grad.abs().max() > 0


@pytest.mark.parametrize(
    ("channels", "frames", "is_longer", "message"),
    [
        (1, 257, None, "at most 256 frames and got 257"),
        (4, 200, [True, False], "4 channels do not fit a model without fusion"),
        (2, 200, None, r"\(2, 2, 200, 64\) do not fit; pass \(batch, 1, frames, 64\)"),
    ],
)
def test_impossible_input_is_refused(small, channels, frames, is_longer, message):
    is_longer = None if is_longer is None else torch.tensor(is_longer)
    with pytest.raises(ValueError, match=message):
        small(torch.zeros(2, channels, frames, 64), is_longer=is_longer)


def test_indices_that_stayed_on_meta_are_no_indices(small):
    with torch.device("meta"):
        empty = HfClapHtsatModel(small.config).eval()
    empty.load_state_dict(small.state_dict(), assign=True)
    with pytest.raises(
        RuntimeError, match="built on meta, with indices that no checkpoint holds; load it by from_pre"
    ):
        empty(torch.zeros(1, 1, 200, 64))


def test_impossible_input_of_fusion_is_refused(small_fusion):
    with pytest.raises(ValueError, match="Four channels need is_longer"):
        small_fusion(torch.zeros(2, 4, 200, 64))
    with pytest.raises(ValueError, match="3 entries for 2 clips"):
        small_fusion(torch.zeros(2, 4, 200, 64), is_longer=torch.ones(3))
    with pytest.raises(ValueError, match="min_length_s to None"):
        small_fusion(torch.zeros(2, 1, 200, 64), torch.ones(2, 200))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"depths": (2, 2)}, "have 2 and 4 entries"),
        ({"depths": (2, 0, 6, 2)}, "leaves a stage without a block"),
        ({"num_mel_bins": 60}, "60 mel bins cannot be folded into 256 rows"),
        ({"window_size": 7}, "do not divide into windows of 7"),
        ({"num_attention_heads": (5, 8, 16, 32)}, "5 heads do not divide the 96 channels of stage 0"),
        ({"num_mel_bins": 16}, "The 8 rows of the last stage do not divide into the 16 pieces"),
    ],
)
def test_sizes_that_do_not_fit_are_refused(settings, message):
    with pytest.raises(ValueError, match=message):
        HfClapHtsatConfig(**settings)


def test_widths_of_an_mlp_are_cut_off_as_the_peers_do():
    def widths(ratio):
        config = HfClapHtsatConfig(patch_embed_dim=56, num_attention_heads=(1, 2, 4, 8), mlp_ratio=ratio)
        return [stage.blocks[0].linear1.out_features for stage in HfClapHtsatModel(config).stages]

    assert widths(2.7) == [151, 302, 604, 1209]
    assert widths(61 / 56) == [61, 122, 244, 488]  # of a checkpoint's weights: this times 56 is 60.999…

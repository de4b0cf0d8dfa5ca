import json

import numpy as np
import pytest
import torch
from transformers import AutoFeatureExtractor, ClapFeatureExtractor

import hf_clap
from conftest import noise, tone
from hf_clap import AudioError, HfClapFeatureExtractor, as_waveform
from hf_clap.log_mel import PIECE_BYTES
from hf_clap.waveform import is_batch, iter_windows, resample

RATE = 16000


@pytest.fixture(scope="module")
def yamnet():
    return HfClapFeatureExtractor.from_pretrained(hf_clap.TINY)


@pytest.fixture(scope="module")
def msclap():
    return HfClapFeatureExtractor()


# --- parity


def test_log_mel_is_torchlibrosas(shared, golden_fill, msclap):
    golden = np.load(shared / "golden" / "msclap_2022.npz")
    waveform = golden_fill.waveform(5, 44100, 0)
    log_mel = msclap(waveform, sampling_rate=44100)["input_features"][0, 0].numpy()
    expected = golden["logmel"].reshape(log_mel.shape)
    audible = expected > -60
    assert audible.mean() > 0.1
    assert np.abs(log_mel - expected)[audible].max() < 1e-3


def test_mel_bank_is_msclaps(shared, msclap):
    mel = msclap.transform.constants(torch.device("cpu"), torch.float64).mel
    expected = np.load(shared / "golden" / "msclap_2022.npz")["melW"]
    assert np.abs(mel.numpy() - expected).max() < 1e-8


@pytest.mark.parametrize(
    ("golden_name", "mel_scale", "mel_norm"), [("logmel_unfused", "slaney", "slaney"), ("logmel_fusion", "htk", None)]
)
def test_log_mel_is_laions(shared, golden_name, mel_scale, mel_norm):
    golden = np.load(shared / "golden" / "laion_frontend.npz")
    extractor = HfClapFeatureExtractor(
        sampling_rate=48000,
        hop_length=480,
        mel_scale=mel_scale,
        mel_norm=mel_norm,
        max_length_s=10.0,
        fill="repeat_pad",
    )
    log_mel = extractor.log_mel(torch.from_numpy(golden["wave"]).float()).numpy()
    expected = golden[golden_name].reshape(log_mel.shape)
    assert np.abs(log_mel - expected)[expected > -60].max() < 2e-3


def test_double_precision_is_transformers():
    """It computes in float64: even far below a tone both agree to the last digit of float32."""
    peer = ClapFeatureExtractor(truncation="rand_trunc")
    fields = {"sampling_rate": 48000, "hop_length": 480, "max_length_s": 10.0, "f_min": 0}
    clip = tone(10.0, rate=48000)
    expected = peer(clip, sampling_rate=48000, return_tensors="pt")["input_features"]
    differences = {}
    for double_precision in (True, False):
        extractor = HfClapFeatureExtractor(**fields, double_precision=double_precision)
        features = extractor(clip, sampling_rate=48000)["input_features"]
        assert features.dtype == torch.float32
        differences[double_precision] = (features - expected).abs().max().item()
    assert differences[True] < 2e-5 < 1e-2 < differences[False]


@pytest.fixture
def far_apart():
    """Frames that overlap by little, so that one at each end reaches over it."""
    return HfClapFeatureExtractor(hop_length=900)


@pytest.mark.parametrize("extractor_name", ["msclap", "yamnet", "far_apart"])
@pytest.mark.parametrize("samples", [600, 1024, 2048, 2900, 60_000, 61_440, 200_001])
@pytest.mark.parametrize("piece_bytes", [2**16, PIECE_BYTES])
def test_log_mel_in_pieces_is_that_of_the_whole(extractor_name, samples, piece_bytes, request, monkeypatch):
    """Without gradients it is computed in pieces, in place; with them by the plain formula, which must agree."""
    monkeypatch.setattr("hf_clap.log_mel.PIECE_BYTES", piece_bytes)
    extractor = request.getfixturevalue(extractor_name)
    waveform = torch.from_numpy(noise(samples / RATE)).double()
    whole = extractor.log_mel(waveform.clone().requires_grad_()).detach()
    pieces = extractor.log_mel(waveform)
    assert pieces.shape == whole.shape == (len(whole), 64)
    assert (pieces - whole).abs().max() < 1e-9


def test_less_than_a_frame_is_refused(yamnet):
    with pytest.raises(AudioError, match="399 samples are less than a frame of 400"):
        yamnet.log_mel(torch.zeros(399))
    centred = HfClapFeatureExtractor(min_length_s=0.005)
    assert centred.log_mel(torch.zeros(513)).shape == (2, 64)
    with pytest.raises(AudioError, match="512 samples are less than a frame of 1024"):
        centred.log_mel(torch.zeros(512))
    with pytest.raises(ValueError, match=r"min_length_s=0\.005 is less than a frame; make it 513 samples"):
        centred(torch.zeros(300), sampling_rate=44100)
    with pytest.raises(ValueError, match=r"max_length_s=0\.01 is less than a frame; make it 1024 samples"):
        HfClapFeatureExtractor(max_length_s=0.01, center=False)(torch.zeros(300), sampling_rate=44100)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_autocast_does_not_reach_the_features(msclap, dtype):
    waveform = torch.from_numpy(tone(1.0, 44100, 1000.0))
    expected = msclap(waveform, sampling_rate=44100)["input_features"]
    with torch.autocast("cpu", dtype):
        found = msclap(waveform, sampling_rate=44100)["input_features"]
    assert (found - expected).abs().max() < 1e-4


def test_yamnet_log_mel_in_numpy(yamnet):
    """The definition, written a second time: frames, periodic Hann, magnitude, triangles straight in HTK mel, ln."""
    waveform = noise(1.0).astype(np.float64)
    frames = np.stack([waveform[start : start + 400] for start in range(0, len(waveform) - 399, 160)])
    window = 0.5 - 0.5 * np.cos(2 * np.pi * np.arange(400) / 400)
    magnitude = np.abs(np.fft.rfft(frames * window, n=512))
    mels = 1127 * np.log(1 + np.linspace(0, 8000, 257) / 700)
    low, high = 1127 * np.log(1 + np.array([125, 7500]) / 700)
    edges = np.linspace(low, high, 66)
    bank = np.stack(
        [
            np.clip(np.minimum((mels - left) / (middle - left), (right - mels) / (right - middle)), 0, None)
            for left, middle, right in zip(edges[:-2], edges[1:-1], edges[2:], strict=True)
        ],
        axis=1,
    )
    expected = np.log(magnitude @ bank + 0.001)
    log_mel = yamnet.log_mel(torch.from_numpy(waveform).float()).numpy()
    assert log_mel.shape == (98, 64)
    assert np.abs(log_mel - expected).max() < 1e-4


def test_a_tone_peaks_in_its_mel_bin(msclap):
    mel = msclap.transform.constants(torch.device("cpu"), torch.float32).mel
    frequency = mel[:, 30].argmax().item() * 44100 / 1024  # Hz, at the peak of mel bin 30
    features = msclap(tone(rate=44100, frequency=frequency), sampling_rate=44100)["input_features"][0, 0]
    assert (features[10:-10].argmax(dim=1) == 30).all()


def test_log_mel_is_differentiable(msclap):
    waveform = torch.from_numpy(noise(0.2, rate=44100)).double().requires_grad_()
    assert torch.autograd.gradcheck(
        lambda start: msclap.log_mel(torch.cat([start, waveform[64:].detach()]))[:2].sum(),
        waveform[:64].detach().requires_grad_(),
    )


def test_gradients_after_inference():
    """The mel bank is kept between calls, and the first one may have been in inference mode."""
    extractor = HfClapFeatureExtractor(f_max=13999)  # not in the cache yet
    with torch.inference_mode():
        extractor.log_mel(torch.zeros(2000))
    waveform = torch.ones(2000, requires_grad=True)
    extractor.log_mel(waveform).sum().backward()
    assert waveform.grad.isfinite().all()


# --- arrays of every kind


@pytest.mark.parametrize(
    ("dtype", "scale", "offset"),
    [(np.int16, 32768, 0), (np.int32, 2**31, 0), (np.uint8, 128, 128), (np.float64, 1, 0)],
)
def test_dtypes_are_scaled(dtype, scale, offset):
    waveform = np.array([0.5, -0.25, 0.0])
    assert torch.equal(as_waveform((waveform * scale + offset).astype(dtype)), torch.tensor([0.5, -0.25, 0.0]))


def test_channels_are_averaged():
    surround = np.stack([np.full(10, value, np.float32) for value in (0.6, 0.0, 0.0, 0.0, 0.0, 0.0)])
    assert torch.allclose(as_waveform(surround), torch.full((10,), 0.1))


def test_tensors_stay_in_their_graph_and_views_are_read():
    waveform = torch.ones(4, requires_grad=True)
    assert as_waveform(waveform).requires_grad
    assert as_waveform(np.arange(4.0)[::-1]).tolist() == [3, 2, 1, 0]
    assert as_waveform([0.5, 0.25]).tolist() == [0.5, 0.25]
    assert as_waveform(np.array([0.5, 0.25], dtype=">f4")).tolist() == [0.5, 0.25]  # another machine's byte order


@pytest.mark.parametrize(
    ("audio", "message"),
    [
        (np.zeros(0), "no samples"),
        (np.zeros((2, 3, 4)), r"pass \(samples,\) or \(channels, samples\)"),
        (np.float32(1), r"shape \(\) is not a clip"),
        (np.zeros((16000, 2)), "array.T if samples come first"),
        (np.array([0.0, np.nan]), "NaN or infinite"),
        (np.array([0.0, np.inf]), "NaN or infinite"),
        (np.array([0.0, 1e30]), "scale it to"),
        (np.array([1, 2]), "int64 have no known scale"),
        (np.array([True]), "bool have no known scale"),
        ("dog", "str is not a waveform"),
        (None, "NoneType is not a waveform"),
        ([[0.0, 1.0], [0.0]], "list is not a waveform"),
    ],
)
def test_unusable_arrays_are_refused_in_a_sentence(audio, message):
    with pytest.raises(AudioError, match=message) as caught:
        as_waveform(audio)
    assert "\n" not in str(caught.value)


def test_what_counts_as_a_batch():
    assert is_batch([np.zeros(3), np.zeros(2)])
    assert is_batch([])
    assert not is_batch([0.0, 1.0])
    assert not is_batch([np.float32(0)])
    assert not is_batch(np.zeros((2, 3)))


# --- rates


@pytest.mark.parametrize(("from_rate", "to_rate"), [(8000, 16000), (44100, 48000), (192000, 16000), (44100, 16000)])
def test_resampled_tone_is_the_tone_at_the_new_rate(from_rate, to_rate):
    resampled = resample(torch.from_numpy(tone(rate=from_rate)), from_rate, to_rate).numpy()
    assert len(resampled) == 2 * to_rate
    middle = slice(to_rate // 2, -to_rate // 2)
    assert np.abs(resampled - tone(rate=to_rate))[middle].max() < 1e-4


def test_five_seconds_at_44100_fill_a_48000_window_exactly_twice():
    assert len(resample(torch.zeros(5 * 44100), 44100, 48000)) == 240_000


@pytest.mark.parametrize("rate", [0, -1, "16000", 16000.5, 10**7])
def test_impossible_rate_is_an_error(yamnet, rate):
    with pytest.raises(AudioError, match="it must be 1000 to 768000 Hz"):
        yamnet(tone(), sampling_rate=rate)


def test_missing_rate_is_an_error(yamnet):
    with pytest.raises(ValueError, match="pass sampling_rate="):
        yamnet(tone())


# --- windows, crops, fills


@pytest.mark.parametrize(
    ("samples", "window", "hop", "expected"),
    [
        (3, 5, 5, [(0, 3)]),
        (5, 5, 5, [(0, 5)]),
        (6, 5, 5, [(0, 5), (1, 5)]),
        (10, 5, 5, [(0, 5), (5, 5)]),
        (11, 5, 5, [(0, 5), (5, 5), (6, 5)]),
        (7, 4, 2, [(0, 4), (2, 4), (3, 4)]),
        (8, 4, 2, [(0, 4), (2, 4), (4, 4)]),
        (0, 4, 2, []),
    ],
)
def test_windows_are_the_same_however_the_clip_arrives(samples, window, hop, expected):
    clip = torch.arange(samples)
    for block in (1, 2, 3, 7, 100):
        windows = list(iter_windows(clip.split(block) if samples else [], window, hop))
        assert [(start, len(content)) for start, content in windows] == expected
        assert all(torch.equal(content.long(), clip[start : start + window]) for start, content in windows)


def extractor_that_counts(**options):
    """One frame a sample, so that features show which samples were taken."""
    return HfClapFeatureExtractor(sampling_rate=10, max_length_s=1.0, **options)


def taken(extractor, samples, **options):
    windows = extractor._crop(
        torch.arange(samples), extractor.crop if not options else options["crop"], options.get("generator")
    )
    return [extractor._fill(window, extractor.max_samples).tolist() for window in windows]


def test_crops():
    assert taken(extractor_that_counts(), 14) == [list(range(2, 12))]
    assert taken(extractor_that_counts(crop="start"), 14) == [list(range(10))]
    assert taken(extractor_that_counts(crop="windows"), 14) == [list(range(10)), list(range(4, 14))]
    seeds = [
        taken(extractor_that_counts(), 30, crop="random", generator=torch.Generator().manual_seed(s))
        for s in (0, 0, 1)
    ]
    assert seeds[0] == seeds[1]
    assert seeds[0] != seeds[2]


def test_fills():
    assert taken(extractor_that_counts(fill="repeat"), 4) == [[0, 1, 2, 3, 0, 1, 2, 3, 0, 1]]
    assert taken(extractor_that_counts(fill="repeat_pad"), 4) == [[0, 1, 2, 3, 0, 1, 2, 3, 0, 0]]
    assert taken(extractor_that_counts(fill="zero"), 4) == [[0, 1, 2, 3, 0, 0, 0, 0, 0, 0]]


def test_a_clip_has_the_same_features_alone_and_in_any_batch(yamnet):
    clips = [noise(seconds, seed=index) for index, seconds in enumerate((0.03, 0.5, 1.0, 2.5, 5.0, 10.0, 25.0))]
    together = yamnet(clips, sampling_rate=RATE)
    assert together["windows_per_clip"].tolist() == [1, 1, 1, 1, 1, 1, 3]
    row = 0
    for clip in clips:
        alone = yamnet(clip, sampling_rate=RATE)
        rows = slice(row, row + len(alone["input_features"]))
        assert torch.equal(together["input_features"][rows], alone["input_features"])
        assert torch.equal(together["input_features_mask"][rows], alone["input_features_mask"])
        row = rows.stop


def test_mask_counts_the_frames_that_hold_audio(yamnet):
    features = yamnet([noise(1.0), noise(10.0)], sampling_rate=RATE)
    assert features["input_features"].shape == (2, 1, 998, 64)
    assert features["input_features_mask"].sum(dim=1).tolist() == [98, 998]
    assert features["input_features"][0, 0, 98:].unique().item() == pytest.approx(np.log(0.001))


def test_random_crop_needs_a_generator(yamnet):
    with pytest.raises(ValueError, match="needs generator="):
        yamnet(noise(), sampling_rate=RATE, crop="random")


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"mel_scale": "bark"}, ValueError, "mel_scale='bark' is not possible; choose one of 'slaney', 'htk'"),
        ({"max_length_s": 0}, ValueError, "max_length_s=0 is not possible"),
        ({"hop_length": 0}, ValueError, "hop_length=0 is not possible"),
        ({"win_length": 0}, ValueError, "win_length=0 is not possible"),
        ({"hop_length": 320.5}, ValueError, "hop_length=320.5 is not possible; it must be a whole number"),
        ({"max_length_s": float("inf")}, ValueError, "max_length_s=inf is not possible"),
        ({"log_floor": 0.0}, ValueError, "log_floor=0.0 is not possible"),
        ({"f_max": float("nan")}, ValueError, "f_max must be above f_min"),
        ({"min_length_s": 20}, ValueError, "at most max_length_s=5.0"),
        ({"crop": "end"}, ValueError, "crop='end' is not possible"),
        ({"win_length": 2048}, ValueError, "raise n_fft"),
        ({"hop_lenght": 160}, TypeError, "no field hop_lenght"),
    ],
)
def test_impossible_settings_are_refused(options, error, message):
    with pytest.raises(error, match=message):
        HfClapFeatureExtractor(**options)


def test_empty_batch_and_unknown_tensors_are_refused(yamnet):
    with pytest.raises(AudioError, match="at least one clip"):
        yamnet([], sampling_rate=RATE)
    with pytest.raises(ValueError, match="'pt', 'np'"):
        yamnet(noise(), sampling_rate=RATE, return_tensors="tf")


def test_numpy_output_is_torchs(yamnet):
    arrays = yamnet(noise(), sampling_rate=RATE, return_tensors="np")
    tensors = yamnet(noise(), sampling_rate=RATE)
    assert all(np.array_equal(arrays[name], tensors[name].numpy()) for name in tensors)


def test_saved_and_loaded_extractor_is_the_same(tmp_path, yamnet):
    yamnet.save_pretrained(tmp_path)
    loaded = AutoFeatureExtractor.from_pretrained(tmp_path)
    assert isinstance(loaded, HfClapFeatureExtractor)
    assert loaded.to_dict() == yamnet.to_dict()
    assert json.loads((tmp_path / "preprocessor_config.json").read_text())["mel_triangles"] == "mel"


@pytest.mark.parametrize("amplitude", [1.0, 9.9e5, 1e6, 1.1e6, -1.1e6, float("inf"), float("nan")])
def test_loud_is_not_too_loud(amplitude):
    """Also where the energy of all samples alone does not say that each of them is within the limit."""
    waveform = torch.full((10_000,), 9e5)
    waveform[7] = amplitude
    if abs(amplitude) <= 1e6:
        assert torch.equal(as_waveform(waveform), waveform)
    else:
        with pytest.raises(AudioError, match="NaN or infinite samples, or some beyond a million"):
            as_waveform(waveform)


@pytest.mark.parametrize(
    ("audio", "message"),
    [
        (np.ma.masked_invalid([0.1, np.nan, 0.2]), "The array has masked samples; fill them in"),
        (torch.zeros(9).to_sparse(), "A sparse or meta tensor is not a waveform; pass a dense one"),
        (torch.zeros(9, device="meta"), "A sparse or meta tensor is not a waveform; pass a dense one"),
    ],
)
def test_arrays_without_samples_of_their_own_are_refused(audio, message):
    with pytest.raises(AudioError, match=message):
        as_waveform(audio)


def test_an_array_that_masks_nothing_is_a_waveform():
    assert torch.equal(as_waveform(np.ma.array([0.5, 0.25], mask=False)), torch.tensor([0.5, 0.25]))

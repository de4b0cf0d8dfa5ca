"""Every kind of audio source, with the numbers it must give or the sentence it must raise."""

import io
import struct
import sys
import threading
import time
import tracemalloc
import types
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import urlsplit

import numpy as np
import pytest
import soundfile as sf
import soxr
import torch

from hf_clap import audio
from hf_clap.audio import iter_audio, load_audio, stretch_of
from hf_clap.waveform import AudioError, resample

RATE = 16_000
SHARED = Path(__file__).resolve().parents[2] / "shared"


def noise(seconds: float, rate: int = RATE, channels: int = 1) -> np.ndarray:
    """(samples,) or (samples, channels) float32, within [-0.5, 0.5]."""
    shape = (round(seconds * rate), channels) if channels > 1 else round(seconds * rate)
    return np.random.default_rng(0).uniform(-0.5, 0.5, shape).astype(np.float32)


def encoded(samples: np.ndarray, rate: int = RATE, file_format: str = "WAV", subtype: str | None = None) -> bytes:
    file = io.BytesIO()
    sf.write(file, samples, rate, format=file_format, subtype=subtype)
    return file.getvalue()


def with_sizes(wav: bytes, riff_size: int, data_size: int) -> bytes:
    at = wav.index(b"data") + 4
    return wav[:4] + struct.pack("<I", riff_size) + wav[8:at] + struct.pack("<I", data_size) + wav[at + 4 :]


@pytest.fixture
def clip(tmp_path):
    """(path, samples) of 0.5 s as a 32-bit float WAV, so that what is read equals what was written."""
    samples = noise(0.5)
    path = tmp_path / "clip.wav"
    path.write_bytes(encoded(samples, subtype="FLOAT"))
    return path, samples


# -- the kinds of source


def test_every_kind_of_source_gives_the_same_samples(clip):
    path, samples = clip
    data = path.read_bytes()
    decoder = types.SimpleNamespace(
        get_all_samples=lambda: types.SimpleNamespace(data=torch.from_numpy(samples)[None], sample_rate=RATE)
    )
    sources = {
        "str": str(path),
        "Path": path,
        "bytes": data,
        "bytearray": bytearray(data),
        "memoryview": memoryview(data),
        "BytesIO": io.BytesIO(data),
        "array": {"array": samples, "sampling_rate": RATE},
        "raw": {"raw": samples, "sampling_rate": RATE},
        "tensor": {"array": torch.from_numpy(samples), "sampling_rate": np.int64(RATE)},
        "list": {"array": samples.tolist(), "sampling_rate": RATE},
        "decoded with a path": {"path": "elsewhere.wav", "array": samples, "sampling_rate": RATE},
        "undecoded bytes": {"bytes": data, "path": "elsewhere.wav"},
        "undecoded path": {"bytes": None, "path": str(path)},
        "decoder": decoder,
    }
    for kind, source in sources.items():
        loaded = load_audio(source, RATE)
        assert loaded.dtype == np.float32, kind
        np.testing.assert_array_equal(loaded, samples, err_msg=kind)
    with path.open("rb") as file:
        file.seek(1000)  # is read from its start all the same
        np.testing.assert_array_equal(load_audio(file, RATE), samples)
    for array in (samples, torch.from_numpy(samples), samples.tolist()):
        np.testing.assert_array_equal(load_audio(array, RATE, source_rate=RATE), samples)


def test_a_stream_that_cannot_seek_is_read_up_to_the_limit(clip, monkeypatch):
    path, samples = clip
    source = types.SimpleNamespace(read=io.BytesIO(path.read_bytes()).read)
    np.testing.assert_array_equal(load_audio(source, RATE), samples)
    monkeypatch.setattr(audio, "MAX_DOWNLOAD_BYTES", 1000)
    source = types.SimpleNamespace(read=lambda size: bytes(size))  # endless
    with pytest.raises(AudioError, match="larger than 1000 bytes"):
        load_audio(source, RATE)


def test_channels_are_averaged():
    samples = noise(0.1, channels=6)
    loaded = load_audio(encoded(samples, subtype="FLOAT"), RATE)
    np.testing.assert_allclose(loaded, samples.mean(axis=1), atol=1e-7)
    from_array = load_audio(samples.T, RATE, source_rate=RATE)
    np.testing.assert_allclose(from_array, samples.mean(axis=1), atol=1e-7)


def test_integers_are_scaled_and_float64_is_cast():
    np.testing.assert_array_equal(load_audio(np.array([16384, -32768], np.int16), RATE, RATE), [0.5, -1.0])
    assert load_audio(np.array([0.25]), RATE, RATE).dtype == np.float32


def test_the_array_given_is_never_changed_through_the_result():
    samples = noise(0.1)
    load_audio(samples, RATE, source_rate=RATE)[:] = 0
    assert np.abs(samples).max() > 0.4


@pytest.mark.parametrize(
    ("file_format", "subtype", "rate", "tolerance"),
    [
        ("WAV", "PCM_24", 44_100, 1e-6),
        ("WAV", "DOUBLE", 192_000, 1e-6),
        ("WAVEX", "PCM_16", 11_025, 1e-4),
        ("RF64", "PCM_16", 16_000, 1e-4),
        ("FLAC", "PCM_16", 44_100, 1e-4),
        ("AIFF", "PCM_16", 22_050, 1e-4),
        ("OGG", "VORBIS", 44_100, 0.05),
        ("OGG", "OPUS", 48_000, 0.05),
        ("MP3", "MPEG_LAYER_III", 44_100, 0.05),
    ],
)
def test_file_formats(tmp_path, file_format, subtype, rate, tolerance):
    tone = 0.5 * np.sin(2 * np.pi * 440 * np.arange(rate) / rate).astype(np.float32)
    path = tmp_path / "tone"  # the content counts, not the name
    path.write_bytes(encoded(tone, rate, file_format, subtype))
    loaded = load_audio(path, rate)
    assert loaded.shape == (rate,)
    middle = slice(rate // 4, -rate // 4)
    np.testing.assert_allclose(loaded[middle], tone[middle], atol=tolerance)


# -- rate, length, blocks


@pytest.mark.parametrize(
    ("rate", "seconds", "target"),
    [
        (44_100, 5.0, 48_000),
        (8_000, 21.0, 44_100),
        (192_000, 10.5, 16_000),
        (22_254, 1.0, 48_000),
        (44_100, 0.03, 16_000),
    ],
)
def test_streamed_resampling_equals_one_shot(rate, seconds, target):
    samples = noise(seconds, rate)
    blocks = list(iter_audio(encoded(samples, rate, subtype="FLOAT"), target))
    loaded = np.concatenate(blocks)
    assert len(loaded) == round(len(samples) * target / rate)
    expected = soxr.resample(samples, rate, target)[: len(loaded)]
    np.testing.assert_allclose(loaded[: len(expected)], expected, atol=1e-6)
    np.testing.assert_allclose(loaded, resample(torch.from_numpy(samples), rate, target).numpy(), atol=1e-6)
    np.testing.assert_array_equal(load_audio(samples, target, source_rate=rate), loaded)


def test_five_seconds_at_44100_are_240000_samples_at_48000():
    assert load_audio(noise(5, 44_100), 48_000, source_rate=44_100).shape == (240_000,)


def test_one_sample_is_still_one_sample_at_a_lower_rate():
    assert load_audio([0.5], 16_000, source_rate=192_000).shape == (1,)


@pytest.mark.parametrize("kind", ["file", "array"])
def test_blocks_are_ten_seconds_and_join_to_the_whole(kind):
    samples = noise(25)
    source = encoded(samples, subtype="FLOAT") if kind == "file" else {"array": samples, "sampling_rate": RATE}
    blocks = list(iter_audio(source, RATE))
    assert [len(block) for block in blocks] == [10 * RATE, 10 * RATE, 5 * RATE]
    np.testing.assert_array_equal(np.concatenate(blocks), samples)


def test_an_hour_takes_the_memory_of_a_block(tmp_path):
    path = tmp_path / "hour.wav"
    hour = 3600 * RATE
    with path.open("wb") as file:
        file.write(with_sizes(encoded(np.zeros(0, np.float32)), 36 + 2 * hour, 2 * hour))
        file.truncate(44 + 2 * hour)  # zeros that take no disk
    tracemalloc.start()
    lengths = [len(block) for block in iter_audio(path, 48_000)]
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert sum(lengths) == 3600 * 48_000
    assert max(lengths) <= 11 * 48_000
    assert peak < 16 * 2**20  # the hour itself is 659 MiB


def test_the_callers_file_stays_open(clip):
    path, samples = clip
    with path.open("rb") as file:
        load_audio(file, RATE)
        assert not file.closed
        np.testing.assert_array_equal(load_audio(file, RATE), samples)


@pytest.mark.parametrize("rate", [999, 768_001, 0, -1, 44_100.5, float("nan"), "44100", True])
def test_impossible_rates_are_refused(rate):
    with pytest.raises(AudioError, match="1000 to 768000 Hz"):
        load_audio([0.5], RATE, source_rate=rate)
    with pytest.raises(AudioError, match="1000 to 768000 Hz"):
        load_audio([0.5], rate, source_rate=RATE)


def test_a_file_with_an_impossible_rate_is_refused(tmp_path):
    path = tmp_path / "slow.wav"
    path.write_bytes(encoded(noise(0.1), 500))
    with pytest.raises(AudioError, match=r"^slow\.wav has a sampling rate of 500; it must be 1000 to 768000 Hz"):
        load_audio(path, RATE)


def test_an_array_without_a_rate_is_refused():
    for source in (noise(0.1), torch.zeros(3), [0.5], {"array": noise(0.1)}):
        with pytest.raises(AudioError, match=r"pass source_rate=… .* or \{\"array\": …, \"sampling_rate\": …\}"):
            load_audio(source, RATE)


def test_a_rate_that_contradicts_the_source_is_refused_and_one_that_agrees_is_not(clip):
    path, samples = clip
    for source in (path, path.read_bytes(), {"array": samples, "sampling_rate": RATE}):
        np.testing.assert_array_equal(load_audio(source, RATE, source_rate=RATE), samples)
        with pytest.raises(AudioError, match="is at 16000 Hz and the call says 44100 Hz"):
            load_audio(source, RATE, source_rate=44_100)


# -- what cannot be used


@pytest.mark.parametrize(
    ("content", "sentence"),
    [
        pytest.param(b"", "is empty (0 bytes); record, copy or download it again.", id="empty"),
        pytest.param(encoded(noise(0)), "holds no audio samples;", id="no samples"),
        pytest.param(b"not a sound\n" * 50, "is not an audio file that can be read;", id="text"),
        pytest.param(np.random.default_rng(0).bytes(5000), "is not an audio file that can be read;", id="garbage"),
        pytest.param(encoded(noise(1))[:30], "is not an audio file that can be read;", id="cut in the header"),
        pytest.param(
            encoded(noise(1), RATE, "AIFF", "FLOAT")[:60], "is not an audio file", id="points before its start"
        ),
    ],
)
def test_files_that_are_not_audio(tmp_path, monkeypatch, content, sentence):
    printed = []  # a callback of libsndfile that fails prints its traceback through this hook
    monkeypatch.setattr(sys, "unraisablehook", lambda failure: printed.append(str(failure.exc_value)))
    path = tmp_path / "song.wav"
    path.write_bytes(content)
    with pytest.raises(AudioError) as raised:
        load_audio(path, RATE)
    assert str(raised.value).startswith(f"song.wav {sentence}")
    assert "\n" not in str(raised.value)
    assert printed == []


@pytest.mark.parametrize("file_format", ["WAV", "WAVEX", "AIFF", "AU", "RF64", "W64"])
def test_a_truncated_wav_says_what_is_left(tmp_path, file_format):
    path = tmp_path / "song.wav"
    whole = encoded(noise(5), file_format=file_format)
    path.write_bytes(whole[: len(whole) - 2 * round(1.8 * RATE)])  # 16-bit samples
    with pytest.raises(AudioError) as raised:
        next(iter_audio(path, RATE))  # before any sample is handed out
    promise = "song.wav is truncated: its header promises 5.00 s and the file holds 3.20 s"
    assert str(raised.value) == f"{promise}; copy or download it again."


def test_a_length_beyond_all_files_is_no_audio(tmp_path):
    (tmp_path / "song.wav").write_bytes(b"riff" + b"\xff" * 100)  # W64, whose lengths have 64 bits
    for source in (tmp_path / "song.wav", (tmp_path / "song.wav").read_bytes()):
        with pytest.raises(AudioError, match=r"is not an audio file that can be read; convert it to WAV or FLAC.$"):
            load_audio(source, RATE)


def test_samples_that_are_negative_by_a_flag_are_read():
    flagged = torch.complex(torch.zeros(RATE), torch.from_numpy(noise(1.0))).conj().imag
    assert flagged.is_neg()
    for rate in (RATE, 8000):
        expected = load_audio({"array": -noise(1.0), "sampling_rate": RATE}, rate)
        assert np.array_equal(load_audio({"array": flagged, "sampling_rate": RATE}, rate), expected)


def test_a_stretch_is_read_without_the_rest(tmp_path):
    sound = np.random.default_rng(0).uniform(-0.5, 0.5, 65 * RATE).astype(np.float32)
    sf.write(tmp_path / "a.wav", sound, RATE, subtype="FLOAT")
    for start, end in ((0, RATE), (9 * RATE, 21 * RATE), (60 * RATE, 70 * RATE)):
        stretch = stretch_of(iter_audio(tmp_path / "a.wav", RATE), start, end - start)
        assert np.array_equal(stretch, sound[start:end])


def test_a_truncated_wav_is_found_behind_a_chunk_of_odd_length():
    whole = encoded(noise(5))
    whole = whole[:36] + b"note" + struct.pack("<I", 3) + b"odd\0" + whole[36:]
    assert load_audio(whole, RATE).shape == (5 * RATE,)
    with pytest.raises(AudioError, match=r"promises 5\.00 s and the file holds 4\.00 s"):
        load_audio(whole[: -2 * RATE], RATE)


@pytest.mark.parametrize("kept", [0.3, 0.9])
@pytest.mark.parametrize(
    ("file_format", "subtype"), [("OGG", "VORBIS"), ("OGG", "OPUS"), ("FLAC", None), ("MP3", None)]
)
def test_truncated_compressed_files_are_refused(file_format, subtype, kept):
    whole = encoded(noise(12, 48_000), 48_000, file_format, subtype)
    assert load_audio(whole, 48_000).shape == (12 * 48_000,)
    with pytest.raises(AudioError, match=r"^song is truncated"):
        load_audio({"bytes": whole[: round(kept * len(whole))], "path": "some/song"}, 48_000)


def test_an_ogg_without_its_last_byte_or_last_page_is_refused():
    whole = encoded(noise(2), RATE, "OGG", "VORBIS")
    for cut in (len(whole) - 1, whole.rindex(b"OggS"), whole.rindex(b"OggS") + 10):
        with pytest.raises(AudioError, match="is truncated: it ends after"):
            load_audio(whole[:cut], RATE)


def test_a_flac_cut_between_two_frames_is_refused():
    """libsndfile does not notice this one: it gives fewer samples than the header states."""
    whole = encoded(noise(2), RATE, "FLAC")
    frames = [at for at in range(len(whole)) if whole.startswith(b"\xff\xf8", at)]
    with pytest.raises(AudioError, match=r"promises 2\.00 s and the file holds 1\.\d\d s"):
        load_audio(whole[: frames[-1]], RATE)


@pytest.mark.parametrize("file_format", ["WAV", "FLAC", "OGG", "MP3"])
def test_tags_behind_the_audio_are_no_damage(file_format):
    whole = encoded(noise(2), RATE, file_format)
    np.testing.assert_array_equal(load_audio(whole + b"TAG" + b" " * 125, RATE), load_audio(whole, RATE))


@pytest.mark.parametrize(
    ("riff_size", "data_size"),
    [
        (0xFFFFFFFF, 0xFFFFFFFF),
        (0x7FFFF024, 0x7FFFF000),
        (0x7FFFFFFF, 0x7FFFFFFF - 36),
        (0, 0),
        (36, 0),
        (0xFFFFFFFF, 0),
    ],
)
def test_a_wav_from_a_pipe_is_read_to_its_end(riff_size, data_size):
    samples = noise(12)
    wav = with_sizes(encoded(samples, subtype="FLOAT"), riff_size, data_size)
    np.testing.assert_array_equal(load_audio(wav, RATE), samples)


def test_an_empty_wav_with_a_chunk_behind_is_empty():
    wav = encoded(noise(0)) + b"LIST" + struct.pack("<I", 4) + b"INFO"
    with pytest.raises(AudioError, match="holds no audio samples"):
        load_audio(with_sizes(wav, len(wav) - 8, 0), RATE)


def test_a_flac_from_a_pipe_states_no_length_and_is_read_to_its_end():
    samples = noise(12)
    flac = bytearray(encoded(samples, RATE, "FLAC", "PCM_24"))
    # the stream header's last 36 bits before its checksum: the number of samples, 0 for unknown
    flac[21] &= 0xF0
    flac[22:26] = bytes(4)
    np.testing.assert_allclose(load_audio(bytes(flac), RATE), samples, atol=1e-6)


@pytest.mark.parametrize(("extra_frames", "accepted"), [(1, True), (4, False)])
def test_an_mp3_may_count_a_frame_too_many(extra_frames, accepted):
    """Some writers count the frame that holds the count."""
    whole = encoded(noise(2, 44_100), 44_100, "MP3")
    at = whole.index(b"Xing") + 8  # behind the mark and the flags: the number of frames
    frames = struct.unpack(">I", whole[at : at + 4])[0] + extra_frames
    whole = whole[:at] + struct.pack(">I", frames) + whole[at + 4 :]
    if accepted:
        assert len(load_audio(whole, 44_100)) >= 2 * 44_100
    else:
        with pytest.raises(AudioError, match=r"is truncated: its header promises 2\.10 s and the file holds 2\.0\d s"):
            load_audio(whole, 44_100)


def mp3_without_length(bitrates: list[float]) -> bytes:
    """MP3s of different bit rates one behind the other, without the frame that states the length."""
    parts = []
    for level in bitrates:
        with io.BytesIO() as file:
            sf.write(file, noise(3, 44_100), 44_100, format="MP3", compression_level=level, bitrate_mode="CONSTANT")
            part = file.getvalue()
        parts.append(part[part.index(part[:2], 4) :])
        assert b"Info" in part[:64]
        assert b"Info" not in parts[-1][:64]
    return b"".join(parts)


def test_an_mp3_without_length_is_read_whole_or_refused():
    constant = load_audio(mp3_without_length([0.5, 0.5]), 44_100)
    assert abs(len(constant) - 6 * 44_100) < 4 * 1152
    with pytest.raises(AudioError, match="is an MP3 that does not state its length; convert it"):
        load_audio(mp3_without_length([0.0, 0.9]), 44_100)


@pytest.mark.parametrize(("file_format", "subtype"), [("MP3", None), ("OGG", "VORBIS"), ("OGG", "OPUS")])
def test_joined_recordings_are_refused(tmp_path, file_format, subtype):
    """libsndfile reads the first of them."""
    one, other = (encoded(noise(seconds, 48_000), 48_000, file_format, subtype) for seconds in (2, 3))
    (tmp_path / "joined").write_bytes(one + other)
    for source in (tmp_path / "joined", one + other):
        with pytest.raises(AudioError, match=r"holds several recordings, .* only the first can be read; convert it"):
            load_audio(source, RATE)
    if file_format == "MP3":  # as pictures behind it are
        np.testing.assert_array_equal(load_audio(one + b"APETAGEX" + bytes(60_000), RATE), load_audio(one, RATE))


def test_a_length_that_counts_the_header_too_is_no_damage():
    wav = encoded(noise(2))
    at = wav.index(b"data") + 4
    miscounted = wav[:at] + struct.pack("<I", len(wav)) + wav[at + 4 :]
    np.testing.assert_array_equal(load_audio(miscounted, RATE), load_audio(wav, RATE))


@pytest.mark.parametrize("value", [np.nan, np.inf])
@pytest.mark.parametrize("second", [0, 12])
def test_samples_that_are_not_finite_are_refused_in_any_block(tmp_path, value, second):
    samples = noise(13)
    samples[second * RATE] = value
    path = tmp_path / "song.wav"
    path.write_bytes(encoded(samples, subtype="FLOAT"))
    with pytest.raises(AudioError, match=r"^song\.wav holds NaN or infinite samples"):
        load_audio(path, RATE)
    with pytest.raises(AudioError, match="NaN or infinite samples"):
        load_audio(samples, RATE, source_rate=RATE)


def test_a_missing_file_and_a_folder(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"^gone\.wav does not exist in the folder .*; check the path\.$"):
        load_audio(tmp_path / "gone.wav", RATE)
    with pytest.raises(AudioError, match=rf"^{tmp_path.name} is a folder; pass the files in it\.$"):
        load_audio(tmp_path, RATE)


@pytest.mark.parametrize("source", [None, 3, object(), {1, 2}])
def test_other_types_are_refused_by_name(source):
    with pytest.raises(AudioError, match=rf"^A {type(source).__name__} is not audio; pass a path, an http\(s\) URL"):
        load_audio(source, RATE)


@pytest.mark.parametrize("source", [{}, {"bytes": None, "path": None}, {"sampling_rate": RATE}])
def test_a_dictionary_without_audio_is_refused(source):
    with pytest.raises(AudioError, match="The audio dictionary holds no audio"):
        load_audio(source, RATE)


def test_files_that_are_not_open_for_bytes_are_refused(clip):
    path, _ = clip
    with pytest.raises(AudioError, match=r"pass open\(path, \"rb\"\)"):
        load_audio(io.StringIO("text"), RATE)
    with path.open("rb") as file:
        pass
    with pytest.raises(AudioError, match=r"^clip\.wav is not open for reading bytes"):
        load_audio(file, RATE)


class Upload:
    """As Starlette has it, and FastAPI."""

    async def read(self, size=-1):
        return b""


def test_reads_that_give_no_bytes_are_refused():
    with pytest.raises(AudioError, match=r"gives a coroutine where bytes are read; pass its bytes, or a binary file"):
        load_audio(Upload(), RATE)


# -- URLs


@pytest.fixture(scope="module")
def server():
    """A loopback server that knows one clip and a few ways to fail; `.url` and `.wav`."""
    wav = encoded(noise(12), subtype="FLOAT")

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self):
            page = urlsplit(self.path).path
            if page == "/missing.wav":
                self.send_error(404)
                return
            if page == "/ftp.wav":
                self.send_response(302)
                self.send_header("Location", "file:///clip.wav")
                self.end_headers()
                return
            self.send_response(200)
            if page != "/endless.wav":
                self.send_header("Content-Length", str(len(wav)))
            self.end_headers()
            if page == "/slow.wav":
                for byte in wav[:40]:
                    self.wfile.write(bytes([byte]))
                    time.sleep(0.05)
            else:
                self.wfile.write(wav[:1000] if page == "/cut.wav" else wav)

        def log_message(self, *_):
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as http_server:
        http_server.handle_error = lambda *_: None  # clients that hang up in the middle are the point
        thread = threading.Thread(target=http_server.serve_forever, args=(0.02,))
        thread.start()
        yield types.SimpleNamespace(url=f"http://127.0.0.1:{http_server.server_port}", wav=wav)
        http_server.shutdown()
        thread.join()


@pytest.mark.parametrize("page", ["/a clip.wav", "/clip.wav?token=secret", "/endless.wav"])
def test_a_url_is_downloaded_and_removed(server, temporary_folder, page):
    np.testing.assert_array_equal(load_audio(server.url + page, RATE), noise(12))
    assert list(temporary_folder.iterdir()) == []


def test_a_download_is_removed_when_the_reader_stops_early(server, temporary_folder):
    blocks = iter_audio(server.url + "/clip.wav", RATE)
    next(blocks)
    assert len(list(temporary_folder.iterdir())) == 1
    blocks.close()
    assert list(temporary_folder.iterdir()) == []


@pytest.mark.parametrize(
    ("page", "sentence"),
    [
        ("/missing.wav?token=secret", r"^missing\.wav: the server answers 404 Not Found; check the URL\.$"),
        ("/cut.wav", r"^cut\.wav was cut off \d+ bytes before its end; try again\.$"),
        ("/ftp.wav", r"^ftp\.wav: the server answers 302 "),
    ],
)
def test_failed_downloads(server, temporary_folder, page, sentence):
    with pytest.raises(AudioError, match=sentence):
        load_audio(server.url + page, RATE)
    assert list(temporary_folder.iterdir()) == []


@pytest.mark.parametrize("page", ["/clip.wav", "/endless.wav"])
def test_a_download_is_bounded_in_size(server, temporary_folder, monkeypatch, page):
    monkeypatch.setattr(audio, "MAX_DOWNLOAD_BYTES", len(server.wav) - 1)
    with pytest.raises(AudioError, match=f"is larger than {len(server.wav) - 1} bytes; save it to a file"):
        load_audio(server.url + page, RATE)
    assert list(temporary_folder.iterdir()) == []
    monkeypatch.setattr(audio, "MAX_DOWNLOAD_BYTES", len(server.wav))
    assert load_audio(server.url + page, RATE).shape == (12 * RATE,)


def test_a_download_is_bounded_in_time_though_bytes_keep_coming(server, monkeypatch):
    monkeypatch.setattr(audio, "MAX_DOWNLOAD_S", 0.3)
    start = time.monotonic()
    with pytest.raises(AudioError, match=r"^slow\.wav takes longer than 0\.3 s"):
        load_audio(server.url + "/slow.wav", RATE)
    assert time.monotonic() - start < 1.5  # the server would send for 2 s


@pytest.mark.parametrize("url", ["ftp://host/clip.wav", "file:///clip.wav", "s3://bucket/clip.wav"])
def test_only_http_urls_are_followed(url):
    with pytest.raises(AudioError, match=r"^clip\.wav has a URL that is not http or https"):
        load_audio(url, RATE)


@pytest.mark.parametrize("url", ["http://[bad/clip.wav", "http://127.0.0.1:port/clip.wav"])
def test_broken_urls_are_one_sentence(url):
    with pytest.raises(AudioError, match=r"^clip\.wav cannot be downloaded \("):
        load_audio(url, RATE)


def test_a_password_in_a_url_is_refused_and_not_repeated():
    with pytest.raises(AudioError, match=r"^clip\.wav has a URL with a user name in it") as raised:
        load_audio("http://user:secret@127.0.0.1/clip.wav", RATE)
    assert "secret" not in str(raised.value)


def test_a_decoder_that_fails_is_one_sentence():
    def fail():
        raise RuntimeError("could not seek")

    with pytest.raises(AudioError, match=r"^The audio decoder cannot decode its audio"):
        load_audio(types.SimpleNamespace(get_all_samples=fail), RATE)


# -- real files


@pytest.mark.skipif(not SHARED.is_dir(), reason="needs ../shared, which holds the development data")
def test_real_files_are_read_whole():
    tasks = sorted((SHARED / "data" / "eval").glob("*/audio"))
    assert tasks
    for task in tasks:
        for path in sorted(task.iterdir())[:3]:
            info = sf.info(path)
            assert load_audio(path, info.samplerate).shape == (info.frames,), path.name

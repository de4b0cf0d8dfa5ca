"""Containers that soundfile cannot read: stand-ins for the decoders, then real ones where they are installed."""

import io
import shutil
import stat
import subprocess
import sys
import types
from contextlib import ExitStack
from pathlib import Path

import numpy as np
import pytest
import soundfile as sf
import torch

from hf_clap import audio_container
from hf_clap.audio import iter_audio, load_audio
from hf_clap.waveform import AudioError

RATE = 16_000
NO_AUDIO = b"\0\0\0\x1cftypM4A " + bytes(100)  # how an m4a file starts


def noise(seconds: float, channels: int = 1) -> np.ndarray:
    """(samples, channels) float32 at RATE, within [-0.5, 0.5]."""
    return np.random.default_rng(0).uniform(-0.5, 0.5, (round(seconds * RATE), channels)).astype(np.float32)


@pytest.fixture
def no_decoders(monkeypatch):
    monkeypatch.setenv("PATH", "")
    monkeypatch.setitem(sys.modules, "torchcodec.decoders", None)  # makes its import fail


@pytest.fixture
def fake_ffmpeg(tmp_path, monkeypatch):
    """Stands in for ffmpeg: writes its arguments to `arguments`, prints the file `output`, says what `log` holds."""
    folder = tmp_path / "bin"
    folder.mkdir()
    script = folder / "ffmpeg"
    cat = shutil.which("cat")
    script.write_text(
        f'#!/bin/sh\nprintf "%s\\n" "$@" > "{folder}/arguments"\n{cat} "{folder}/output"\n{cat} "{folder}/log" >&2\n'
    )
    script.chmod(script.stat().st_mode | stat.S_IXUSR)
    (folder / "log").write_text("")
    monkeypatch.setenv("PATH", str(folder))
    return folder


def test_without_a_decoder_the_sentence_names_two(tmp_path, no_decoders):
    path = tmp_path / "song.m4a"
    path.write_bytes(NO_AUDIO)
    with pytest.raises(AudioError, match=r"^song\.m4a is in a format .* install ffmpeg or torchcodec, or convert it"):
        load_audio(path, RATE)


@pytest.mark.skipif(sys.platform == "win32", reason="the stand-in for ffmpeg is a shell script")
def test_ffmpeg_gives_the_track_at_its_own_rate(tmp_path, fake_ffmpeg, temporary_folder, monkeypatch):
    samples = noise(12, channels=2)
    sf.write(fake_ffmpeg / "output", samples, RATE, format="AU", subtype="FLOAT", endian="BIG")
    path = tmp_path / "-song.m4a"
    path.write_bytes(NO_AUDIO)
    monkeypatch.chdir(tmp_path)
    for source in ("-song.m4a", NO_AUDIO, io.BytesIO(NO_AUDIO)):
        blocks = list(iter_audio(source, RATE))
        assert [len(block) for block in blocks] == [10 * RATE, 2 * RATE]
        np.testing.assert_allclose(np.concatenate(blocks), samples.mean(axis=1), atol=1e-7)
        arguments = (fake_ffmpeg / "arguments").read_text().splitlines()
        assert arguments[arguments.index("-protocol_whitelist") + 1] == "file"
        assert arguments[arguments.index("-f") + 1] == "mov"
        assert arguments[arguments.index("-i") + 1].startswith("file:")
        if source == "-song.m4a":
            assert arguments[arguments.index("-i") + 1] == "file:-song.m4a"
    assert list(temporary_folder.iterdir()) == []
    with pytest.raises(AudioError, match="is at 16000 Hz and the call says 8000 Hz"):
        load_audio(NO_AUDIO, RATE, source_rate=8000)


@pytest.mark.skipif(sys.platform == "win32", reason="the stand-in for ffmpeg is a shell script")
def test_what_ffmpeg_cannot_decode_or_finds_cut_is_refused(fake_ffmpeg):
    (fake_ffmpeg / "output").write_bytes(b"")
    with pytest.raises(AudioError, match="cannot be decoded: ffmpeg says 'exit code 0'; copy it again"):
        load_audio(NO_AUDIO, RATE)
    (fake_ffmpeg / "log").write_text("loading\nlibx is missing\n")
    with pytest.raises(AudioError, match="cannot be decoded: ffmpeg says 'libx is missing'; copy it again"):
        load_audio(NO_AUDIO, RATE)
    sf.write(fake_ffmpeg / "output", noise(1), RATE, format="AU", subtype="FLOAT", endian="BIG")
    (fake_ffmpeg / "log").write_text("stream 0, offset 0x16733: partial file\n")
    with pytest.raises(AudioError, match="is truncated or damaged"):
        load_audio(NO_AUDIO, RATE)


def test_blocks_are_no_larger_however_many_channels_a_file_has(fake_ffmpeg, monkeypatch):
    samples = noise(1, channels=32)
    sf.write(fake_ffmpeg / "output", samples, RATE, format="AU", subtype="FLOAT", endian="BIG")
    monkeypatch.setattr(audio_container, "MAX_BLOCK", 3200)
    with ExitStack() as stack:
        rate, blocks = audio_container.open_container("x.m4a", io.BytesIO(NO_AUDIO), "mov", stack, None)
        blocks = list(blocks)
    assert (rate, {block.shape for block in blocks}) == (RATE, {(100, 32)})
    np.testing.assert_array_equal(np.concatenate(blocks), samples)


@pytest.mark.parametrize("kind", ["free", "skip", "wide", "mdat"])
def test_a_playlist_that_begins_like_an_mp4_is_refused(kind, monkeypatch, no_decoders):
    """Else torchcodec, which guesses, opens the files that it names."""
    playlist = f"<!--{kind}--><MPD><BaseURL>file:///etc/passwd</BaseURL></MPD>".encode()
    monkeypatch.setattr(audio_container, "open_container", None)
    with pytest.raises(AudioError, match="is not an audio file that can be read; convert it to WAV or FLAC"):
        load_audio(playlist, RATE)


def test_torchcodec_is_used_without_ffmpeg(tmp_path, monkeypatch, no_decoders):
    stereo = torch.from_numpy(noise(1, channels=2)).T
    opened = []

    class AudioDecoder:
        def __init__(self, path):
            opened.append(path)

        def get_all_samples(self):
            return types.SimpleNamespace(data=stereo, sample_rate=RATE)

    module = types.ModuleType("torchcodec.decoders")
    module.AudioDecoder = AudioDecoder
    monkeypatch.setitem(sys.modules, "torchcodec", types.ModuleType("torchcodec"))
    monkeypatch.setitem(sys.modules, "torchcodec.decoders", module)
    path = tmp_path / "song.m4a"
    path.write_bytes(NO_AUDIO)
    np.testing.assert_allclose(load_audio(path, RATE), stereo.mean(dim=0).numpy(), atol=1e-7)
    assert opened == [str(path)]


# -- real decoders


@pytest.fixture(scope="module")
def sounds(tmp_path_factory):
    """(encode, tone): makes a file of 2 s of 440 Hz by ffmpeg's arguments, of `tone` at 44.1 kHz, mono."""
    if shutil.which("ffmpeg") is None:
        pytest.skip("ffmpeg is not installed")
    folder = tmp_path_factory.mktemp("sounds")
    tone = 0.5 * np.sin(2 * np.pi * 440 * np.arange(2 * 44_100) / 44_100).astype(np.float32)
    sf.write(folder / "tone.wav", tone, 44_100)

    def encode(name, *arguments):
        path = folder / name
        if not path.exists():
            command = ["ffmpeg", "-v", "error", "-i", folder / "tone.wav", *arguments, path]
            subprocess.run(command, check=True, stdin=subprocess.DEVNULL)
        return path

    return encode, tone


@pytest.fixture(params=["ffmpeg", "torchcodec"])
def decoder(request, sounds, monkeypatch):
    if request.param == "torchcodec":
        pytest.importorskip("torchcodec.decoders", reason="torchcodec is not installed")
        monkeypatch.setenv("PATH", "")
    return request.param


# what ffmpeg makes of the tone, and by how many samples at 44.1 kHz an encoder may miss its length
LOSSLESS, LOSSY = 1, 3072
ENCODED = {
    "tone.m4a": ((), LOSSY),
    "stereo.m4a": (("-af", "pan=stereo|c0=c0|c1=c0"), LOSSY),
    "lossless.m4a": (("-c:a", "alac"), LOSSLESS),
    "tone.webm": ((), LOSSY),
    "tone.aac": ((), LOSSY),
    "tagged.aac": (("-write_id3v2", "1", "-metadata", "title=tone"), LOSSY),
    "tone.mka": (("-c:a", "pcm_s16le"), LOSSLESS),
    "tone.mov": (("-c:a", "pcm_s16be", "-movflags", "faststart"), LOSSLESS),
    "tone.wma": ((), LOSSY),
    "alac.caf": (("-c:a", "alac"), LOSSLESS),
    "flac.oga": (("-c:a", "flac"), LOSSLESS),
}


@pytest.mark.parametrize("name", ENCODED)
@pytest.mark.parametrize("rate", [44_100, 16_000])
def test_real_decoders_give_the_tone(sounds, decoder, name, rate):
    encode, tone = sounds
    if (decoder, name) == ("torchcodec", "alac.caf"):
        pytest.skip("torchcodec leaves its last packet out")
    arguments, slack = ENCODED[name]
    path = encode(name, *arguments)
    for source in (path, path.read_bytes()):
        blocks = list(iter_audio(source, rate))
        assert all(block.dtype == np.float32 and block.dtype.isnative for block in blocks)
        loaded = np.concatenate(blocks)
        assert abs(len(loaded) - 2 * rate) <= slack
        middle = loaded[rate // 2 : rate // 2 + rate]
        assert np.abs(np.fft.rfft(middle)).argmax() == 440
        assert middle.std() == pytest.approx(0.5 / np.sqrt(2), rel=0.02)
        if slack == LOSSLESS and rate == 44_100:
            np.testing.assert_allclose(loaded[: len(tone)], tone[: len(loaded)], atol=2**-15)


def test_an_mp3_in_a_wav_is_whole_though_its_writer_miscounts(sounds):
    encode, _ = sounds
    path = encode("mp3.wav", "-c:a", "libmp3lame")
    with sf.SoundFile(path) as sound:
        held = len(sound.read())
        assert held < sound.frames
    assert len(load_audio(path, 44_100)) == held


def test_a_file_of_quicktime_without_its_mark_is_read(sounds):
    encode, _ = sounds
    data = encode("tone.mov", *ENCODED["tone.mov"][0]).read_bytes()
    unmarked = data[int.from_bytes(data[:4], "big") :]
    assert data[4:8] == b"ftyp"
    assert unmarked[4:8] == b"moov"
    shift = len(data) - len(unmarked)  # places of samples count from the file's start
    padded = shift.to_bytes(4, "big") + b"free" + bytes(shift - 8) + unmarked
    np.testing.assert_array_equal(load_audio(padded, 16_000), load_audio(data, 16_000))


def cut(data, at):
    return data[:at]


def overwrite(data, at):
    return data[:at] + bytes(3000) + data[at + 3000 :]


@pytest.mark.parametrize("damage", [cut, overwrite])
@pytest.mark.parametrize("name", ["tone.aac", "fast.m4a", "tone.mka", "tone.webm"])
def test_real_ffmpeg_refuses_a_damaged_file(sounds, name, damage):
    encode, _ = sounds
    arguments = ("-movflags", "faststart") if name == "fast.m4a" else ENCODED[name][0]
    data = encode(name, *arguments).read_bytes()
    with pytest.raises(AudioError, match=r"^The encoded audio is truncated or damaged; copy or download it again"):
        load_audio(damage(data, len(data) * 2 // 3), RATE)


def test_a_cut_matroska_is_refused_whatever_decodes_it(sounds, decoder):
    encode, _ = sounds
    data = encode("tone.mka", *ENCODED["tone.mka"][0]).read_bytes()
    for size in (len(data) // 10, len(data) // 2, len(data) - 1):
        with pytest.raises(AudioError, match=r"is truncated or damaged"):
            load_audio(data[:size], RATE)
    live = encode("live.webm", "-f", "webm", "-live", "1").read_bytes()  # of unknown length
    assert abs(len(load_audio(live, RATE)) - 2 * RATE) <= LOSSY


def test_an_ogg_of_flac_that_is_cut_is_refused_whatever_decodes_it(sounds, decoder):
    encode, _ = sounds
    data = encode("flac.oga", *ENCODED["flac.oga"][0]).read_bytes()
    for size in (len(data) // 2, len(data) - 1):
        with pytest.raises(AudioError, match="is truncated or damaged"):
            load_audio(data[:size], RATE)


@pytest.mark.skipif(not Path("/dev/fd").is_dir(), reason="there is no /dev/fd")
def test_a_name_of_this_process_alone_is_read(sounds, decoder):
    encode, _ = sounds
    path = encode("tone.m4a")
    with path.open("rb") as file:
        np.testing.assert_array_equal(load_audio(f"/dev/fd/{file.fileno()}", RATE), load_audio(path, RATE))


def test_a_film_without_sound_is_one_sentence(sounds):
    encode, _ = sounds
    silent = encode("silent.mp4", "-f", "lavfi", "-i", "testsrc=d=1:s=32x32:r=5", "-map", "1:v", "-c:v", "mpeg4")
    with pytest.raises(AudioError, match=r"^silent\.mp4 has no audio track; choose a file with sound"):
        load_audio(silent, RATE)


def test_names_are_never_read_as_urls(sounds, decoder, tmp_path, monkeypatch):
    encode, _ = sounds
    monkeypatch.chdir(tmp_path)
    expected = load_audio(encode("tone.m4a"), RATE)
    for name in ("take:2.m4a", "concat:a|b.m4a", "-tone.m4a", "100%d.m4a"):
        shutil.copy(encode("tone.m4a"), tmp_path / name)
        np.testing.assert_array_equal(load_audio(name, RATE), expected)

"""Containers that soundfile cannot read, such as m4a, mp4 and webm -> blocks of samples, by ffmpeg or torchcodec."""

import os
import shutil
import struct
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack
from typing import Any

import numpy as np

from .waveform import AudioError

BLOCK_S = 10.0
MAX_BLOCK = 2**23  # samples of all channels: a header may state a thousand channels

Blocks = Iterator[np.ndarray]

# The kinds of atoms that files of the mp4 family begin with; the older ones know no ftyp.
MP4_ATOMS = (b"ftyp", b"styp", b"moov", b"mdat", b"wide", b"free", b"skip")

# Containers by their first bytes, by ffmpeg's name.
DEMUXERS = {
    b"\x1aE\xdf\xa3": "matroska",
    b"0&\xb2u": "asf",
    b"caff": "caf",
    b"OggS": "ogg",  # with FLAC, Speex or video in it
    b"\xff\xf0": "aac",
    b"\xff\xf1": "aac",
    b"\xff\xf8": "aac",
    b"\xff\xf9": "aac",
}

# What ffmpeg says, without failing, of files that are cut or damaged.
COMPLAINTS = (b"partial file", b"ended prematurely", b"EBML number", b"broken header")


def demuxer_of(file: Any) -> str | None:
    """ffmpeg's name for a container, so that ffmpeg never guesses: its playlist formats open other files."""
    head = read_behind_tag(file, 16)
    # A first atom of 512 MB would begin with a letter, as text does that torchcodec takes for a playlist.
    if head[4:8] in MP4_ATOMS and head[0] < ord(" "):
        return "mov"
    return next((demuxer for magic, demuxer in DEMUXERS.items() if head.startswith(magic)), None)


def read_behind_tag(file: Any, size: int) -> bytes:
    """The first bytes of a file behind its ID3 tag, if it has one, whose length is four 7-bit digits."""
    file.seek(0)
    head, start = file.read(10), 0
    if head[:3] == b"ID3" and len(head) == 10:
        start = 10 + sum(digit << shift for digit, shift in zip(head[6:], (21, 14, 7, 0), strict=True))
    file.seek(start)
    return file.read(size)


def open_container(name: str, file: Any, demuxer: str, stack: ExitStack, path: str | None) -> tuple[int, Blocks]:
    """Arguments and results as of `open_audio_file`. ffmpeg first, for it streams; torchcodec holds all samples."""
    if (demuxer == "matroska" and _is_cut_matroska(file)) or (demuxer == "ogg" and is_cut_ogg(file)):
        raise damaged(name)
    if path is None:  # decoders seek, so they want a file rather than a pipe
        path = os.path.join(stack.enter_context(tempfile.TemporaryDirectory(prefix="hf_clap_")), "audio")
        file.seek(0)
        with open(path, "wb") as copy:
            shutil.copyfileobj(file, copy)
    if ffmpeg := shutil.which("ffmpeg"):
        return _open_ffmpeg(name, ffmpeg, path, demuxer, stack)
    try:
        from torchcodec.decoders import AudioDecoder
    except (ImportError, OSError, RuntimeError) as error:  # the last two: its FFmpeg libraries are missing
        raise AudioError(
            f"{name} is in a format that soundfile cannot read; install ffmpeg or torchcodec, or convert it to FLAC."
        ) from error
    try:
        decoder = AudioDecoder(os.path.abspath(path))  # a name alone may read as a URL, as in a:b.m4a
    except (ValueError, RuntimeError) as error:
        raise AudioError(f"{name} cannot be decoded by torchcodec; copy it again, or convert it to FLAC.") from error
    return read_decoder(name, decoder)


def damaged(name: str) -> AudioError:
    """The error of a file of which not all can be decoded."""
    return AudioError(f"{name} is truncated or damaged; copy or download it again.")


def _is_cut_matroska(file: Any) -> bool:
    """Whether its one segment, which a live stream leaves of unknown length, should go on behind the file's end."""
    file.seek(0, os.SEEK_END)
    size = file.tell()
    file.seek(0)
    head = file.read(4096)
    start = head.find(b"\x18\x53\x80\x67") + 4
    if start < 4 or len(head) < start + 8:
        return False
    width = 9 - head[start].bit_length()  # of the length: its first bit that is set tells
    unknown = (1 << 7 * width) - 1
    length = int.from_bytes(head[start : start + width], "big") & unknown
    return length != unknown and start + width + length > size


def is_cut_ogg(file: Any) -> bool:
    """Whether it does not end with a whole page that is marked as the last one."""
    size = file.seek(0, os.SEEK_END)
    file.seek(max(0, size - 2**16))  # a page has at most 65,307 bytes
    tail = file.read()
    page = tail[tail.rfind(b"OggS") :]  # (27-byte header, table of segment lengths, segments)
    table = page[27 : 27 + page[26]] if len(page) > 26 else b""
    is_last = bool(table) and page[5] & 4
    return not is_last or len(page) < 27 + page[26] + sum(table)


def _open_ffmpeg(name: str, ffmpeg: str, path: str, demuxer: str, stack: ExitStack) -> tuple[int, Blocks]:
    """The first audio track by ffmpeg, as an AU stream: a header with rate and channels, then big-endian float32."""
    command = [ffmpeg, "-nostdin", "-v", "error", "-xerror", "-protocol_whitelist", "file", "-f", demuxer]
    command += ["-i", f"file:{path}", "-map", "0:a:0", "-c:a", "pcm_f32be", "-f", "au", "pipe:1"]
    log = stack.enter_context(tempfile.TemporaryFile())  # noqa: SIM115
    process = stack.enter_context(
        subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=log)
    )
    stack.callback(process.kill)

    def messages() -> bytes:
        log.seek(0)
        return log.read()

    stream: Any = process.stdout
    header = stream.read(24)
    if len(header) < 24:
        code, said = process.wait(), messages().decode(errors="replace")
        if "matches no streams" in said:
            raise AudioError(f"{name} has no audio track; choose a file with sound.")
        reason = (said.splitlines() or [f"exit code {code}"])[-1].removeprefix(f"file:{path}: ")
        raise AudioError(f"{name} cannot be decoded: ffmpeg says {reason!r}; copy it again, or convert it to FLAC.")
    _, offset, _, _, own_rate, channels = struct.unpack(">4s5I", header)
    stream.read(offset - len(header))

    def blocks() -> Blocks:
        while data := stream.read(4 * channels * min(round(BLOCK_S * own_rate), MAX_BLOCK // channels)):
            samples = np.frombuffer(data, ">f4", len(data) // (4 * channels) * channels)
            yield samples.astype(np.float32).reshape(-1, channels)  # in this machine's order, as soxr wants it
        if process.wait() or any(complaint in messages() for complaint in COMPLAINTS):
            raise damaged(name)

    return own_rate, blocks()


def read_decoder(name: str, decoder: Any) -> tuple[int, Blocks]:
    """Rate in Hz and samples of a torchcodec `AudioDecoder`."""
    try:
        samples = decoder.get_all_samples()  # .data (channels, samples) float32
    except RuntimeError as error:
        raise AudioError(f"{name} cannot decode its audio; check the file it reads.") from error
    return samples.sample_rate, iter([samples.data.T.numpy()])

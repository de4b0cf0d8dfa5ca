"""One encoded file -> blocks of samples: soundfile, what it leaves unsaid about cut files, and other containers."""

import os
import shutil
import struct
import subprocess
import tempfile
from collections.abc import Callable, Iterator
from contextlib import ExitStack, suppress
from functools import partial
from typing import Any, cast

import numpy as np
import soundfile as sf

from .waveform import AudioError

BLOCK_S = 10.0
MAX_BLOCK = 2**23  # samples of all channels: a header may state a thousand channels
INT16_SCALE = np.float32(1 / 32768)

Blocks = Iterator[np.ndarray]


class _ForwardFile(sf.SoundFile):
    """soundfile seeks after every read, which fails in a FLAC stream of unstated length; we only read forward."""

    def seekable(self) -> bool:
        return False


class _FileView:
    """A seekable file as libsndfile shall see it: nameless, and with the bytes at `offset` replaced by `patch`."""

    def __init__(self, file: Any, offset: int = 0, patch: bytes = b""):
        self.tell, self.patch = file.tell, patch
        self._file, self._offset = file, offset

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> None:
        # A broken header may point before the start: libsndfile asks for the position next, and gives up by itself.
        with suppress(OSError, ValueError):
            self._file.seek(offset, whence)

    def read(self, size: int) -> bytes:
        start = self.tell()
        data = bytearray(self._file.read(size))
        for position, byte in enumerate(self.patch, self._offset - start):
            if 0 <= position < len(data):
                data[position] = byte
        return bytes(data)


def open_audio_file(name: str, file: Any, stack: ExitStack, path: str | None = None) -> tuple[int, Blocks]:
    """
    Open an encoded file.

    Args:
        name: of the file, for messages.
        file: binary and seekable.
        stack: what must be closed or removed later is left on it.
        path: where the file lies on disk, if it does.

    Returns:
        tuple[int, Iterator[np.ndarray]]: its rate in Hz and its blocks of (samples, channels) float32.

    Raises:
        AudioError: for a file that is empty, cut, or not audio; for some only as its last block is read.
    """
    file.seek(0, os.SEEK_END)
    size = file.tell()
    if size == 0:
        raise AudioError(f"{name} is empty (0 bytes); record, copy or download it again.")
    tell: Callable[[], int] = file.tell
    view: Any = _view(file, size)
    if path is not None and not view.patch:  # libsndfile reads by itself: through Python, threads wait for each other
        view = os.open(path, os.O_RDONLY | getattr(os, "O_BINARY", 0))
        stack.callback(os.close, view)
        tell = partial(os.lseek, view, 0, os.SEEK_CUR)
    try:
        sound = stack.enter_context(_ForwardFile(view, closefd=False))
    except sf.LibsndfileError as error:
        file.seek(0)
        if demuxer := _demuxer(file.read(16)):
            return _open_container(name, file, demuxer, stack, path)
        raise AudioError(f"{name} is not an audio file that can be read; convert it to WAV or FLAC.") from error
    position = file.tell()
    _refuse_cut_file(name, file, size, sound)
    promised = sound.frames if _states_length(file, sound) else None
    file.seek(position)
    return sound.samplerate, _read_sound(name, tell, size, sound, promised)


def _read_sound(name: str, tell: Callable[[], int], size: int, sound: sf.SoundFile, promised: int | None) -> Blocks:
    """
    Blocks of a file; `promised` samples must come, unless the header says nothing of its length (None). `tell` says
    how far libsndfile has read.
    """
    block_size = min(round(BLOCK_S * sound.samplerate), MAX_BLOCK // sound.channels)
    is_int16 = sound.subtype == "PCM_16"  # read as they are and scaled here: a fifth of libsndfile's time, same values
    done = 0
    while done < sound.frames:  # never ask for more: tags behind a FLAC's last frame would be an error
        try:
            dtype = "int16" if is_int16 else "float32"
            block = sound.read(min(block_size, sound.frames - done), dtype=dtype, always_2d=True)
        except sf.LibsndfileError as error:
            raise AudioError(f"{name} is truncated or damaged; copy or download it again.") from error
        if not len(block):
            break
        done += len(block)
        yield np.multiply(block, INT16_SCALE, dtype=np.float32) if is_int16 else block
    # libsndfile ends a cut FLAC or MP3 early without a word; MP3 writers miscount by a frame or two of 1152 samples
    slack = 2304 if sound.format == "MP3" else 0
    if promised is not None and done < promised - slack:
        raise _truncated(name, promised / sound.samplerate, done / sound.samplerate)
    # An MP3 of varying bit rate without a Xing header: libsndfile guesses its length, and stops there.
    if promised is None and sound.format == "MP3" and size - tell() > 4096:
        raise AudioError(f"{name} is an MP3 that does not state its length; convert it, e.g. with ffmpeg, to FLAC.")


def _truncated(name: str, promised_s: float, held_s: float) -> AudioError:
    return AudioError(
        f"{name} is truncated: its header promises {promised_s:.2f} s and the file holds {held_s:.2f} s; "
        "copy or download it again."
    )


# By the first bytes of a file: layout of a chunk's header, kind of the chunk with the samples, where chunks begin,
# what their lengths are multiples of, and whether they count the header too.
CHUNKS = {
    b"RIFF": ("<4sI", b"data", 12, 2, False),
    b"RF64": ("<4sI", b"data", 12, 2, False),
    b"FORM": (">4sI", b"SSND", 12, 2, False),
    b"riff": ("<4s12xQ", b"data", 40, 8, True),  # W64
}


def _data_chunk(file: Any, size: int) -> tuple[int, int] | None:
    """(offset of the first sample, bytes of samples by the header) of a WAV, RF64, W64, AIFF or AU file of `size`."""
    file.seek(0)
    magic = file.read(4)
    if magic == b".snd":
        header = file.read(8)
        return None if len(header) < 8 else cast("tuple[int, int]", struct.unpack(">II", header))
    if magic not in CHUNKS:
        return None
    layout, wanted, start, multiple, counts_header = CHUNKS[magic]
    size_of_header, long_length = struct.calcsize(layout), None
    file.seek(start)
    for _ in range(1000):  # more chunks than any file has: zeros would be read as millions of them
        header = file.read(size_of_header)
        if len(header) < size_of_header:
            return None
        kind, length = struct.unpack(layout, header)
        if counts_header:
            length -= size_of_header
        if kind == wanted:
            return file.tell(), length if long_length is None else long_length
        begin = file.tell()
        if kind == b"ds64" and len(sizes := file.read(16)) == 16:  # of RF64, whose other sizes are placeholders
            long_length = struct.unpack("<8xQ", sizes)[0]
        if length > size - begin:
            return None
        file.seek(begin + max(0, length) + -length % multiple)
    return None


def _view(file: Any, size: int) -> _FileView:
    """
    Fills in the size of a WAV from a pipe, whose writer could not go back to do it. libsndfile reads other
    placeholders (2**31 - 1, 2**32 - 1, …) as "to the end", but takes 0 at its word.
    """
    chunk = _data_chunk(file, size)
    file.seek(0)
    magic, stated_size = struct.unpack("<4sI", file.read(8).ljust(8))
    file.seek(0)
    if magic != b"RIFF" or chunk is None or chunk[1] > 0 or stated_size == size - 8:
        return _FileView(file)
    return _FileView(file, chunk[0] - 4, struct.pack("<I", min(size - chunk[0], 2**32 - 1)))


def _refuse_cut_file(name: str, file: Any, size: int, sound: sf.SoundFile) -> None:
    """
    libsndfile reads what is left of a WAV, AIFF, AU or Ogg file that was cut, and says nothing: look in the file. It
    does the same with CAF, which stays unchecked.
    """
    seconds = sound.frames / sound.samplerate
    if sound.format in ("WAV", "WAVEX", "AIFF", "AU", "RF64", "W64") and (chunk := _data_chunk(file, size)):
        offset, promised = chunk
        # from just below 2**31 on, a size is what programs write to a pipe, as sox (0x7ffff000) and ffmpeg (2**32 - 1)
        longest = 2**62 if sound.format in ("RF64", "W64") else 0x7FFF0000
        if 0 < size - offset < promised < longest:
            raise _truncated(name, seconds * promised / (size - offset), seconds)
    if sound.format == "OGG":
        file.seek(max(0, size - 2**16))  # a page has at most 65,307 bytes
        tail = file.read()
        page = tail[tail.rfind(b"OggS") :]  # (27-byte header, table of segment lengths, segments)
        table = page[27 : 27 + page[26]] if len(page) > 26 else b""
        marked_last = bool(table) and page[5] & 4
        if not marked_last or len(page) < 27 + page[26] + sum(table):
            raise AudioError(
                f"{name} is truncated: it ends after {seconds:.2f} s without its end mark; copy it again."
            )


def _states_length(file: Any, sound: sf.SoundFile) -> bool:
    if sound.format != "MP3":
        return sound.frames < 2**63 - 1  # libsndfile's word for a FLAC from a pipe
    file.seek(0)
    head = file.read(10)
    start = 0
    if head[:3] == b"ID3":  # a tag before the first MPEG frame; its length is four 7-bit digits
        start = 10 + sum(digit << shift for digit, shift in zip(head[6:], (21, 14, 7, 0), strict=True))
    file.seek(start)
    frame = file.read(256)
    return any(mark in frame for mark in (b"Xing", b"Info", b"VBRI"))


def _demuxer(head: bytes) -> str | None:
    """ffmpeg's name for a container, so that ffmpeg never guesses: its playlist formats open other files."""
    if head[4:8] == b"ftyp":  # m4a, mp4, mov, 3gp
        return "mov"
    magics = {b"\x1aE\xdf\xa3": "matroska", b"0&\xb2u": "asf", b"\xff\xf1": "aac", b"\xff\xf9": "aac"}
    return next((demuxer for magic, demuxer in magics.items() if head.startswith(magic)), None)


def _open_container(name: str, file: Any, demuxer: str, stack: ExitStack, path: str | None) -> tuple[int, Blocks]:
    """ffmpeg first, because it streams; torchcodec holds all samples at once."""
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
        decoder = AudioDecoder(path)
    except (ValueError, RuntimeError) as error:
        raise AudioError(f"{name} cannot be decoded by torchcodec; convert it to FLAC.") from error
    return read_decoder(name, decoder)


def _open_ffmpeg(name: str, ffmpeg: str, path: str, demuxer: str, stack: ExitStack) -> tuple[int, Blocks]:
    """The first audio track by ffmpeg, as an AU stream: a header with rate and channels, then big-endian float32."""
    command = [ffmpeg, "-nostdin", "-v", "error", "-protocol_whitelist", "file", "-f", demuxer, "-i", f"file:{path}"]
    command += ["-map", "0:a:0", "-c:a", "pcm_f32be", "-f", "au", "pipe:1"]
    log = stack.enter_context(tempfile.TemporaryFile())  # noqa: SIM115
    process = stack.enter_context(
        subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=log)
    )
    stack.callback(process.kill)
    stream: Any = process.stdout
    header = stream.read(24)
    if len(header) < 24:
        raise AudioError(f"{name} has no audio track that ffmpeg can decode; copy or download it again.")
    _, offset, _, _, own_rate, channels = struct.unpack(">4s5I", header)
    stream.read(offset - len(header))

    def blocks() -> Blocks:
        while data := stream.read(4 * channels * round(BLOCK_S * own_rate)):
            yield np.frombuffer(data, ">f4", len(data) // (4 * channels) * channels).reshape(-1, channels)
        failed = process.wait() != 0
        log.seek(0)
        messages = log.read()
        if failed or b"partial file" in messages or b"ended prematurely" in messages:  # a cut file is no failure to it
            raise AudioError(f"{name} is truncated or damaged; copy or download it again.")

    return own_rate, blocks()


def read_decoder(name: str, decoder: Any) -> tuple[int, Blocks]:
    """Rate in Hz and samples of a torchcodec `AudioDecoder`."""
    try:
        samples = decoder.get_all_samples()  # .data (channels, samples) float32
    except RuntimeError as error:
        raise AudioError(f"{name} cannot decode its audio; check the file it reads.") from error
    return samples.sample_rate, iter([samples.data.T.numpy()])

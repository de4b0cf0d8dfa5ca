"""One encoded file -> blocks of samples: by soundfile, with what it leaves unsaid about cut files."""

import io
import os
import struct
from collections.abc import Callable
from contextlib import ExitStack, suppress
from functools import partial
from typing import Any, cast

import numpy as np
import soundfile as sf

from .audio_container import (
    BLOCK_S,
    MAX_BLOCK,
    Blocks,
    damaged,
    demuxer_of,
    is_cut_ogg,
    open_container,
    read_behind_tag,
)
from .waveform import AudioError

MAX_REST = 2**20  # bytes behind a recording in which another one is looked for

INT16_SCALE = np.float32(1 / 32768)


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
        if demuxer := demuxer_of(file):
            return open_container(name, file, demuxer, stack, path)
        raise AudioError(f"{name} is not an audio file that can be read; convert it to WAV or FLAC.") from error
    position = file.tell()
    _refuse_cut_file(name, file, size, sound)
    promised = sound.frames if _states_length(file, sound) else None
    file.seek(position)

    def rest() -> bytes:
        file.seek(tell())  # as far as libsndfile has read
        return cast(bytes, file.read(MAX_REST))

    return sound.samplerate, _read_sound(name, rest, sound, promised)


def _read_sound(name: str, rest: Callable[[], bytes], sound: sf.SoundFile, promised: int | None) -> Blocks:
    """
    Blocks of a file; `promised` samples must come, unless the header says nothing of its length (None). `rest` gives
    what libsndfile has not read, or the beginning of it.
    """
    block_size = min(round(BLOCK_S * sound.samplerate), MAX_BLOCK // sound.channels)
    is_int16 = sound.subtype == "PCM_16"  # read as they are and scaled here: a fifth of libsndfile's time, same values
    done = 0
    while done < sound.frames:  # never ask for more: tags behind a FLAC's last frame would be an error
        try:
            dtype = "int16" if is_int16 else "float32"
            block = sound.read(min(block_size, sound.frames - done), dtype=dtype, always_2d=True)
        except sf.LibsndfileError as error:
            raise damaged(name) from error
        if not len(block):
            break
        done += len(block)
        yield np.multiply(block, INT16_SCALE, dtype=np.float32) if is_int16 else block
    # libsndfile ends a cut FLAC or MP3 early without a word; MP3 writers, into a WAV too, miscount by a frame or two
    slack = 2304 if sound.subtype.startswith("MPEG_LAYER") else 0
    if promised is not None and done < promised - slack:
        raise _truncated(name, promised / sound.samplerate, done / sound.samplerate)
    if sound.format not in ("MP3", "OGG") or len(unread := rest()) <= 4096:
        return
    # An MP3 of varying bit rate without a Xing header: libsndfile guesses its length, and stops there.
    if promised is None:
        raise AudioError(f"{name} is an MP3 that does not state its length; convert it, e.g. with ffmpeg, to FLAC.")
    # Files that somebody joined, and radio's Ogg: libsndfile stops after the first. Behind an MP3 may be tags too.
    if sound.format == "OGG" or _is_sound(unread):
        raise AudioError(
            f"{name} holds several recordings, one after the other, of which only the first can be read; convert it, "
            "e.g. with ffmpeg, to FLAC."
        )


def _is_sound(data: bytes) -> bool:
    try:
        sf.SoundFile(io.BytesIO(data)).close()
    except sf.LibsndfileError:
        return False
    return True


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
        # some writers count the header too
        if 0 < size - offset < promised - offset < longest:
            raise _truncated(name, seconds * promised / (size - offset), seconds)
    if sound.format == "OGG" and is_cut_ogg(file):
        raise AudioError(f"{name} is truncated: it ends after {seconds:.2f} s without its end mark; copy it again.")


def _states_length(file: Any, sound: sf.SoundFile) -> bool:
    if sound.format != "MP3":
        return sound.frames < 2**63 - 1  # libsndfile's word for a FLAC from a pipe
    frame = read_behind_tag(file, 256)
    return any(mark in frame for mark in (b"Xing", b"Info", b"VBRI"))

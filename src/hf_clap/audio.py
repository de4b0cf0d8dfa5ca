"""Anything a user calls audio, read block by block as mono float32 at one rate, or refused in one sentence.

`load_audio` joins what `iter_audio` yields. Every source is opened as (name for messages, rate in Hz, blocks of
(samples, channels) float32); averaging the channels, the checks on samples and resampling happen once, behind that.
"""

from __future__ import annotations

import hashlib
import http.client
import io
import math
import os
import tempfile
import time
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from typing import Any, BinaryIO
from urllib import error as url_error
from urllib import parse, request

import numpy as np
import soxr
import torch
from huggingface_hub.utils.sha import sha_fileobj

from .audio_container import BLOCK_S, Blocks, read_decoder
from .audio_file import open_audio_file
from .waveform import (
    MAX_AMPLITUDE,
    AudioError,
    as_waveform,
    fit_length,
    resampled_length,
    valid_rate,
)

MAX_DOWNLOAD_BYTES = 256 * 2**20
MAX_DOWNLOAD_S = 60.0
SOCKET_TIMEOUT_S = 10.0

RESAMPLED_AT_ONCE = 16384  # samples, so that they stay in the CPU's cache: a sixth less time

Opened = tuple[str, int, Blocks]


def load_audio(source: Any, sampling_rate: int, source_rate: int | None = None) -> np.ndarray:
    """
    Read audio as one mono waveform.

    Args:
        source: a path, an http(s) URL, an encoded file as bytes or as a binary file object (read from its start), an
            array, tensor or list of shape `(samples,)` or `(channels, samples)`, a dictionary with `array` (or `raw`)
            and `sampling_rate`, or audio from `datasets`, decoded or not.
        sampling_rate: rate of the result in Hz.
        source_rate: rate of the source in Hz: a bare array needs it, and a source that states its own must agree.

    Returns:
        np.ndarray: `(samples,)` float32; n samples at r Hz become `round(n * sampling_rate / r)`, at least one.

    Raises:
        AudioError: for a source that is empty, truncated, not audio, not finite or of unknown rate.
        FileNotFoundError: if there is no such file.

    Example:

    ```python
    >>> from hf_clap.audio import load_audio

    >>> load_audio([[0.5, 0.25], [0.0, 0.25]], sampling_rate=16000, source_rate=16000)
    array([0.25, 0.25], dtype=float32)

    ```
    """
    return np.concatenate(list(iter_audio(source, sampling_rate, source_rate)))


def iter_audio(source: Any, sampling_rate: int, source_rate: int | None = None) -> Blocks:
    """
    Read audio as consecutive mono blocks of about 10 s, so that a file of any length takes bounded memory; except for
    containers such as m4a and webm where torchcodec, without ffmpeg, decodes them whole.

    Takes and raises what `load_audio` does. Errors come with the first block, or at the end of a file that turns out
    to be shorter than its header promises.

    Yields:
        np.ndarray: `(samples,)` float32 at `sampling_rate`; joined they are what `load_audio` returns.
    """
    target_rate = valid_rate("The result", sampling_rate)
    with ExitStack() as stack:
        name, rate, blocks = _open(source, source_rate, stack)
        yield from _resample(_mono(name, blocks), rate, target_rate)


def stretch_of(blocks: Blocks, start: int, samples: int) -> np.ndarray:
    """`(samples,)` of a waveform that `iter_audio` gives in blocks, from `start` on; a block is held at a time."""
    kept, end = [], 0
    for block in blocks:
        begin, end = end, end + len(block)
        kept.append(block[max(0, start - begin) : max(0, start + samples - begin)])
        if end >= start + samples:
            break
    return np.concatenate(kept)


def audio_sha256(source: Any) -> str:
    """
    SHA-256 of a clip as it is stored, in hexadecimal: nothing is decoded.

    Args:
        source: the path of a file, or its bytes; `datasets` audio that is not decoded, `{"bytes", "path"}`; or an
            array, alone or with its rate as `{"array", "sampling_rate"}`.

    Raises:
        AudioError: for anything else.
        OSError: if the file cannot be read.

    Example:

    ```python
    >>> from hf_clap.audio import audio_sha256

    >>> audio_sha256({"bytes": b""})[:8]
    'e3b0c442'

    ```
    """
    rate = None
    if isinstance(source, Mapping):
        rate = source.get("sampling_rate")
        given = [source[key] for key in ("array", "bytes", "path") if source.get(key) is not None]
        source = given[0] if given else None
    if isinstance(source, (bytes, bytearray, memoryview)):
        return hashlib.sha256(source).hexdigest()
    if isinstance(source, (str, os.PathLike)):
        with open(source, "rb") as file:
            return sha_fileobj(file).hex()
    if not isinstance(source, (np.ndarray, torch.Tensor, list, tuple)):
        raise AudioError("There is no audio in this row; fill it in, or remove the row.")
    try:
        samples = np.ascontiguousarray(source.detach().cpu() if isinstance(source, torch.Tensor) else source)
        if samples.dtype == object:
            raise ValueError("it holds something else than numbers")
        digest = hashlib.sha256(f"{samples.dtype} {samples.shape} {rate} ".encode())
        digest.update(samples.data)
    except (ValueError, TypeError, RuntimeError) as error:  # rows of different lengths, or things that are no numbers
        raise AudioError(f"The array in this row is no waveform ({error}); write it again.") from error
    return digest.hexdigest()


def _mono(name: str, blocks: Blocks) -> Blocks:
    """(samples, channels) -> (samples,), the average of the channels."""
    empty = True
    for block in blocks:
        if len(block):
            if not (block.min() >= -MAX_AMPLITUDE and block.max() <= MAX_AMPLITUDE):  # also false for NaN
                raise AudioError(f"{name} holds NaN or infinite samples, or some beyond a million; write it again.")
            empty = False
            yield block[:, 0] if block.shape[1] == 1 else block.mean(axis=1, dtype=np.float32)
    if empty:
        raise AudioError(f"{name} holds no audio samples; record, copy or download it again.")


def _resample(blocks: Blocks, from_rate: int, to_rate: int) -> Blocks:
    """Resamples a stream; the result is what soxr makes of the whole waveform, to the sample."""
    if from_rate == to_rate:
        yield from blocks
        return
    stream = soxr.ResampleStream(from_rate, to_rate, 1, dtype="float32", quality="HQ")
    read = written = 0
    for block in blocks:
        pieces = [block[start : start + RESAMPLED_AT_ONCE] for start in range(0, len(block), RESAMPLED_AT_ONCE)]
        resampled = np.concatenate([stream.resample_chunk(piece) for piece in pieces])
        read += len(block)
        written += len(resampled)
        if len(resampled):
            yield resampled
    tail = stream.resample_chunk(np.zeros(0, np.float32), last=True)
    yield fit_length(tail, resampled_length(read, from_rate, to_rate) - written)


def _agreed_rate(name: str, own: Any, stated: Any) -> int:
    """The rate of a source that may carry one, which the caller may repeat but not contradict."""
    if own is None and stated is None:
        raise AudioError(
            f"{name} comes without its rate; pass source_rate=… (to a pipeline sampling_rate=…), the array's rate in "
            'Hz, or {"array": …, "sampling_rate": …}.'
        )
    if own is not None and stated is not None and own != stated:
        raise AudioError(f"{name} is at {own} Hz and the call says {stated} Hz; leave the rate out of the call.")
    return valid_rate(name, stated if own is None else own)


def _open(source: Any, rate: Any, stack: ExitStack) -> Opened:
    """Opens any source; what must be closed or removed later is left on `stack`."""
    if isinstance(source, Mapping):
        return _open_mapping(source, rate, stack)
    if hasattr(source, "get_all_samples"):  # torchcodec's AudioDecoder and its subclass in datasets
        own_rate, blocks = read_decoder("The audio decoder", source)
        return "The audio decoder", _agreed_rate("The audio decoder", own_rate, rate), blocks
    if isinstance(source, (np.ndarray, torch.Tensor, list, tuple)):
        return _open_array(source, rate)
    if isinstance(source, (str, os.PathLike)):
        return _open_path(os.fsdecode(source), rate, stack)
    if isinstance(source, (bytes, bytearray, memoryview)):
        return _open_file("The encoded audio", io.BytesIO(source), rate, stack)
    if hasattr(source, "read"):
        return _open_file_object(source, rate, stack)
    raise AudioError(
        f"A {type(source).__name__} is not audio; pass a path, an http(s) URL, bytes, a binary file object, an array "
        'with its rate, {"array": …, "sampling_rate": …} or audio from datasets.'
    )


def _open_mapping(source: Mapping, rate: Any, stack: ExitStack) -> Opened:
    """transformers' {"array" or "raw", "sampling_rate"}, or {"bytes", "path"}: datasets' audio before decoding."""
    given = {key: value for key, value in source.items() if value is not None}
    if "sampling_rate" in given:
        rate = _agreed_rate("The audio dictionary", given["sampling_rate"], rate)
    for key in ("array", "raw"):
        if key in given:
            return _open_array(given[key], rate)
    for key, kinds in (("bytes", (bytes, bytearray, memoryview)), ("path", (str, os.PathLike))):
        if key in given and not isinstance(given[key], kinds):
            raise AudioError(f'The audio dictionary has a {type(given[key]).__name__} as "{key}"; give it audio.')
    if "bytes" in given:
        name = os.path.basename(given.get("path", "")) or "The encoded audio"
        return _open_file(name, io.BytesIO(given["bytes"]), rate, stack)
    if "path" in given:
        return _open_path(os.fsdecode(given["path"]), rate, stack)
    raise AudioError(
        'The audio dictionary holds no audio; give it "array" and "sampling_rate", or "bytes", or "path".'
    )


def _open_array(array: Any, rate: Any) -> Opened:
    rate = _agreed_rate("The array", None, rate)
    waveform = as_waveform(array).detach().cpu()  # (samples,)
    return "The array", rate, (block.numpy()[:, None] for block in waveform.split(round(BLOCK_S * rate)))


def _open_file(name: str, file: Any, rate: Any, stack: ExitStack, path: str | None = None) -> Opened:
    own_rate, blocks = open_audio_file(name, file, stack, path)
    return name, _agreed_rate(name, own_rate, rate), blocks


def _open_path(path: str, rate: Any, stack: ExitStack) -> Opened:
    name = os.path.basename(path) or repr(path)
    if "://" in path:
        name, path = _download(path, stack)
    try:
        file = stack.enter_context(open(path, "rb"))  # noqa: SIM115
    except FileNotFoundError as error:
        folder = os.path.dirname(path.rstrip(os.sep)) or os.curdir
        raise FileNotFoundError(f"{name} does not exist in the folder {folder!r}; check the path.") from error
    except (OSError, ValueError) as error:
        advice = "is a folder; pass the files in it" if os.path.isdir(path) else f"cannot be opened ({error})"
        raise AudioError(f"{name} {advice}.") from error
    if not file.seekable():  # a named pipe or /dev/stdin
        return _open_file_object(file, rate, stack)
    # what lies there has another meaning, or none, for a decoder in another process
    is_of_this_process = path.startswith(("/dev/", "/proc/"))
    return _open_file(name, file, rate, stack, None if is_of_this_process else path)


def _open_file_object(source: Any, rate: Any, stack: ExitStack) -> Opened:
    name = getattr(source, "name", None)
    name = os.path.basename(name) if isinstance(name, str) else "The file object"
    if isinstance(source, io.TextIOBase) or getattr(source, "closed", False):
        raise AudioError(f'{name} is not open for reading bytes; pass open(path, "rb").')
    if not (hasattr(source, "seekable") and source.seekable()):
        whole = io.BytesIO()
        copy_stream(name, source.read, whole)
        source = whole
    return _open_file(name, source, rate, stack)


def copy_stream(name: str, read: Callable[[int], bytes], target: BinaryIO, deadline: float = math.inf) -> None:
    """Copies a stream that may be endless, up to MAX_DOWNLOAD_BYTES and until `deadline` (time.monotonic())."""
    size = 0
    while chunk := read(2**16):
        if not isinstance(chunk, (bytes, bytearray, memoryview)):
            if hasattr(chunk, "close"):  # a coroutine's, which would complain that nobody waited for it
                chunk.close()
            raise AudioError(
                f"{name} gives a {type(chunk).__name__} where bytes are read; pass its bytes, or a binary file (of an "
                "upload, its .file)."
            )
        size += len(chunk)
        if size > MAX_DOWNLOAD_BYTES:
            raise AudioError(f"{name} is larger than {MAX_DOWNLOAD_BYTES} bytes; save it to a file and pass its path.")
        if time.monotonic() > deadline:
            raise AudioError(f"{name} takes longer than {MAX_DOWNLOAD_S} s; save it to a file and pass its path.")
        target.write(chunk)


def _download(url: str, stack: ExitStack) -> tuple[str, str]:
    """(name, path of a temporary file) of the file at an http(s) URL."""
    # Messages get the last part of the path only: the rest of a URL may hold a password or a token.
    name = os.path.basename(url.partition("://")[2].split("?")[0].rstrip("/").rpartition("@")[2]) or "The URL"
    if not url.lower().startswith(("http://", "https://")):
        raise AudioError(f"{name} has a URL that is not http or https; download it and pass its path.")
    if "@" in url.split("/")[2]:  # urllib takes it for a part of the host, and says so in its errors
        raise AudioError(f"{name} has a URL with a user name in it; download it and pass its path.")
    path = os.path.join(stack.enter_context(tempfile.TemporaryDirectory(prefix="hf_clap_")), "audio")
    timeout, deadline = min(SOCKET_TIMEOUT_S, MAX_DOWNLOAD_S), time.monotonic() + MAX_DOWNLOAD_S
    try:
        url = parse.quote(url, safe="%/:?#[]@!$&'()*+,;=~")  # spaces and letters that HTTP cannot carry
        call = request.Request(url, headers={"User-Agent": "hf_clap"})  # some hosts refuse urllib's own name
        with request.urlopen(call, timeout=timeout) as response, open(path, "wb") as file:
            if not response.url.lower().startswith(("http://", "https://")):  # urllib follows redirects to ftp too
                raise AudioError(
                    f"{name} is sent on to a URL that is not http or https; download it and pass its path."
                )
            # read1 returns what has arrived, so a slow server is noticed
            copy_stream(name, response.read1, file, deadline)
            if response.length:
                raise AudioError(f"{name} was cut off {response.length} bytes before its end; try again.")
    except url_error.HTTPError as error:
        raise AudioError(f"{name}: the server answers {error.code} {error.reason}; check the URL.") from error
    except AudioError:
        raise
    except (OSError, ValueError, http.client.HTTPException) as error:
        reason = getattr(error, "reason", error)
        raise AudioError(f"{name} cannot be downloaded ({reason}); check the URL and the connection.") from error
    return name, path

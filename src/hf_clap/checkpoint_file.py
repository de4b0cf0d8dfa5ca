"""Files of checkpoints: where the peers publish theirs, and how they are found and read."""

import json
import pickle
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from huggingface_hub import hf_hub_download
from safetensors.torch import load_file

from .checkpoint_names import StateDict


@dataclass(frozen=True)
class Kind:
    """
    A family of checkpoints.

    Args:
        repository: of the Hub, where its weights are published; None where anyone publishes them.
        files: the names of the files there; the first one is meant where none is named.
        marker: a weight that no other family has.
        tokenizer: Hub id of the text tower's; None where it lies with the weights.
        max_tokens: that the peer gives its text tower at most; None where the tokenizer says.
        licence: of the published weights, as their package states it; None where the source says.
        paper: on arXiv.
    """

    repository: str | None
    files: tuple[str, ...]
    marker: str
    tokenizer: str | None
    max_tokens: int | None
    licence: str | None
    paper: str


KINDS: dict[str, Kind] = {
    "msclap-2022": Kind(
        repository="microsoft/msclap",
        files=("CLAP_weights_2022.pth",),
        marker="audio_encoder.base.conv_block1.conv1.weight",
        tokenizer="google-bert/bert-base-uncased",
        max_tokens=100,
        licence="mit",
        paper="2206.04769",
    ),
    "msclap-2023": Kind(
        repository="microsoft/msclap",
        files=("CLAP_weights_2023.pth",),
        marker="audio_encoder.base.htsat.bn0.weight",
        tokenizer="openai-community/gpt2",
        max_tokens=77,
        licence="mit",
        paper="2309.05767",
    ),
    "clapcap": Kind(
        repository="microsoft/msclap",
        files=("clapcap_weights_2023.pth",),
        marker="clap_project.prefix_const",
        tokenizer="openai-community/gpt2",
        max_tokens=77,
        licence="mit",
        paper="2309.07372",
    ),
    "laion": Kind(
        repository="lukewys/laion_clap",
        files=(
            "630k-audioset-best.pt",
            "630k-best.pt",
            "630k-audioset-fusion-best.pt",
            "630k-fusion-best.pt",
            "music_audioset_epoch_15_esc_90.14.pt",
            "music_speech_audioset_epoch_15_esc_89.98.pt",
            "music_speech_epoch_15_esc_89.25.pt",
        ),
        marker="audio_branch.bn0.weight",
        tokenizer="FacebookAI/roberta-base",
        max_tokens=77,
        licence="cc0-1.0",
        paper="2211.06687",
    ),
    "transformers": Kind(
        repository=None,
        files=(
            "model.safetensors",
            "model.safetensors.index.json",
            "pytorch_model.bin",
            "pytorch_model.bin.index.json",
        ),
        marker="audio_model.audio_encoder.batch_norm.weight",
        tokenizer=None,
        max_tokens=None,
        licence=None,
        paper="2211.06687",
    ),
}

# Under these msclap's files and LAION's hold the weights, besides what their training kept.
WEIGHTS_KEYS = ("model", "state_dict", "model_state_dict")
# Of weights in several files, which such a file names.
INDEX_SUFFIX = ".index.json"

# numpy's numbers, which LAION's training wrote beside the weights; they hold no code.
_NUMPY_SCALAR = np.float64(0).__reduce__()[0]
NUMPY_NUMBERS: list[Any] = [
    np.dtype,
    *(type(np.dtype(name)) for name in ("float16", "float32", "float64", "int32", "int64", "uint8", "bool", "str")),
    (_NUMPY_SCALAR, "numpy.core.multiarray.scalar"),
    (_NUMPY_SCALAR, "numpy._core.multiarray.scalar"),
]


@dataclass(frozen=True)
class Source:
    """A file of weights, and the folder or Hub id that the rest of its checkpoint is in."""

    file: Path
    repository: str
    on_hub: bool


def find_checkpoint(source: str, kind: str) -> Source:
    """
    Find a file of weights.

    Args:
        source: the file; a folder that holds it under a published name; or a Hub id, with the file's name or without.
        kind: one of `KINDS`.

    Raises:
        OSError: if there is none, or the download fails.
    """
    if not source:
        raise FileNotFoundError("The name of the checkpoint is empty; name a file, a folder or a Hub id.")
    path, names = Path(source), KINDS[kind].files
    if path.is_file():
        return Source(path, str(path.parent), on_hub=False)
    if path.is_dir():
        found = [path / name for name in names if (path / name).is_file()]
        # a published family's files are so many checkpoints; the others are formats of one
        if not found or (KINDS[kind].repository is not None and found[1:]):
            raise FileNotFoundError(f"There is not one of {', '.join(names)} in {source}; name the file itself.")
        return Source(found[0], source, on_hub=False)
    if not re.fullmatch(r"\w[\w.-]*/\w[\w.-]*(/\w[\w./-]*)?", source):
        raise FileNotFoundError(f"There is no file or folder {source}; check the path.")
    owner, name, *rest = source.split("/", 2)
    repository = f"{owner}/{name}"
    wanted = tuple(rest) or (names[:1] if repository == KINDS[kind].repository else names)
    errors = []
    for filename in wanted:
        try:
            file = Path(hf_hub_download(repository, filename))
            for shard in _shards(file):
                hf_hub_download(repository, shard.name)
            return Source(file, repository, on_hub=True)
        except (OSError, ValueError) as error:
            errors.append(str(error).splitlines()[0])
    raise FileNotFoundError(
        f"{source} is no file or folder here, and the Hub gave no {' or '.join(wanted)} of {repository} "
        f"({errors[0]}); check the name and the connection."
    )


def read_checkpoint(file: Path, kind: str) -> StateDict:
    """
    The weights of a file under their own names.

    Raises:
        ValueError: for a file that is damaged, may hold code, or is of another kind.
    """
    loaded: StateDict = {}
    for part in _shards(file) or [file]:
        loaded |= _weights(part)
    if all(name.startswith("module.") for name in loaded):  # of training on several GPUs
        loaded = {name.removeprefix("module."): tensor for name, tensor in loaded.items()}
    marker = KINDS[kind].marker
    if marker not in loaded:
        others = [name for name, other in KINDS.items() if other.marker in loaded]
        reason = f"it looks like {others[0]}" if others else f"it has no {marker}"
        raise ValueError(f"{file.name} is not a checkpoint of kind {kind}: {reason}; check the file and the kind.")
    return loaded


def _weights(file: Path) -> StateDict:
    try:
        if file.suffix == ".safetensors":
            loaded: Any = load_file(file)
        else:
            with torch.serialization.safe_globals(NUMPY_NUMBERS):
                loaded = torch.load(file, map_location="cpu", weights_only=True)
    except OSError:
        raise
    except Exception as error:  # an unpickler may raise anything at bytes that it does not know
        code = isinstance(error, pickle.UnpicklingError) and re.search(
            r"(?:GLOBAL |but got <class ')([\w.]+)", str(error)
        )
        if code:
            raise ValueError(
                f"{file.name} holds {code[1]} besides weights, which may run code, and was not read; save its weights "
                "alone, or get it elsewhere."
            ) from error
        raise ValueError(_damaged(file)) from error
    for key in WEIGHTS_KEYS:
        if isinstance(loaded, dict) and isinstance(loaded.get(key), dict):
            loaded = loaded[key]
    if not isinstance(loaded, dict) or not all(
        isinstance(name, str) and isinstance(value, torch.Tensor) and value.layout == torch.strided
        for name, value in loaded.items()
    ):
        raise ValueError(f"{file.name} holds something else than weights; check the file and the kind.")
    return loaded


def _shards(file: Path) -> list[Path]:
    """The files beside it among which an index shares the weights; none where it is no index."""
    if not file.name.endswith(INDEX_SUFFIX):
        return []
    try:
        names = set(json.loads(file.read_text(encoding="utf-8"))["weight_map"].values())
        return [file.with_name(name) for name in sorted(names)]
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise ValueError(_damaged(file)) from error


def _damaged(file: Path) -> str:
    return f"{file.name} is damaged, cut short or no checkpoint; get it anew."

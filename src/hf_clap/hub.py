"""Push a checkpoint's folder to the Hub: all of a complete checkpoint in one commit, or nothing."""

import json
import re
from collections.abc import Iterator
from contextlib import contextmanager
from fnmatch import fnmatch
from os import PathLike
from pathlib import Path
from typing import Any

from huggingface_hub import CommitOperationAdd, CommitOperationDelete, HfApi
from huggingface_hub.errors import HTTPError  # httpx's or httpx2's, by the version of huggingface_hub
from safetensors import SafetensorError, safe_open

# What training leaves beside a checkpoint, as a file or folder of this name: Trainer's own checkpoints and states,
# accelerate's and DeepSpeed's, TensorBoard's logs, and whatever is hidden or temporary.
LEFTOVERS = (
    "checkpoint-*",
    "optimizer*.pt",
    "optimizer*.bin",
    "scheduler*.pt",
    "scheduler*.bin",
    "scaler*.pt",
    "sampler*.bin",
    "rng_state*",
    "random_states_*",
    "trainer_state.json",
    "training_args.bin",
    "global_step*",
    "latest",
    "runs",
    "events.out.tfevents.*",
    "__pycache__",
    "*.tmp",
    ".*",
)

WEIGHTS, INDEX = "model.safetensors", "model.safetensors.index.json"
EXTRACTORS = ("processor_config.json", "preprocessor_config.json")
VOCABULARIES = ("tokenizer.json", "vocab*", "*.model")
# the classes that need no tokenizer, and the one that needs no feature extractor
HEAR_ONLY = ("HfClapForAudioClassification", "HfClapAudioModelWithProjection")
READ_ONLY = ("HfClapTextModelWithProjection",)

REASONS = {
    401: "the Hub does not know the token; log in with `hf auth login`, or pass `token`",
    403: "the token may not write there; check the name, and the token's permissions",
}


def push_to_hub(
    folder: str | PathLike[str],
    repo_id: str,
    *,
    private: bool | None = None,
    token: str | None = None,
    revision: str | None = None,
    commit_message: str = "Upload checkpoint",
) -> str:
    """
    Push a checkpoint's folder to the Hub: weights, configuration, processor, code and card, in one commit.

    What `HfApi.upload_folder` does not do: an incomplete checkpoint is not sent; what training left in the folder
    stays at home; the commit is one, so that nobody loads half a checkpoint; and weights of an earlier push under
    other names go, which `from_pretrained` would load in the place of these. After a broken upload call it again: what
    has arrived is not sent twice.

    Args:
        folder: that `save_pretrained` of model and processor wrote, and `write_card` if it has a card.
        repo_id: `user/name`; made if it is not there.
        private: whether only you may see it; None for your account's default, or as the repository is.
        token: of the Hub, with permission to write; None for the one that `hf auth login` stored.
        revision: branch; made if it is not there. None for the main one.
        commit_message: first line of the commit's message.

    Returns:
        str: URL of the repository, or of the branch.

    Raises:
        FileNotFoundError: for an incomplete checkpoint; names all that is missing.
        ValueError: for a damaged file, a name that the Hub does not allow, metadata in the card that it refuses, or a
            repository that is private and should not be, or the other way round.
        PermissionError: if the Hub refuses the token.
        OSError: if the Hub cannot be reached or breaks off. All errors of the Hub keep their cause.

    Example:

    ```python
    >>> import hf_clap

    >>> hf_clap.push_to_hub("my-clap", "user/my-clap")
    Traceback (most recent call last):
        ...
    FileNotFoundError: my-clap lacks config.json, model.safetensors, processor_config.json,
    tokenizer_config.json, tokenizer.json; save them there.

    ```
    """
    folder = Path(folder)
    _check(folder)
    files = checkpoint_files(folder)
    api = HfApi(token=token, library_name="hf_clap")
    with _explained(repo_id):
        url = api.create_repo(repo_id, private=private, exist_ok=True)
        repo_id = url.repo_id
        if private is not None and api.model_info(repo_id).private != private:
            raise ValueError(
                f"{repo_id} is there already and is {'public' if private else 'private'}; change that in its "
                "settings, or leave `private` out."
            )
        if revision is not None and not revision.startswith("refs/"):
            api.create_branch(repo_id, branch=revision, exist_ok=True)
        outdated = [name for name in api.list_repo_files(repo_id, revision=revision) if name not in files]
        api.create_commit(
            repo_id,
            [CommitOperationAdd(name, folder / name) for name in files]
            + [CommitOperationDelete(name) for name in outdated if _is_weights(name)],
            commit_message=commit_message,
            revision=revision,
        )
    return str(url) if revision is None else f"{url}/tree/{revision}"


def checkpoint_files(folder: Path) -> list[str]:
    """
    What of a checkpoint's folder is worth a push.

    Args:
        folder: of the checkpoint.

    Returns:
        list: paths in the folder, with `/`, without hidden and temporary files and what only training needs.

    Example:

    ```python
    >>> import hf_clap
    >>> from pathlib import Path
    >>> from hf_clap.hub import checkpoint_files

    >>> checkpoint_files(Path(hf_clap.TINY))[:3]
    ['README.md', 'config.json', 'model.safetensors']

    ```
    """
    paths = [path.relative_to(folder) for path in sorted(folder.rglob("*")) if path.is_file()]
    return [
        path.as_posix()
        for path in paths
        if not any(fnmatch(part, leftover) for part in path.parts for leftover in LEFTOVERS)
    ]


def _check(folder: Path) -> None:
    """See that a folder holds all that `from_pretrained` of model and processor reads."""
    names = [path.name for path in folder.iterdir()] if folder.is_dir() else []
    config = _read(folder / "config.json")
    weights = sorted(set(_read(folder / INDEX).get("weight_map", {}).values())) or [WEIGHTS]
    code = {
        f"{reference.split('.')[0]}.py"
        for file in ("config.json", "processor_config.json")
        for reference in _read(folder / file).get("auto_map", {}).values()
        if "--" not in reference  # the code of another repository
    }
    architectures = set(config.get("architectures") or ())
    wanted: list[tuple[str, ...]] = [("config.json",), *((name,) for name in weights)]
    if not architectures & set(READ_ONLY):
        wanted += [EXTRACTORS]
    if not architectures & set(HEAR_ONLY):
        wanted += [("tokenizer_config.json",), VOCABULARIES]
    wanted += [(name,) for name in sorted(code)]
    missing = [each[0] for each in wanted if not any(fnmatch(name, pattern) for name in names for pattern in each)]
    if missing:
        raise FileNotFoundError(f"{folder} lacks {', '.join(missing)}; save them there.")
    for name in weights:
        try:
            with safe_open(folder / name, framework="pt"):  # reads the header, and that the file is as long as it says
                pass
        except SafetensorError as error:
            raise ValueError(f"{folder / name} is damaged or cut short; save the model anew.") from error


def _read(file: Path) -> dict[str, Any]:
    try:
        return json.loads(file.read_text(encoding="utf-8")) if file.is_file() else {}
    except ValueError as error:
        raise ValueError(f"{file} is damaged; save the model anew.") from error


def _is_weights(name: str) -> bool:
    return name == INDEX or re.fullmatch(r"model(-\d{5}-of-\d{5})?\.safetensors", name) is not None


@contextmanager
def _explained(repo_id: str) -> Iterator[None]:
    """One sentence for each of the many ways in which a push can fail."""
    try:
        yield
    except (HTTPError, OSError, RuntimeError) as error:
        # uploads run in threads, whose RuntimeError names the file; what happened is its cause
        origin = error.__cause__ if isinstance(error, RuntimeError) and error.__cause__ else error
        status = getattr(getattr(origin, "response", None), "status_code", None)
        if status in REASONS:
            raise PermissionError(f"{repo_id} was not pushed: {REASONS[status]}.") from error
        reason = (str(origin).strip().splitlines() or [type(origin).__name__])[0].rstrip(".:")
        raise OSError(
            f"{repo_id} was not pushed ({reason}); call again, and what has arrived is not sent twice."
        ) from error

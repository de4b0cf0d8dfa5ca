"""
Tagging end to end: hf_clap with its bundled checkpoint against transformers' pipeline with its own CLAP.

    python tests/benchmarks/tagging.py [--clips 100] [--labels 50] [--rounds 3] [--threads 2] [--json RESULT.json]

Both tag the same five-second WAV files (44.1 kHz, 16 bit, synthesised) in one process, in turns; loading is not timed.
transformers runs `ClapConfig()` (HTS-AT tiny and RoBERTa base, random weights, 48 kHz) at batch_size=16. Its pipeline
would decode files with ffmpeg; here it gets arrays that hf_clap's own, faster reader made inside the timed part.
"""

import argparse
import json
import statistics
import tempfile
import time
from pathlib import Path

import numpy as np
import soundfile
import torch
import transformers
from tqdm import tqdm

import hf_clap

RATE = 44100
TEMPLATE = "this is a sound of {}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--clips", type=int, default=100)
    parser.add_argument("--labels", type=int, default=50)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--json", type=Path, help="write the result here too")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    transformers.logging.set_verbosity_error()

    ours, peer = hf_clap.pipeline(device="cpu"), transformers_pipeline()
    labels = [label.split(",")[0] for label in ours.model.config.concept_labels[:: 521 // arguments.labels]]
    labels = list(dict.fromkeys(labels))[: arguments.labels]
    with tempfile.TemporaryDirectory() as folder:
        files = write_clips(Path(folder), arguments.clips)

        def run_ours() -> list:
            ours._label_embeds.clear()  # labels are encoded anew each round, as the peer does
            return ours(files, labels)

        def run_peer() -> list:
            waveforms = [hf_clap.load_audio(file, 48000) for file in files]
            return peer(waveforms, candidate_labels=labels, hypothesis_template=TEMPLATE, batch_size=16)

        seconds = {"hf_clap": [], "transformers": []}
        for _ in tqdm(range(arguments.rounds), desc="rounds", disable=None):
            for name, run in (("hf_clap", run_ours), ("transformers", run_peer)):
                start = time.perf_counter()
                results = run()
                seconds[name].append(time.perf_counter() - start)
                check(results, arguments.clips, labels)
    report(seconds, arguments)


def transformers_pipeline() -> transformers.Pipeline:
    torch.manual_seed(0)
    tokenizer = transformers.AutoTokenizer.from_pretrained(
        hf_clap.TINY, model_input_names=["input_ids", "attention_mask"]
    )  # any tokenizer will do: the weights are random
    return transformers.pipeline(
        "zero-shot-audio-classification",
        model=transformers.ClapModel(transformers.ClapConfig()).eval(),
        feature_extractor=transformers.ClapFeatureExtractor(truncation="rand_trunc"),  # as its unfused checkpoints
        tokenizer=tokenizer,
        device="cpu",
    )


def write_clips(folder: Path, clips: int) -> list[str]:
    generator = np.random.default_rng(0)
    files = []
    for index in range(clips):
        seconds = np.arange(5 * RATE) / RATE
        clip = 0.3 * np.sin(2 * np.pi * generator.uniform(100, 4000) * seconds) + 0.05 * generator.normal(
            size=len(seconds)
        )
        files.append(str(folder / f"{index}.wav"))
        soundfile.write(files[-1], clip, RATE, subtype="PCM_16")
    return files


def check(results: list, clips: int, labels: list[str]) -> None:
    """Both must have scored every label of every clip."""
    assert len(results) == clips
    for predictions in results:
        assert sorted(prediction["label"] for prediction in predictions) == sorted(labels)
        assert abs(sum(prediction["score"] for prediction in predictions) - 1) < 1e-4


def report(seconds: dict[str, list[float]], arguments: argparse.Namespace) -> None:
    print(
        f"{arguments.clips} clips of 5 s, {arguments.labels} labels, {arguments.threads} threads, "
        f"torch {torch.__version__}, transformers {transformers.__version__}"
    )
    rates = {name: [arguments.clips / second for second in rounds] for name, rounds in seconds.items()}
    for name, values in rates.items():
        print(f"{name:13} {statistics.median(values):7.2f} clips/s  (least {min(values):.2f}, most {max(values):.2f})")
    pairs = [ours / peer for ours, peer in zip(rates["hf_clap"], rates["transformers"], strict=True)]
    ratio = statistics.median(pairs)
    print(f"ratio         {ratio:7.2f}          (least {min(pairs):.2f}, most {max(pairs):.2f})")
    if arguments.json:
        document = {"setting": {**vars(arguments), "json": None}, "clips_per_second": rates, "ratio": ratio}
        arguments.json.write_text(json.dumps(document, indent=2) + "\n")


if __name__ == "__main__":
    main()

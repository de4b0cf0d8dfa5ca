"""
One CLAP (HTS-AT tiny and RoBERTa base, random weights) as transformers' checkpoint and, converted, as hf_clap's.

    python tests/benchmarks/clap_pair.py FOLDER    # FOLDER/transformers, FOLDER/float32 and FOLDER/bfloat16, 1.5 GB
"""

import atexit
import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

import torch
import transformers
from tokenizers import ByteLevelBPETokenizer

import hf_clap

TEMPLATE = "this is a sound of {}"


def labels(count: int) -> list[str]:
    """Names of AudioSet's classes, as the bundled checkpoint knows them; numbered beyond 521."""
    names = [name.split(",")[0] for name in hf_clap.HfClapConfig.from_pretrained(hf_clap.TINY).concept_labels]
    names = list(dict.fromkeys(names))
    names += [f"{names[index % len(names)]} {index}" for index in range(len(names), count)]
    return names[:: max(1, len(names) // count)][:count]


def pair_folder() -> Path:
    """Of the two checkpoints, made by a process of its own, so that its memory is not counted in this one's."""
    if "CLAP_PAIR" not in os.environ:
        folder = tempfile.mkdtemp(prefix="clap_pair_")
        atexit.register(shutil.rmtree, folder)
        subprocess.run([sys.executable, __file__, folder], check=True)
        os.environ["CLAP_PAIR"] = folder  # for the processes that measure memory
    return Path(os.environ["CLAP_PAIR"])


def write_pair(folder: Path) -> None:
    torch.manual_seed(0)
    peer = transformers.ClapModel(transformers.ClapConfig(projection_dim=512)).eval()
    peer.save_pretrained(folder / "transformers")
    # any tokenizer will do that makes about as many tokens as RoBERTa's
    trained = ByteLevelBPETokenizer()
    trained.train_from_iterator(
        [TEMPLATE.format(label) for label in labels(521)] * 3,
        vocab_size=4000,
        special_tokens=["<s>", "<pad>", "</s>", "<unk>", "<mask>"],
    )
    trained.save_model(str(folder))
    tokenizer = transformers.RobertaTokenizer.from_pretrained(folder)
    extractor = transformers.ClapFeatureExtractor(truncation="rand_trunc")
    transformers.ClapProcessor(extractor, tokenizer).save_pretrained(folder / "transformers")
    hf_clap.convert_checkpoint(folder / "transformers", folder / "float32", "transformers")
    shutil.copytree(folder / "float32", folder / "bfloat16", ignore=shutil.ignore_patterns("*.safetensors"))
    model = hf_clap.HfClapModel.from_pretrained(folder / "float32", dtype=torch.bfloat16)
    model.save_pretrained(folder / "bfloat16")


if __name__ == "__main__":
    transformers.logging.set_verbosity_error()
    write_pair(Path(sys.argv[1]))

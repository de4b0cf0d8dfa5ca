"""The golden checkpoints: state dicts with the peers' names, their frozen front ends, and tokenizers for them."""

import json

import numpy as np
import torch
from transformers import BertConfig, BertTokenizer, GPT2Config, GPT2Tokenizer, RobertaConfig, RobertaTokenizer

LETTERS = [chr(code) for code in range(33, 127)]


def state_dict_of(keys_file, golden_fill, mel_bank=None):
    """
    A checkpoint with the names and shapes of a `*_keys.json`, filled from its names. With `mel_bank`, the front end is
    what the peer computes (torchlibrosa 0.1.0, `stft.py`), and so are the buffers that a converter may look at.
    """
    shapes = json.loads(keys_file.read_text())
    shapes = {
        name: shape["shape"] if isinstance(shape, dict) else shape
        for name, shape in shapes.get("keys", shapes).items()
    }
    state = {name: torch.zeros(shape) for name, shape in shapes.items()}
    for name, tensor in state.items():
        if mel_bank is not None and name.endswith("logmel_extractor.melW"):
            tensor.copy_(torch.from_numpy(mel_bank))
        elif "stft.conv_" in name:
            tensor.copy_(torch.from_numpy(stft_kernel(tensor.shape[-1], "real" if "conv_real" in name else "imag")))
    return golden_fill.fill(state)


def stft_kernel(n_fft, part):
    """torchlibrosa's frozen convolution `(n_fft // 2 + 1, 1, n_fft)`."""
    row, column = np.meshgrid(np.arange(n_fft), np.arange(n_fft // 2 + 1))
    transform = np.power(np.exp(-2j * np.pi / n_fft), row * column)
    window = 0.5 - 0.5 * np.cos(2 * np.pi * np.arange(n_fft) / n_fft)
    return getattr(transform * window, part).astype(np.float32)[:, None]


def small_state(golden):
    """The weights inside a `*_small.npz`."""
    return {
        name.removeprefix("sd/"): torch.from_numpy(golden[name]) for name in golden.files if name.startswith("sd/")
    }


def save_bert_tokenizer(folder, **config):
    """A WordPiece tokenizer that spells, with the configuration of its text tower if given."""
    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *"abcdefghijklmnopqrstuvwxyz"]
    words += [f"##{letter}" for letter in "abcdefghijklmnopqrstuvwxyz"]
    BertTokenizer(vocab={word: index for index, word in enumerate(words)}).save_pretrained(folder)
    if config:
        BertConfig(**config).save_pretrained(folder)
    return folder


def save_gpt2_tokenizer(folder, **config):
    """A byte-level tokenizer that spells, with the configuration of its text tower if given."""
    vocabulary = {token: index for index, token in enumerate([*LETTERS, "Ġ", "<|endoftext|>"])}
    GPT2Tokenizer(vocab=vocabulary, merges=[]).save_pretrained(folder)
    if config:
        GPT2Config(**config).save_pretrained(folder)
    return folder


def save_roberta_tokenizer(folder, **config):
    """A byte-level tokenizer that spells, with the configuration of its text tower if given."""
    tokens = ["<s>", "<pad>", "</s>", "<unk>", *LETTERS, "Ġ", "<mask>"]
    RobertaTokenizer(vocab={token: index for index, token in enumerate(tokens)}, merges=[]).save_pretrained(folder)
    if config:
        RobertaConfig(**config).save_pretrained(folder)
    return folder

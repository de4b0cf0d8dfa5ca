"""Names and values of the golden checkpoints: msclap's under this package's names."""

import json

import torch

NOT_LEARNED = ("spectrogram_extractor.", "logmel_extractor.", "fc_audioset.")


def state_dict_of(keys_file, golden_fill):
    """A checkpoint with the names and shapes of a `*_keys.json`, filled from its names."""
    shapes = json.loads(keys_file.read_text())
    return golden_fill.fill({name: torch.zeros(shape) for name, shape in shapes.items()})


def cnn14_weights(state, prefix="audio_encoder.base."):
    """msclap's Cnn14 under the names of `HfClapCnn14Model`."""
    renamed = {}
    for name, tensor in state.items():
        if not name.startswith(prefix) or name.removeprefix(prefix).startswith(NOT_LEARNED):
            continue
        name = name.removeprefix(prefix).replace("bn0.", "input_norm.").replace("fc1.", "linear.")
        if name.startswith("conv_block"):  # conv_block1.bn2.weight -> blocks.0.norms.1.weight
            block, layer, rest = name.split(".")
            kind = "convs" if layer.startswith("conv") else "norms"
            name = f"blocks.{int(block.removeprefix('conv_block')) - 1}.{kind}.{int(layer[-1]) - 1}.{rest}"
        renamed[name] = tensor
    return renamed


def msclap_2022_weights(state):
    """A whole msclap 2022 checkpoint under the names of `HfClapModel`."""
    renamed = {f"audio_model.{name}": tensor for name, tensor in cnn14_weights(state).items()}
    for name, tensor in state.items():
        if name.startswith("caption_encoder.base."):
            if ".pooler." not in name and not name.endswith("position_ids"):
                renamed[name.replace("caption_encoder.base.", "text_model.")] = tensor
        elif ".projection." in name:
            side = "audio" if name.startswith("audio") else "text"
            renamed[f"{side}_projection.{name.split('.projection.')[1]}"] = tensor
        elif name == "logit_scale":
            renamed[name] = tensor
    return renamed

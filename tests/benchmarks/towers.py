"""
Audio towers: HTS-AT against transformers' `ClapAudioModel`, Cnn14 against its plain PyTorch, as msclap writes it.

    python tests/benchmarks/towers.py [--only HTS-AT] [--rounds 7] [--threads 2] [--json RESULT.json]

Same weights (random) and same log-mels on both sides: ten seconds (1001 frames) for HTS-AT tiny, five (690) for Cnn14.
In float32 outputs must agree to 1e-4, in bfloat16 their cosines must be at least 0.999 against the peer's float32.
"""

import torch
import transformers
from side_by_side import Comparison, Run, agree_embeddings, main
from torch import nn
from torch.nn import functional as F

import hf_clap
from hf_clap.checkpoint_names import LAYOUTS
from hf_clap.linear import ONEDNN_DTYPES

HTSAT_FRAMES, CNN14_FRAMES = 1001, 690


def log_mels(batch: int, frames: int) -> torch.Tensor:
    return torch.randn(batch, 1, frames, 64, generator=torch.Generator().manual_seed(1)) * 20 - 40


def htsat_pair() -> tuple[transformers.ClapAudioModel, hf_clap.HfClapHtsatModel]:
    """transformers' tower and ours, with the same weights."""
    torch.manual_seed(0)
    peer = transformers.ClapAudioModel(transformers.ClapAudioConfig()).eval()
    tower = hf_clap.HfClapHtsatModel(hf_clap.HfClapHtsatConfig()).eval()
    state = {f"audio_model.{name}": tensor for name, tensor in peer.state_dict().items()}
    names = [f"audio_model.{name}" for name in tower.state_dict()]
    renamed = LAYOUTS["transformers"].to_ours(state, names)
    tower.load_state_dict(
        tower.state_dict() | {name.removeprefix("audio_model."): tensor for name, tensor in renamed.items()}
    )
    return peer, tower


def htsat_peer(batch: int) -> Run:
    tower, features = htsat_pair()[0], log_mels(batch, HTSAT_FRAMES)
    return lambda: tower(features).pooler_output


def htsat(batch: int, dtype: torch.dtype) -> Run:
    tower, features = htsat_pair()[1].to(dtype), log_mels(batch, HTSAT_FRAMES)
    return lambda: tower(features).pooler_output


class PlainCnn14(nn.Module):
    """The layers of hf_clap's Cnn14, called one after the other, as msclap's `models/audio.py` does."""

    def __init__(self, tower: hf_clap.HfClapCnn14Model):
        super().__init__()
        self.tower = tower

    def forward(self, features: torch.Tensor) -> torch.Tensor:
        hidden = self.tower.input_norm(features.transpose(1, 3)).transpose(1, 3)
        for block in self.tower.blocks:
            for conv, norm in zip(block.convs, block.norms, strict=True):
                hidden = F.relu_(norm(conv(hidden)))
            hidden = F.avg_pool2d(hidden, block.pool_size)
        steps = hidden.mean(dim=3)
        return F.relu_(self.tower.linear(steps.amax(dim=2) + steps.mean(dim=2)))


def cnn14_tower() -> hf_clap.HfClapCnn14Model:
    torch.manual_seed(0)
    return hf_clap.HfClapCnn14Model(hf_clap.HfClapCnn14Config()).eval()


def cnn14_peer(batch: int) -> Run:
    tower, features = PlainCnn14(cnn14_tower()), log_mels(batch, CNN14_FRAMES)
    return lambda: tower(features)


def cnn14(batch: int, dtype: torch.dtype) -> Run:
    tower, features = cnn14_tower().to(dtype), log_mels(batch, CNN14_FRAMES)
    return lambda: tower(features).pooler_output


if __name__ == "__main__":
    contenders, comparisons = {}, []
    for name, make_peer, make, peer_name in (
        ("HTS-AT", htsat_peer, htsat, "transformers"),
        ("Cnn14", cnn14_peer, cnn14, "plain PyTorch"),
    ):
        for batch in (1, 16):
            peer = f"{peer_name}, {name}, batch {batch}"
            contenders[peer] = lambda make_peer=make_peer, batch=batch: make_peer(batch)
            for dtype in ONEDNN_DTYPES:
                label = f"{str(dtype).removeprefix('torch.')}, batch {batch}"
                ours = f"hf_clap, {name}, {label}"
                contenders[ours] = lambda make=make, batch=batch, dtype=dtype: make(batch, dtype)
                comparisons.append(Comparison(f"{name}, {label}", ours, peer, agree_embeddings))
    main(__doc__, contenders, comparisons)

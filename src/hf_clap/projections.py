"""A tower's output -> one vector: pooling of text, and the projections into the joint space."""

from typing import Any

import torch
from torch import nn
from torch.nn import functional as F
from transformers.modeling_outputs import BaseModelOutputWithPooling

from .configuration_hf_clap import HfClapConfig


class ResidualMlpProjection(nn.Module):
    """msclap's projection (`models/clap.py`): LayerNorm(e + dropout(W2 gelu(e))) with e = W1 x, no biases."""

    def __init__(self, config: HfClapConfig, hidden_size: int):
        super().__init__()
        self.linear1 = nn.Linear(hidden_size, config.projection_dim, bias=False)
        self.linear2 = nn.Linear(config.projection_dim, config.projection_dim, bias=False)
        self.layer_norm = nn.LayerNorm(config.projection_dim)
        self.dropout = nn.Dropout(config.projection_dropout)

    def forward(self, output: BaseModelOutputWithPooling) -> torch.Tensor:
        embeds = self.linear1(output.pooler_output)
        return self.layer_norm(embeds + self.dropout(self.linear2(F.gelu(embeds))))


class MlpProjection(nn.Module):
    """LAION's projection: two linear layers with a ReLU between them."""

    def __init__(self, config: HfClapConfig, hidden_size: int):
        super().__init__()
        self.linear1 = nn.Linear(hidden_size, config.projection_dim)
        self.linear2 = nn.Linear(config.projection_dim, config.projection_dim)

    def forward(self, output: BaseModelOutputWithPooling) -> torch.Tensor:
        return self.linear2(F.relu(self.linear1(output.pooler_output)))


class LinearProjection(nn.Module):
    """One linear layer, no bias."""

    def __init__(self, config: HfClapConfig, hidden_size: int):
        super().__init__()
        self.linear = nn.Linear(hidden_size, config.projection_dim, bias=False)

    def forward(self, output: BaseModelOutputWithPooling) -> torch.Tensor:
        return self.linear(output.pooler_output)


class ConceptAudioProjection(nn.Module):
    """
    Audio in the space of named concepts: how present each concept is in the clip. A classifier scores every step, and
    sqrt(max x mean) over time lets a short event count without drowning what lasts. `log_weight` brings concepts that
    are found in everything (speech, music) down to the others: -0.3 ln(prior) in the bundled checkpoint. `center` is
    what the average clip gives, and is taken away: else texts near to it fit every sound.
    """

    def __init__(self, config: HfClapConfig, hidden_size: int):
        super().__init__()
        self.classifier = nn.Linear(hidden_size, config.projection_dim)
        self.log_weight = nn.Parameter(torch.zeros(config.projection_dim))
        self.center = nn.Parameter(torch.zeros(config.projection_dim))

    def forward(self, output: BaseModelOutputWithPooling) -> torch.Tensor:
        # In logarithms and float32: products of small scores vanish otherwise, and their roots have no gradient.
        log_scores = F.logsigmoid(self.classifier(output.last_hidden_state).float())  # (batch, steps, concepts)
        step_mask = output.get("step_mask")
        if step_mask is None:
            step_mask = torch.ones(log_scores.shape[:2], dtype=torch.bool, device=log_scores.device)
        log_scores = log_scores.masked_fill(~step_mask[..., None], -torch.inf)
        log_mean = log_scores.logsumexp(dim=1) - step_mask.sum(dim=1, keepdim=True).log()
        log_pooled = (log_scores.amax(dim=1) + log_mean) / 2  # (batch, concepts)
        embeds = F.normalize((log_pooled + self.log_weight).exp(), dim=-1) - self.center
        return embeds.to(output.last_hidden_state.dtype)


class ConceptTextProjection(nn.Module):
    """
    Text in the space of named concepts: the mean of what the `prototypes`, texts whose meaning is known, stand for
    (`values`, which concepts and how much), weighted by a softmax over the cosine similarities of the text to each.
    Where there is one prototype for each concept, it stands for that concept at first.
    """

    def __init__(self, config: HfClapConfig, hidden_size: int):
        super().__init__()
        count = config.num_prototypes or config.projection_dim
        self.prototypes = nn.Parameter(torch.empty(count, hidden_size))
        self.values = nn.Parameter(torch.eye(count, config.projection_dim))
        self.inverse_temperature = nn.Parameter(torch.tensor(12.0))

    def forward(self, output: BaseModelOutputWithPooling) -> torch.Tensor:
        similarity = F.normalize(output.pooler_output, dim=-1) @ F.normalize(self.prototypes, dim=-1).T
        return (self.inverse_temperature * similarity).softmax(dim=-1) @ self.values


AUDIO_PROJECTIONS: dict[str, Any] = {
    "residual_mlp": ResidualMlpProjection,
    "mlp": MlpProjection,
    "linear": LinearProjection,
    "concept": ConceptAudioProjection,
}
TEXT_PROJECTIONS: dict[str, Any] = AUDIO_PROJECTIONS | {"concept": ConceptTextProjection}


def pool_text(output: BaseModelOutputWithPooling, attention_mask: torch.Tensor | None, pooling: str) -> torch.Tensor:
    """
    One vector for each text, by the attention mask and never by token ids.

    Args:
        output: the text tower's, with `last_hidden_state` `(texts, tokens, hidden)`.
        attention_mask: `(texts, tokens)`, 1 for real tokens; all of them when absent.
        pooling: `cls` (first real token), `mean`, `last` (last real token) or `pooler` (the tower's own).

    Returns:
        torch.Tensor: `(texts, hidden)`.
    """
    hidden = output.last_hidden_state
    if pooling == "pooler":
        if getattr(output, "pooler_output", None) is None:
            raise ValueError("The text tower has no pooler of its own; set text_pooling to cls, mean or last.")
        return output.pooler_output
    if attention_mask is None:
        attention_mask = hidden.new_ones(hidden.shape[:2])
    if pooling == "mean":
        mask = attention_mask.to(hidden.dtype)[..., None]
        return (hidden * mask).sum(dim=1) / mask.sum(dim=1)
    positions = torch.arange(hidden.shape[1], device=hidden.device)
    real = attention_mask.bool()
    if pooling == "last":
        index = positions.where(real, -1).amax(dim=1)
    else:
        index = positions.where(real, hidden.shape[1]).amin(dim=1)
    return hidden[torch.arange(len(hidden), device=hidden.device), index]

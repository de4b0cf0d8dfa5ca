"""One step: parts of a batch, in one process or two, equal the whole."""

import copy
import math
import os
import subprocess
import sys

import pytest
import torch
from torch import nn

import hf_clap
from conftest import SMALL_AUDIO, SMALL_TEXT, noise
from hf_clap import contrastive_step
from hf_clap.contrastive_step import unwrapped

PAIRS = 16


def small_model(tower="hf_clap_patch_cnn", dropout=0.0, dtype=torch.float64, **options):
    """
    A model in training mode; its dropout is that asked for, its batch norms use their statistics. In float64 by
    default: in float32 the same step differs by 1e-5 between any two orders of adding up.
    """
    torch.manual_seed(0)
    audio = hf_clap.HfClapConfig(audio_config=dict(SMALL_AUDIO[tower])).audio_config
    for name in vars(audio):
        if "drop" in name and isinstance(getattr(audio, name), float):
            setattr(audio, name, dropout)
    text = SMALL_TEXT | {"hidden_dropout_prob": dropout, "attention_probs_dropout_prob": dropout}
    config = hf_clap.HfClapConfig(
        text_config=text, audio_config=audio.to_dict(), projection_dim=12, projection_dropout=dropout, **options
    )
    model = hf_clap.HfClapModel(config).to(dtype).train()
    for module in model.modules():
        if isinstance(module, nn.modules.batchnorm._BatchNorm):
            module.eval()
    return model


def batch(pairs=PAIRS, dtype=torch.float64):
    """Clips of 200 frames and texts of 6 tokens; texts 3 and 5 are the same, and one is shorter."""
    generator = torch.Generator().manual_seed(1)
    input_ids = torch.randint(1, 60, (pairs, 6), generator=generator)
    input_ids[5] = input_ids[3]
    mask = torch.ones(pairs, 6, dtype=torch.long)
    mask[1, 4:] = 0
    features = torch.randn(pairs, 1, 200, 64, generator=generator, dtype=dtype)
    return {"input_features": features, "input_ids": input_ids, "attention_mask": mask, "return_loss": True}


def gradients(model):
    return {name: each.grad.clone() for name, each in model.named_parameters() if each.grad is not None}


def assert_same(ours, theirs, tolerance=1e-9):
    assert ours.keys() == theirs.keys()
    for name, expected in theirs.items():
        assert (ours[name] - expected).abs().max() <= tolerance, name


@pytest.mark.parametrize("loss", ["softmax", "sigmoid"])
@pytest.mark.parametrize("tower", list(SMALL_AUDIO))
def test_gradient_cache_and_chunks_equal_the_whole_batch(tower, loss):
    model = small_model(tower, loss=loss, logit_bias_init_value=-1.0)
    whole = model(**batch()).loss
    whole.backward()
    expected = gradients(model)
    for options in ({}, {"chunk_size": 3}, {"micro_batch_size": 2}, {"micro_batch_size": 5, "chunk_size": 7}):
        model.zero_grad()
        assert abs(contrastive_step(model, batch(), **options) - whole.detach()) <= 1e-9
        assert_same(gradients(model), expected)


def test_gradient_cache_in_float32(tiny_model, processor):
    """The bundled model on sounds: every gradient within 1e-5 of the largest one."""
    model = copy.deepcopy(tiny_model)  # in evaluation mode, and so without dropout
    pairs = [hf_clap.Pair(noise(1.0 + 0.1 * seed, seed=seed), f"noise number {seed}") for seed in range(8)]
    inputs = hf_clap.PairCollator(processor)(pairs)
    loss = contrastive_step(model, inputs)
    expected = gradients(model)
    model.zero_grad()
    assert abs(contrastive_step(model, inputs, micro_batch_size=2) - loss) <= 1e-6
    assert_same(gradients(model), expected, 1e-5 * max(each.abs().max().item() for each in expected.values()))


def test_second_pass_draws_what_the_first_drew():
    """With dropout the gradient is that of the loss that is returned: a step along it lowers that loss as promised."""
    model = small_model(dropout=0.3)
    torch.manual_seed(5)
    before = contrastive_step(model, batch(), micro_batch_size=4)
    length = math.sqrt(sum((gradient**2).sum().item() for gradient in gradients(model).values()))
    with torch.no_grad():
        for parameter in model.parameters():
            parameter -= 1e-4 / length * parameter.grad
    torch.manual_seed(5)
    after = contrastive_step(model, batch(), micro_batch_size=4)
    assert (before - after).item() == pytest.approx(1e-4 * length, rel=0.05)


def test_batch_norm_counts_each_pair_once():
    model = small_model("hf_clap_cnn14").train()
    other = copy.deepcopy(model)
    contrastive_step(model, batch(), micro_batch_size=4)
    for part in range(0, PAIRS, 4):
        other(**{name: value[part : part + 4] for name, value in batch().items() if name != "return_loss"})
    buffers = dict(other.named_buffers())
    for name, buffer in model.named_buffers():
        assert torch.equal(buffer, buffers[name]), name


def test_batch_norm_counts_once_what_checkpointing_computes_twice():
    model = small_model("hf_clap_cnn14").train()
    other = copy.deepcopy(model)
    other.gradient_checkpointing_enable()
    losses = [contrastive_step(one, batch()) for one in (model, other)]
    assert torch.equal(*losses)
    assert_same(gradients(other), gradients(model))
    buffers = dict(other.named_buffers())
    for name, buffer in model.named_buffers():
        assert torch.equal(buffer, buffers[name]), name


def test_what_does_not_fit_is_refused():
    inputs = batch() | {"input_features": torch.randn(PAIRS + 1, 1, 200, 64, dtype=torch.float64)}
    with pytest.raises(ValueError, match=r"several windows cannot be cut .*; crop them to one, as load_pairs does"):
        contrastive_step(small_model(), inputs, micro_batch_size=4)
    with pytest.raises(ValueError, match="micro_batch_size=0"):
        contrastive_step(small_model(), batch(), micro_batch_size=0)


def test_wrappers_are_seen_through():
    model = small_model()
    assert unwrapped(torch.compile(model, backend="eager")) is model
    assert unwrapped(nn.DataParallel(model)) is model


def test_compiled_model_gives_the_same_gradients():
    model = small_model("hf_clap_htsat")
    expected = contrastive_step(model, batch())
    of_eager = gradients(model)
    model.zero_grad()
    compiled = torch.compile(model, backend="aot_eager")
    assert abs(contrastive_step(compiled, batch(), micro_batch_size=8) - expected) < 1e-9
    assert_same(gradients(model), of_eager)


def test_gradient_checkpointing_gives_the_same_gradients():
    model = small_model("hf_clap_htsat")
    loss = contrastive_step(model, batch(), micro_batch_size=8)
    expected = gradients(model)
    model.zero_grad()
    model.gradient_checkpointing_enable()
    assert torch.equal(contrastive_step(model, batch(), micro_batch_size=8), loss)
    assert_same(gradients(model), expected)


def test_bfloat16_autocast_is_near_float32():
    model, inputs = small_model(dtype=torch.float32), batch(dtype=torch.float32)
    loss = contrastive_step(model, inputs)
    with torch.autocast("cpu", torch.bfloat16):
        coarse = contrastive_step(model, inputs)
    assert coarse.dtype == torch.float32
    assert coarse.item() == pytest.approx(loss.item(), rel=0.05)


WORKER = """
import sys, torch, torch.distributed as dist
from torch.distributed.fsdp import fully_shard
from torch.nn.parallel import DistributedDataParallel
sys.path.insert(0, sys.argv[1])
from test_contrastive_step import PAIRS, batch, gradients, small_model
from hf_clap import contrastive_step
from hf_clap.optimization import scalars_to_vectors, vectors_to_scalars
dist.init_process_group("gloo")
rank = dist.get_rank()
share = {name: value[rank * 8 : rank * 8 + 8] if name != "return_loss" else value for name, value in batch().items()}
results = []
for wrapper, tower, loss, options in CASES:
    bias = -1.0 if loss == "sigmoid" else None
    model = small_model(tower, loss=loss, logit_bias_init_value=bias)
    if wrapper == "FSDP":
        mesh = dist.device_mesh.init_device_mesh("cpu", (2,))
        scalars_to_vectors(model)
        for module in model.modules():
            if type(module).__name__ in (*model.audio_model._no_split_modules, "BertLayer"):
                fully_shard(module, mesh=mesh)
        fully_shard(model, mesh=mesh)
        value = contrastive_step(model, share, **options)
        of_model = {name: each.full_tensor() for name, each in gradients(model).items()}
        of_model = vectors_to_scalars(of_model, ["logit_scale", "logit_bias"])
    else:
        model = DistributedDataParallel(model)
        value = contrastive_step(model, share, no_sync=model.no_sync, **options)
        of_model = gradients(model.module)
    dist.all_reduce(value)
    results.append((value / 2, of_model))
if rank == 0:
    torch.save(results, sys.argv[2])
dist.destroy_process_group()
"""
CASES = [
    ("DDP", "hf_clap_patch_cnn", "softmax", {}),
    ("DDP", "hf_clap_patch_cnn", "sigmoid", {}),
    ("DDP", "hf_clap_htsat", "softmax", {"micro_batch_size": 2, "chunk_size": 3}),
    ("DDP", "hf_clap_cnn14", "sigmoid", {"micro_batch_size": 3}),
    ("FSDP", "hf_clap_htsat", "softmax", {}),
    ("FSDP", "hf_clap_htsat", "sigmoid", {"micro_batch_size": 3}),
]


def test_two_processes_equal_one(tmp_path):
    """2 gloo processes of 8 pairs = 1 process of 16: the loss to 1e-6, every gradient to 1e-5."""
    script = tmp_path / "worker.py"
    script.write_text(WORKER.replace("CASES", repr(CASES)))
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2", str(script)]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    finished = subprocess.run(
        [*command, os.path.dirname(__file__), str(tmp_path / "results.pt")],
        capture_output=True,
        text=True,
        timeout=300,
        env=environment,
    )
    assert finished.returncode == 0, finished.stderr
    results = torch.load(tmp_path / "results.pt", weights_only=True)
    for (_, tower, loss, _), (value, of_two) in zip(CASES, results, strict=True):
        model = small_model(tower, loss=loss, logit_bias_init_value=-1.0 if loss == "sigmoid" else None)
        whole = model(**batch()).loss
        whole.backward()
        assert abs(value - whole.detach()) <= 1e-6, tower
        assert_same(of_two, gradients(model), 1e-5)

import copy
import gc
import pickle
import weakref
from concurrent.futures import ThreadPoolExecutor
from threading import Barrier

import pytest
import torch
from torch import nn

from hf_clap import HfClapHtsatConfig, HfClapHtsatModel
from hf_clap.linear import ONEDNN_DTYPES, Linear
from hf_clap.modeling_htsat import WindowAttention
from hf_clap.prepared_stage import PACKED_BLOCK_WEIGHTS


class Halved(nn.Module):
    def forward(self, weight):
        return weight / 2


class Doubled(WindowAttention):
    def forward(self, hidden, shift_mask):
        return 2 * super().forward(hidden, shift_mask)


@pytest.fixture(params=ONEDNN_DTYPES, ids=str)
def tower(request):
    """Of full depth, with windows and heads as HTS-AT tiny has them, every parameter off its default."""
    torch.manual_seed(0)
    tower = HfClapHtsatModel(HfClapHtsatConfig(patch_embed_dim=24, num_attention_heads=(1, 2, 4, 8))).eval()
    with torch.no_grad():
        for parameter in tower.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.1)
    return tower.to(request.param)


def heard_by(stage, batch=2):
    dim = stage.blocks[0].norm1.normalized_shape[0]
    return torch.randn(batch, stage.resolution**2, dim).to(stage.blocks[0].norm1.weight.dtype)


def by_modules(stage, hidden):
    """With gradients nothing is prepared."""
    with torch.enable_grad():
        return stage(hidden).detach()


def assert_near(output, expected):
    # bfloat16 rounds between a layer and what follows it, which in one pass it does not
    tolerance = 0.02 if expected.dtype == torch.bfloat16 else 1e-5
    assert (output - expected).float().norm() < tolerance * expected.float().norm()


@pytest.mark.parametrize("batch", [1, 3])
def test_prepared_stages_give_what_their_modules_give(tower, batch):
    for stage in tower.stages:
        hidden = heard_by(stage, batch)
        kept = hidden.clone()
        with torch.inference_mode():
            prepared = stage.preparation(stage, hidden)
            output = prepared(hidden)
            assert torch.equal(stage(hidden), output)  # it is what the stage computes with, and always the same
            assert stage.preparation(stage, hidden) is prepared
        expected = by_modules(stage, hidden)
        assert output.shape == expected.shape
        assert expected.float().std() > 0.3
        assert_near(output, expected)
        assert torch.equal(hidden, kept)


@pytest.mark.parametrize(
    "change",
    [
        lambda block: block.linear1.weight.mul_(2),
        lambda block: block.attention.key.bias.add_(1),
        lambda block: setattr(block.attention.query.weight, "data", 3 * block.attention.query.weight.data),
        lambda block: block.linear2.weight.data.mul_(2),  # as LoRA is merged
        lambda block: block.linear1.bias.data.add_(1),
        lambda block: block.norm2.weight.data.mul_(2),
        lambda block: block.attention.relative_position_bias_table.mul_(5),
        lambda block: block.shift_mask.mul_(0.01),
        lambda block: setattr(block.attention, "value", nn.Identity()),
        lambda block: setattr(block, "linear2", nn.Sequential(block.linear2, nn.Hardtanh())),
        lambda block: setattr(block.attention.output, "weight", nn.Parameter(-block.attention.output.weight)),
        lambda block: setattr(block.linear1, "bias", None),
        lambda block: nn.utils.parametrize.register_parametrization(block.linear1, "weight", Halved()),
        lambda block: block.attention.query.register_forward_hook(lambda module, inputs, output: 2 * output),
        lambda block: block.linear2.register_forward_pre_hook(lambda module, inputs: -inputs[0]),
        lambda block: setattr(block.norm1, "forward", lambda hidden: 2 * hidden),
        lambda block: setattr(block, "norm2", nn.Identity()),
        lambda block: setattr(block, "dropout", nn.Hardtanh()),
        lambda block: setattr(block.attention, "__class__", Doubled),
    ],
)
def test_what_changes_in_a_block_is_heard(tower, change):
    stage = tower.stages[2]
    hidden = heard_by(stage)
    with torch.no_grad():
        before = stage(hidden)
        assert stage.preparation(stage, hidden) is not None
        change(stage.blocks[1])
        stage.eval()
        after = stage(hidden)
    assert not torch.equal(after, before)
    assert_near(after, by_modules(stage, hidden))


@pytest.mark.parametrize("part", ["attention", "dropout", "drop_path"])
def test_dropout_alone_may_be_in_training(part):
    """As for the spread of several answers (Gal and Ghahramani 2016)."""
    torch.manual_seed(0)
    rates = {"hidden_dropout": 0.5, "attention_dropout": 0.5, "drop_path_rate": 0.5}
    config = HfClapHtsatConfig(patch_embed_dim=24, num_attention_heads=(1, 2, 4, 8), **rates)
    stage = HfClapHtsatModel(config).eval().stages[2]
    hidden = heard_by(stage)
    with torch.no_grad():
        assert torch.equal(stage(hidden), stage(hidden))
        for block in stage.blocks:
            getattr(block, part).train()
        assert not torch.equal(stage(hidden), stage(hidden))
        stage.eval()
        assert torch.equal(stage(hidden), stage(hidden))
        assert stage.preparation(stage, hidden) is not None


def test_a_hook_that_is_gone_costs_nothing(tower):
    stage = tower.stages[3]
    hidden, seen = heard_by(stage), []
    with torch.inference_mode():
        with stage.blocks[0].register_forward_hook(lambda module, inputs, output: seen.append(output.shape)):
            assert stage.preparation(stage, hidden) is None
            stage(hidden)
        assert seen == [hidden.shape]
        assert stage.preparation(stage, hidden) is not None


def test_a_hook_of_all_modules_is_heeded(tower):
    stage, seen = tower.stages[3], []
    hidden = heard_by(stage)
    with torch.inference_mode():
        stage(hidden)
        with nn.modules.module.register_module_forward_hook(lambda module, inputs, output: seen.append(module)):
            stage(hidden)
    assert {module for module in stage.modules() if not isinstance(module, nn.ModuleList)} <= set(seen)


def test_an_epsilon_is_read_anew(tower):
    stage = tower.stages[3]
    hidden = heard_by(stage)
    with torch.inference_mode():
        before = stage(hidden)
        stage.blocks[1].norm2.eps = 0.5
        after = stage(hidden)
    assert not torch.equal(after, before)
    assert_near(after, by_modules(stage, hidden))


def test_weights_that_are_mere_attributes_are_read_anew(tower):
    """As hypernetworks have them."""
    stage = tower.stages[0]
    hidden, layer = heard_by(stage), stage.blocks[0].linear1
    weight = layer.weight.detach()
    del layer.weight
    for factor in (1.0, 2.0, 3.0):
        layer.weight = factor * weight
        with torch.inference_mode():
            assert stage.preparation(stage, hidden) is None
            output = stage(hidden)
        assert_near(output, by_modules(stage, hidden))


def test_another_precision_is_prepared_anew(tower):
    stage = tower.stages[0]
    hidden = heard_by(stage)
    with torch.inference_mode():
        stage(hidden)
    for dtype in (torch.float32, torch.bfloat16, torch.float16):
        stage.to(dtype)
        with torch.inference_mode():
            output = stage(hidden.to(dtype))
            assert (stage.preparation(stage, hidden.to(dtype)) is None) == (dtype not in ONEDNN_DTYPES)
        assert output.dtype == dtype
        assert_near(output.bfloat16(), by_modules(stage, hidden.to(dtype)).bfloat16())
    stage.blocks[0].linear1.to(torch.float32)
    with torch.inference_mode(), pytest.raises(RuntimeError, match="dtype"):
        stage(hidden.to(dtype))


def test_training_and_compilers_call_the_modules(tower):
    stage = tower.stages[3]
    hidden = heard_by(stage)
    assert stage.preparation(stage, hidden) is None  # gradients are wanted
    with torch.no_grad():
        stage(hidden)
        assert stage.preparation._seen is not None
        stage.train()
        assert stage.preparation._seen is None
        assert stage.preparation(stage, hidden) is None
        stage.eval()
        with torch.autocast("cpu", torch.bfloat16):
            assert stage.preparation(stage, hidden) is None
        names = {str(node.target) for node in torch.export.export(stage, (hidden,)).graph.nodes}
    assert "aten.linear.default" in names
    assert not any("mkldnn" in name for name in names)


def test_nothing_prepared_is_copied_or_saved(tower):
    stage = tower.stages[0]
    hidden = heard_by(stage)
    names = list(stage.state_dict())
    with torch.inference_mode():
        before = stage(hidden)
        for other in (copy.deepcopy(stage), pickle.loads(pickle.dumps(stage))):
            assert other.preparation._seen is None
            other.blocks[0].linear1.weight.zero_()
            assert not torch.equal(other(hidden), before)
        assert torch.equal(stage(hidden), before)
    assert list(stage.state_dict()) == names


@pytest.mark.parametrize("dim", [96, 384])
def test_many_float32_weights_are_not_held_twice(dim):
    config = HfClapHtsatConfig(patch_embed_dim=dim, depths=(1, 1, 1, 1), num_attention_heads=(4, 4, 4, 4))
    stage = HfClapHtsatModel(config).eval().stages[0]
    assert type(stage.blocks[0].linear1) is Linear
    with torch.inference_mode():
        for clips in (1, 4):
            (block,) = stage.preparation(stage, heard_by(stage, clips)).blocks
            weight = block.linear1[0]
            assert weight.is_mkldnn != (weight is stage.blocks[0].linear1.weight)
            assert weight.is_mkldnn == (12 * dim**2 <= PACKED_BLOCK_WEIGHTS)


def test_a_block_may_be_left_out(tower):
    stage = tower.stages[2]
    hidden = heard_by(stage)
    with torch.inference_mode():
        before = stage(hidden)
        stage.blocks[0] = nn.Identity()
        stage.eval()
        after = stage(hidden)
    assert not torch.equal(after, before)
    assert_near(after, by_modules(stage, hidden))


def test_nothing_keeps_a_stage_alive_that_is_gone(tower):
    stage = tower.stages.pop(3)
    with torch.inference_mode():
        stage(heard_by(stage))
    weight = weakref.ref(stage.blocks[0].linear1.weight)
    gc.collect()
    gc.disable()
    try:
        del stage
        assert weight() is None
    finally:
        gc.enable()


def test_workers_that_start_together_prepare_once(tower):
    stage, workers = tower.stages[3], 8
    hidden, start = heard_by(stage), Barrier(workers)

    @torch.inference_mode()
    def prepare(_):
        start.wait()
        return stage.preparation(stage, hidden)

    with ThreadPoolExecutor(workers) as pool:
        assert len(set(pool.map(prepare, range(workers)))) == 1

import copy
import os
import pickle
import signal
import time
import warnings
from concurrent.futures import ThreadPoolExecutor
from threading import Barrier, Event, Thread

import pytest
import torch
from torch import nn

from hf_clap.derived import Derived


@pytest.fixture
def doubled():
    """(what calls it, the number of times that it was made so far)"""
    derived, made = Derived(), []

    def call(tensor, variant=None):
        return derived([tensor, None], lambda: made.append(tensor) or 2 * tensor, variant)

    call.derived = derived
    return call, made


def test_is_made_once(doubled):
    call, made = doubled
    tensor = torch.randn(1000)
    assert call(tensor) is call(tensor)
    assert torch.equal(call(tensor), 2 * tensor)
    assert len(made) == 1


@pytest.mark.parametrize("layout", [lambda tensor: tensor, torch.t, lambda tensor: tensor[:, ::2]])
@pytest.mark.parametrize(
    "change",
    [
        lambda tensor: tensor.add_(1),
        lambda tensor: tensor.__setitem__((1, 7), 5.0),
        lambda tensor: tensor.data.mul_(3),
        lambda tensor: setattr(tensor, "data", tensor.data.clone().mul_(3)),
        lambda tensor: nn.init.zeros_(tensor),
    ],
)
def test_is_made_anew_when_the_tensor_changes(doubled, change, layout):
    call, made = doubled
    tensor = layout(torch.randn(30, 40))
    call(tensor)
    change(tensor)
    assert torch.equal(call(tensor), 2 * tensor)
    assert len(made) == 2


def test_a_variant_is_another_thing_and_clear_forgets(doubled):
    call, made = doubled
    tensor = torch.randn(3)
    call(tensor)
    call(tensor, variant="other")
    assert len(made) == 2
    call.derived.clear()
    call(tensor, variant="other")
    assert len(made) == 3


def test_threads_that_come_together_wait_for_one_copy(doubled):
    call, made = doubled
    tensor, start = torch.randn(3), Barrier(8)

    def slowly(_):
        start.wait()
        return call.derived([tensor], lambda: time.sleep(0.05) or made.append(tensor) or 2 * tensor)

    with ThreadPoolExecutor(8) as pool:
        results = list(pool.map(slowly, range(8)))
    assert len(made) == 1
    assert all(result is results[0] for result in results)


def test_is_neither_copied_nor_saved_and_has_no_gradient():
    weight = nn.Parameter(torch.ones(3))
    derived = Derived()
    with torch.inference_mode():
        kept = derived([weight], lambda: weight.to_mkldnn())  # which can be neither copied nor pickled
    assert not kept.is_inference()
    assert not kept.requires_grad
    for other in (copy.deepcopy(derived), pickle.loads(pickle.dumps(derived))):
        assert other([weight], lambda: 4 * weight.detach()).tolist() == [4, 4, 4]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16, torch.int64, torch.bool])
def test_memory_can_be_resized_afterwards(doubled, dtype):
    """FSDP does it; `Tensor.numpy` forbids it."""
    call, _ = doubled
    tensor = torch.ones(1000).to(dtype)
    call(tensor)
    kept = tensor.clone()
    tensor.untyped_storage().resize_(0)
    tensor.untyped_storage().resize_(kept.untyped_storage().nbytes())
    tensor.copy_(kept)
    assert torch.equal(call(tensor), 2 * kept)


@pytest.mark.skipif(not hasattr(os, "fork"), reason="the system has no fork")
def test_a_process_that_is_forked_meanwhile_does_not_wait_for_ever():
    derived, begun, may_end = Derived(), Event(), Event()

    def slowly():
        begun.set()
        may_end.wait(30)

    thread = Thread(target=derived, args=([torch.ones(2)], slowly))
    thread.start()
    begun.wait(30)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # of forking beside threads
        child = os.fork()
    if child == 0:
        signal.alarm(20)  # ends it if it waits
        Derived()([torch.ones(2)], lambda: 1)
        os._exit(0)
    _, status = os.waitpid(child, 0)
    may_end.set()
    thread.join()
    assert status == 0

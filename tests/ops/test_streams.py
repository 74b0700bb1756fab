"""Models on CUDA streams and in CUDA graphs: prepared before they are read, there for as long as they are read, or an
error that says why.

The rules are tested anywhere, with streams that only note what happens to them; that they are enough, on a GPU.
"""

import gc

import pytest
import torch

from ringnet_ext import ops
from ringnet_ext.ops import _cache, _checks, _prepared, reference


class Device:
    """Stands in for torch.cuda: tensors on the CPU are taken for tensors on its streams."""

    def __init__(self, monkeypatch):
        self.stream, self.is_captured, self.log = 1, False, []
        device = self

        class Stream:
            def __init__(self, handle):
                self.cuda_stream = handle

            def wait_event(self, event):
                device.log.append(("wait", self.cuda_stream, event.recorded_on))

        class Event:
            def record(self, stream):
                self.recorded_on = stream.cuda_stream

        class Tensor:
            """What is read of a tensor here."""

            def __init__(self, tensor):
                self.address, self.device = tensor.data_ptr(), torch.device("cuda", 0)

            def record_stream(self, stream):
                device.log.append(("keep", self.address, stream.cuda_stream))

        tensors_of = _cache._tensors_of
        monkeypatch.setattr(
            _cache,
            "_tensors_of",
            lambda model: [Tensor(t) if isinstance(t, torch.Tensor) else t for t in tensors_of(model)],
        )
        monkeypatch.setattr(torch.cuda, "Event", Event)
        monkeypatch.setattr(torch.cuda, "current_stream", lambda _=None: Stream(self.stream))
        monkeypatch.setattr(_checks, "capturing", lambda _: self.is_captured)
        monkeypatch.setattr(_cache, "_captured", {})

    def waits(self) -> set:
        return {entry[1:] for entry in self.log if entry[0] == "wait"}

    def keeps(self) -> set:
        return {entry[1:] for entry in self.log if entry[0] == "keep"}


@pytest.fixture
def device(monkeypatch):
    ops.clear_prepared()
    yield Device(monkeypatch)
    ops.clear_prepared()


def calls(model):
    inputs = model.inputs(2)
    return (
        lambda: ops.flame_lbs(*inputs, *model.constants),
        lambda: ops.flame_landmarks(*inputs, *model.constants, *model.embedding),
        lambda: ops.flame_head(*inputs, *model.constants, *model.embedding),
        lambda: ops.flame_lbs(*inputs, model.v_template.expand(2, -1, -1), *model.fixed),
    )


def test_a_stream_waits_for_the_model_once_and_keeps_its_memory(random_model, device):
    for call in calls(random_model()):
        for _ in range(3):
            device.stream = 1
            call()
        assert not device.log  # the stream that it was prepared on
        device.stream = 2
        call()
        assert device.waits() == {(2, 1)} and len(device.keeps()) >= 4
        assert {stream for _, stream in device.keeps()} == {2}
        device.log.clear()
        call()
        assert not device.log
        ops.clear_prepared()


def test_all_that_a_kernel_reads_is_kept(random_model, device):
    """Of every prepared tensor, however deep in its parts."""
    model = random_model()
    head = calls(model)[2]
    for _ in range(3):
        head()
    device.stream = 2
    head()
    lbs = _prepared.prepared_lbs(model.fixed)
    mesh = _prepared.prepared_mesh(model.constants)
    corners = _prepared.landmark_corners(model.embedding, 101)
    read = [lbs.parents, lbs.joint_dirs, lbs._packed.packed, lbs._packed.index, mesh.joint_template, *corners.by_vertex]
    read += [t for d in lbs._directions for t in (d._packed, d._index)]
    assert {(t.data_ptr(), 2) for t in read} <= device.keeps()


def test_in_a_capture_a_known_model_is_read_and_stays(random_model, device):
    model = random_model()
    for call in calls(model)[:3]:
        for _ in range(3):
            call()
        device.stream, device.is_captured = 7, True
        call()
        device.stream, device.is_captured = 1, False
        assert not device.waits()  # a captured stream can't
        assert device.keeps()
        device.log.clear()
    captured = len(_cache._captured)
    assert captured >= 3
    ops.clear_prepared()
    del model, call
    gc.collect()
    assert len(_cache._captured) == captured


def test_a_first_call_in_a_capture_says_why_it_cannot_be(random_model, device):
    device.is_captured = True
    for call in calls(random_model()):
        with pytest.raises(RuntimeError, match=r"(parents|faces).*before the capture"):
            call()
    assert not any(len(cache) for cache in _cache.Cache.all)
    ops.batch_rodrigues(torch.zeros(2, 3))  # those without a model can be captured at once


def test_what_is_made_in_a_capture_is_not_kept(random_model, device):
    """A template that was never seen before: its joints are computed by the graph, whenever it is replayed."""
    model, other = random_model(), random_model(seed=3)
    for _ in range(3):
        calls(model)[0]()
    device.is_captured = True
    counts = [len(cache) for cache in _cache.Cache.all]
    vertices, _ = ops.flame_lbs(*model.inputs(2), other.v_template, *model.fixed)
    assert counts == [len(cache) for cache in _cache.Cache.all]
    torch.testing.assert_close(vertices, reference.flame_lbs(*model.inputs(2), other.v_template, *model.fixed)[0])


# --- on a GPU ---


@pytest.fixture
def cuda():
    from conftest import REQUIRE_CUDA, cuda_works

    if not cuda_works():
        (pytest.fail if REQUIRE_CUDA else pytest.skip)("needs a CUDA device and a build with RINGNET_CUDA=ON")
    ops.clear_prepared()
    return torch.device("cuda")


def functions(model):
    constants, embedding = model.constants, model.embedding
    return {
        "lbs": lambda b, p: torch.cat([x.flatten(1) for x in ops.flame_lbs(b, p, *constants)], 1),
        "landmarks": lambda b, p: ops.flame_landmarks(b, p, *constants, *embedding),
        "head": lambda b, p: torch.cat([x.flatten(1) for x in ops.flame_head(b, p, *constants, *embedding)], 1),
        "templates": lambda b, p: ops.flame_lbs(b, p, constants[0].expand(len(b), -1, -1), *model.fixed)[0],
        "rodrigues": lambda b, p: ops.batch_rodrigues(p.reshape(-1, 3)),
    }


@pytest.mark.parametrize("name", ["lbs", "landmarks", "head", "templates", "rodrigues"])
def test_captured_and_replayed(cuda, random_model, name):
    model = random_model(V=300, K=20).to(cuda, torch.float32)
    function = functions(model)[name]
    b, p = (t.requires_grad_() for t in model.inputs(4))

    def step():
        out = function(b, p)
        return (out, *torch.autograd.grad(out.square().sum(), [b, p] if name != "rodrigues" else [p]))

    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        for _ in range(2):
            step()
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        captured = step()
    ops.clear_prepared()
    torch.cuda.empty_cache()
    junk = [torch.full((1 << 20,), float("nan"), device=cuda) for _ in range(50)]  # where the model was, had it gone
    for seed in (5, 6):
        with torch.no_grad():
            for t, new in zip((b, p), model.inputs(4, seed), strict=False):
                t.copy_(new)
        graph.replay()
        for value, want in zip(captured, step(), strict=False):
            torch.testing.assert_close(value, want, rtol=1e-5, atol=1e-6)
    del junk


def test_a_first_call_captured_is_right_or_raises(cuda, random_model):
    for name in ("lbs", "landmarks", "head", "templates"):
        model = random_model().to(cuda, torch.float32)
        with pytest.raises(RuntimeError, match="before the capture"), torch.cuda.graph(torch.cuda.CUDAGraph()):
            functions(model)[name](*model.inputs(2))


def test_prepared_on_one_stream_read_on_another(cuda, random_model):
    """While the first is busy, and dropped while the other still reads."""
    for seed in range(5):
        model = random_model(V=2000, K=100, seed=seed).to(cuda, torch.float32)
        b, p = model.inputs(64)
        want = reference.flame_lbs(b, p, *model.constants)[0]
        first, second = torch.cuda.Stream(), torch.cuda.Stream()
        torch.cuda.synchronize()
        with torch.cuda.stream(first):
            torch.cuda._sleep(50_000_000)
            ops.flame_lbs(b, p, *model.constants)
        with torch.cuda.stream(second):
            torch.cuda._sleep(10_000_000)
            values = ops.flame_lbs(b, p, *model.constants)[0]
        ops.clear_prepared()
        junk = [torch.full((1 << 18,), float("nan"), device=cuda) for _ in range(100)]
        torch.cuda.synchronize()
        torch.testing.assert_close(values, want, rtol=1e-4, atol=1e-5)
        del junk


def test_compiled_to_graphs_does_not_pack_at_every_call(cuda, random_model, monkeypatch):
    """Constants that are no buffers, called once before the function is compiled."""
    model = random_model(V=300, K=20).to(cuda, torch.float32)
    b, p = model.inputs(2)
    functions(model)["lbs"](b, p)
    compiled = torch.compile(functions(model)["lbs"], mode="reduce-overhead")
    with torch.no_grad():
        for _ in range(4):
            compiled(b, p)
        with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CUDA]) as profile:
            values = compiled(b, p).clone()
    assert not [event.key for event in profile.key_averages() if "pack" in event.key]
    torch.testing.assert_close(values, functions(model)["lbs"](b, p), rtol=1e-5, atol=1e-6)

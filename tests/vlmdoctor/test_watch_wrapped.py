"""Watching compiled, adapted, distributed and checkpointed models."""

from __future__ import annotations

import warnings

import pytest
import torch
from torch import nn
from torch.utils.checkpoint import checkpoint
from watched import Model, adamw, make_batch, run

from vlmdoctor.watching.watcher import Watcher


@pytest.mark.parametrize("backend", ["eager", "aot_eager"])
@pytest.mark.parametrize("inner", [False, True])
def test_compiled_models(backend, inner):
    torch._dynamo.reset()
    torch.manual_seed(0)
    model = Model()
    model.dead = nn.Linear(2, 2)
    compiled = torch.compile(model, backend=backend)
    optimizer = adamw(model)
    watcher = Watcher(model if inner else compiled, optimizer, every=3, on_error="raise")
    run(compiled, optimizer, 5)  # past the steps that are all sampled
    torch._dynamo.utils.counters.clear()
    with torch._dynamo.config.patch(error_on_recompile=True):
        # Hooks come and go with the sampled steps, and nothing is compiled anew for it.
        losses = run(compiled, optimizer, 5)
    watcher.close()
    parameters, steps = watcher.evidence()
    tracks = {track.name: track for track in steps.tracks}
    assert {p.name for p in parameters.parameters} == {name for name, _ in model.named_parameters()}
    assert tracks["vision_proj.weight"].with_gradient == tracks["vision_proj.weight"].samples == 7
    assert tracks["dead.weight"].with_gradient == 0
    assert steps.steps[-1].role_grad_norms["projector"] > 0
    if not inner:  # where the inner module is watched its hooks are compiled away; the loop may log
        assert steps.steps[-1].loss == pytest.approx(losses[-1])


def test_compiled_numbers_are_the_same_and_whole_graphs_stay_whole():
    outcomes = []
    for watched in (False, True):
        torch._dynamo.reset()
        torch.manual_seed(0)
        model = Model()
        compiled = torch.compile(model, backend="aot_eager", fullgraph=True)
        optimizer = adamw(model)
        watcher = Watcher(model, optimizer, every=1, on_error="raise") if watched else None
        outcomes.append((run(compiled, optimizer, 3), [p.detach().clone() for p in model.parameters()]))
        if watcher:
            watcher.close()
    assert outcomes[0][0] == outcomes[1][0]
    assert all(torch.equal(a, b) for a, b in zip(outcomes[0][1], outcomes[1][1], strict=True))


@pytest.mark.parametrize("reentrant", [False, True])
def test_checkpointed_blocks(reentrant):
    def norms(wrap: bool) -> dict[str, float]:
        torch.manual_seed(0)
        model = Model()
        for layer in model.layers:
            layer.drop = nn.Identity()
            if wrap:
                plain = layer.forward
                layer.forward = lambda x, plain=plain: checkpoint(plain, x, use_reentrant=reentrant)
        optimizer = adamw(model)
        with Watcher(model, optimizer, every=1, on_error="raise") as watcher:
            run(model, optimizer, 2)
        return {track.name: track.grad_norm for track in watcher.evidence()[1].tracks}

    plain, checkpointed = norms(False), norms(True)
    assert checkpointed == pytest.approx(plain, rel=1e-5)


def test_adapters():
    peft = pytest.importorskip("peft")
    config = peft.LoraConfig(r=2, target_modules=["up", "down"], modules_to_save=["vision_proj"])
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model = peft.get_peft_model(Model(), config)
    optimizer = adamw(model)
    with Watcher(model, optimizer, every=1, on_error="raise") as watcher:
        for _ in range(2):
            optimizer.zero_grad()
            model(**make_batch()).loss.backward()
            optimizer.step()
    parameters, steps = watcher.evidence()
    assert parameters.adapters
    tracks = {track.name: track for track in steps.tracks}
    trained = {p.name: p for p in parameters.parameters if p.requires_grad}
    assert "vision_proj.weight" in trained and trained["vision_proj.weight"].role == "projector"
    assert all(tracks[name].with_gradient == 2 for name in trained)
    frozen = [track for name, track in tracks.items() if name not in trained]
    assert frozen and all(track.samples == 0 for track in frozen)


def _distributed(rank: int, port: int, folder: str) -> None:
    torch.set_num_threads(1)
    store = torch.distributed.TCPStore("127.0.0.1", port, 2, is_master=rank == 0)
    torch.distributed.init_process_group("gloo", store=store, rank=rank, world_size=2)
    torch.manual_seed(0)
    model = Model()
    wrapped = nn.parallel.DistributedDataParallel(model)
    optimizer = adamw(model)
    with Watcher(wrapped, optimizer, every=1, out=f"{folder}/run", on_error="raise") as watcher:
        torch.manual_seed(rank)
        for _ in range(2):
            optimizer.zero_grad()
            with wrapped.no_sync():
                wrapped(**make_batch()).loss.backward()
            wrapped(**make_batch()).loss.backward()
            # What the optimizer gets, averaged over the processes.
            expected = float(torch.cat([p.grad.flatten() for p in model.parameters()]).norm())
            optimizer.step()
            step = watcher.evidence()[1].steps[-1]
            assert abs(step.grad_norm - expected) < 1e-4 * expected, (step.grad_norm, expected)
            assert step.role_grad_norms["projector"] > 0
    assert watcher.evidence()[0].parameters[0].name == "vision_encoder.0.weight"
    torch.distributed.destroy_process_group()


def test_two_processes(tmp_path):
    import socket

    from vlmdoctor.runs.reader import read_run

    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    torch.multiprocessing.spawn(_distributed, (port, str(tmp_path)), nprocs=2)
    _, steps = read_run(tmp_path / "run")
    assert [step.step for step in steps.steps] == [0, 1] and steps.finished

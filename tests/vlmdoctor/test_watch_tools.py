"""Tracing, scripting, exporting, transforming, compiling and saving a watched model work as if unwatched."""

from __future__ import annotations

import copy
import io
import pickle
import re
import warnings

import pytest
import torch
from torch import Tensor, nn
from watched import Model, adamw, hooks_on, make_batch, run

from vlmdoctor.watching.watcher import Watcher


class Scalar(nn.Module):
    """A model that every tool takes; its output is a loss, which the watcher reads."""

    def __init__(self) -> None:
        super().__init__()
        self.up, self.down = nn.Linear(4, 8), nn.Linear(8, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.down(torch.relu(self.up(x))).mean()


X = torch.linspace(-1, 1, 12).view(3, 4)


def traced(model: nn.Module) -> object:
    made = torch.jit.trace(model, (X,))
    return [made(X * 2), re.sub(r"___torch_mangle_\d+\.", "", str(made.graph) + made.code)]


def scripted(model: nn.Module) -> object:
    made = torch.jit.script(model)
    file = io.BytesIO()
    torch.jit.save(made, file)
    file.seek(0)
    return [made(X * 2), made.code, torch.jit.load(file)(X * 3)]


def exported(model: nn.Module, strict: bool = False) -> object:
    made = torch.export.export(model, (X,), strict=strict)
    return [made.module()(X), made.graph_module.code]


def symbolic(model: nn.Module) -> object:
    class Outer(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = model

        def forward(self, x: Tensor) -> Tensor:
            return self.inner(x) * 2

    outer = torch.fx.symbolic_trace(Outer())
    return [torch.fx.symbolic_trace(model).code, outer.code, outer(X)]


def mapped(model: nn.Module) -> object:
    batched = torch.func.vmap(model)(X.expand(2, 3, 4))
    parameters = {name: p.detach() for name, p in model.named_parameters()}

    def loss(values: dict[str, Tensor], x: Tensor) -> Tensor:
        return torch.func.functional_call(model, values, (x,))

    gradients = torch.func.grad(loss)(parameters, X)
    several = torch.func.vmap(torch.func.grad(loss), (None, 0))(parameters, X.expand(2, 3, 4))
    return [
        batched,
        *gradients.values(),
        *several.values(),
        torch.func.jacrev(loss)(parameters, X)["up.bias"],
    ]


def compiled(model: nn.Module) -> object:
    torch._dynamo.reset()
    made = torch.compile(model, backend="aot_eager", fullgraph=True)
    loss = made(X)
    loss.backward()
    return [loss.detach(), *(p.grad.clone() for p in model.parameters())]


def faked(model: nn.Module) -> object:
    from torch._subclasses.fake_tensor import FakeTensorMode

    with FakeTensorMode(allow_non_fake_inputs=True) as mode:
        return [str(copy.deepcopy(model)(mode.from_tensor(X)).shape), str(model(mode.from_tensor(X)).dtype)]


def on_meta(model: nn.Module) -> object:
    return [str(copy.deepcopy(model).to("meta")(X.to("meta")).device)]


def saved(model: nn.Module) -> object:
    file = io.BytesIO()
    torch.save(model, file)
    file.seek(0)
    other = torch.load(file, weights_only=False)
    pickled = pickle.loads(pickle.dumps(model))
    return [other(X), pickled(X), copy.deepcopy(model)(X), copy.copy(model)(X), list(model.state_dict())]


TOOLS = {
    "trace": traced,
    "script": scripted,
    "export": exported,
    "strict export": lambda model: exported(model, strict=True),
    "fx": symbolic,
    "func": mapped,
    "compile": compiled,
    "fake": faked,
    "meta": on_meta,
    "saved": saved,
}


def flat(values: list[object]) -> list[object]:
    return [v.detach().tolist() if isinstance(v, Tensor) else v for v in values]


@pytest.mark.parametrize("every", [0, 1])
@pytest.mark.parametrize("tool", TOOLS)
def test_a_tool_makes_of_a_watched_model_what_it_makes_of_any(tool, every, caplog):
    outcomes = []
    for watched in (False, True):
        torch.manual_seed(0)
        model = Scalar()
        optimizer = adamw(model)
        watcher = Watcher(model, optimizer, every=every, on_error="raise") if watched else None
        with warnings.catch_warnings(record=True) as said:
            warnings.simplefilter("always")
            made = flat(TOOLS[tool](model))
        optimizer.zero_grad()
        losses = []
        for _ in range(3):
            loss = model(X)
            loss.backward()
            optimizer.step()
            losses.append(float(loss.detach()))
        if watcher:
            assert watcher.steps == 3
            assert watcher.evidence()[1].steps[-1].loss == losses[-1]
            watcher.close()
        ours = [
            str(w.message) for w in said if not issubclass(w.category, DeprecationWarning | FutureWarning)
        ]
        outcomes.append((made, losses, [p.tolist() for p in model.parameters()], ours))
        assert hooks_on(model) == 0
    torch._dynamo.reset()
    assert outcomes[0] == outcomes[1]
    assert not [record for record in caplog.records if record.name == "vlmdoctor"]
    assert not hasattr(nn.Module, "__prepare_scriptable__")


def test_a_compiled_optimizer_makes_the_same_steps_in_one_graph():
    outcomes = []
    for watched in (False, True):
        torch._dynamo.reset()
        torch.manual_seed(0)
        model = Scalar()
        optimizer = torch.optim.SGD(model.parameters(), 0.1)
        watcher = Watcher(model, optimizer, every=1, on_error="raise") if watched else None
        counter = torch._dynamo.testing.CompileCounter()
        step = torch.compile(optimizer.step, backend=counter)
        losses = []
        for _ in range(4):
            loss = model(X)
            loss.backward()
            step()
            losses.append(float(loss.detach()))
        if watcher:
            watcher.close()
        outcomes.append((losses, [p.tolist() for p in model.parameters()], counter.frame_count))
    torch._dynamo.reset()
    assert outcomes[0] == outcomes[1]


def test_a_check_inside_a_watched_run_is_not_counted():
    from vlmdoctor import check

    outcomes = []
    for checked in (False, True):
        torch.manual_seed(0)
        model = Model()
        optimizer = adamw(model)
        with Watcher(model, optimizer, every=1, on_error="raise") as watcher:
            run(model, optimizer, 2)
            if checked:
                check(
                    model, make_batch(torch.Generator().manual_seed(1)), optimizer=optimizer, fail_on="never"
                )
            run(model, optimizer, 3)
        parameters, steps = watcher.evidence()
        outcomes.append((parameters, steps.steps, steps.accumulates_without_reset, steps.tracks))
    assert len(outcomes[1][1]) == 5
    assert repr(outcomes[0]) == repr(outcomes[1])

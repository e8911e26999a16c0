"""What the tests of compiled steps share: a model with every kind of state, and its graph without Inductor."""

from __future__ import annotations

import torch
from torch import nn

from surefoot.execution.compiled import CompiledGraph
from surefoot.execution.graph_step import GraphStep
from surefoot.execution.verify import Observed, first_difference, record
from surefoot.step import StepOptions, TrainStep


class Net(nn.Module):
    """Buffers that are changed in place, one that is assigned anew, and random numbers."""

    def __init__(self, dropout=0.0):
        super().__init__()
        self.first = nn.Linear(5, 8, bias=False)  # before a BatchNorm its gradient is rounding
        self.norm = nn.BatchNorm1d(8)
        self.drop = nn.Dropout(dropout)
        self.last = nn.Linear(8, 3)
        self.register_buffer("seen", torch.zeros(3))

    def forward(self, x):
        y = self.last(self.drop(torch.relu(self.norm(self.first(x)))))
        self.seen = self.seen + y.detach().mean(0)
        return y


def made(optimizer=lambda p: torch.optim.SGD(p, lr=0.1), dropout=0.0):
    torch.manual_seed(0)
    net = Net(dropout)
    return net, optimizer(net.parameters())


def batches(count=5, size=6):
    generator = torch.Generator().manual_seed(1)
    return [
        (torch.randn(size, 5, generator=generator), torch.randint(0, 3, (size,), generator=generator))
        for _ in range(count)
    ]


class Remembered:
    """What a CUDA graph does, by hand: replays read the memory that the capture met, and no other."""

    def __init__(self):
        self.replays = 0

    def capture(self, work):
        filled = [tensor.clone() for tensor in work()]
        graph = work.__self__
        memory = [
            (table, name, table[name], table[name].data) for table, name in graph._places if table[name] is not None
        ]

        def replay():
            self.replays += 1
            now = [(table[name], table[name].data) for table, name, _, _ in memory]
            for table, name, tensor, held in memory:
                table[name] = tensor
                tensor.data = held
            for place, value in zip(filled, work(), strict=True):
                place.copy_(value)
            for (table, name, _, _), (tensor, data) in zip(memory, now, strict=True):
                table[name] = tensor
                tensor.data = data

        return replay, filled


def interpreted(graph, arguments):
    """In the place of Inductor: the traced graph as it is, which costs no time to make."""
    return graph


def step_of(model, loss, optimizer, batch, lower=interpreted, **options):
    step = TrainStep(model, loss, optimizer, StepOptions(**options))
    graph = CompiledGraph(step, batch)
    graph.compile(batch, lower)
    return graph


def updater(model, loss, optimizer, batch, **options):
    """A compiled backend whose graph is interpreted."""
    step = TrainStep(model, loss, optimizer, StepOptions(**options))
    return GraphStep(step, lambda: step_of(model, loss, optimizer, batch, **options), print)


def differs(graph, batch):
    """How loss and gradients of a graph differ from eager's, both from the same random numbers."""
    step = TrainStep(graph.bundle.model, graph.bundle.loss, torch.optim.SGD(graph.parameters, lr=0.1))
    random = torch.get_rng_state()
    expected = record(step, step.plain, [batch], updates=1)
    torch.set_rng_state(random)
    found = graph([t.clone() for t in batch])
    names = [name.removeprefix("model.") for name in graph.names]
    seen = Observed([found.loss], [], [dict(zip(names, found.grads, strict=True))])
    return first_difference(Observed(expected.losses, [], expected.gradients), seen)


def close(a, b):
    if isinstance(a, torch.Tensor):
        return torch.allclose(a, b, rtol=1e-4, atol=1e-5)
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(close(a[k], b[k]) for k in a)
    if isinstance(a, list | tuple):
        return len(a) == len(b) and all(map(close, a, b))
    return a == b


RULES = {
    "SGD": lambda p: torch.optim.SGD(p, lr=0.1, weight_decay=0.01),
    "SGD nesterov": lambda p: torch.optim.SGD(p, lr=0.1, momentum=0.9, nesterov=True),
    "SGD maximizing": lambda p: torch.optim.SGD(p, lr=0.01, momentum=0.9, maximize=True),
    "Adam": lambda p: torch.optim.Adam(p, lr=0.01, weight_decay=0.01),
    "AdamW": lambda p: torch.optim.AdamW(p, lr=0.01, fused=True),
}

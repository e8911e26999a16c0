"""Max pools written out for a graph: equal to torch's to the bit, others left alone."""

from __future__ import annotations

import math

import pytest
import torch
from graph_steps import differs, step_of
from torch import nn

from surefoot.execution.pools import written_backward, written_forward, written_out, written_pools


@pytest.mark.parametrize("kernel", [(2, 2), (3, 3), (1, 3), (3, 2), (2, 4)])
@pytest.mark.parametrize("case", ["random", "ties", "NaN"])
def test_a_pool_written_out_is_torchs_to_the_bit(kernel, case):
    x = torch.randn(3, 2, 12, 12)
    if case == "ties":
        x = x.round().clamp(-1, 1)
    if case == "NaN":
        x[0, 0, 4, 4] = x[1, 1, 0, 0] = x[1, 1, 0, 1] = math.nan
    pool, back = torch.ops.aten.max_pool2d_with_indices, torch.ops.aten.max_pool2d_with_indices_backward
    expected, positions = pool(x, kernel, kernel)
    found, where = written_forward(x, kernel, kernel)
    assert torch.equal(found.nan_to_num(99), expected.nan_to_num(99))
    grad = torch.randn_like(expected)
    rest = (kernel, kernel, (0, 0), (1, 1), False)
    assert torch.equal(written_backward(grad, x, *rest, where), back(grad, x, *rest, positions))


@pytest.mark.parametrize("ties", [False, True])
def test_pools_that_tile_the_image_are_written_out(ties):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(1, 4, 5), nn.ReLU(), nn.MaxPool2d(2, 2), nn.Flatten(), nn.Linear(4 * 36, 3))
    loss, optimizer = nn.CrossEntropyLoss(), torch.optim.SGD(model.parameters(), lr=0.1)
    inputs = torch.randn(3, 1, 16, 16)
    if ties:
        inputs = inputs.round()
        model[0].weight.data.copy_(model[0].weight.sign())
    batch = (inputs, torch.tensor([0, 1, 2]))
    step = step_of(model, loss, optimizer, batch)
    graph = written_out(step.trace(batch), step.arguments(batch))
    aten = torch.ops.aten
    targets = {node.target for node in graph.graph.nodes}
    assert aten.max_pool2d_with_indices.default not in targets
    assert differs(step, batch) is None


@pytest.mark.parametrize(
    ("pool", "inputs"),
    [
        (lambda x: nn.functional.max_pool2d(x, 2, return_indices=True), torch.zeros(1, 2, 4, 4)),
        (lambda x: nn.functional.max_pool2d(x, 2, stride=1), torch.zeros(1, 2, 4, 4)),
        (lambda x: nn.functional.max_pool2d(x, 2, padding=1), torch.zeros(1, 2, 4, 4)),
        (lambda x: nn.functional.max_pool2d(x, 2), torch.zeros(1, 2, 5, 4)),
        (lambda x: nn.functional.max_pool2d(x, 2), torch.zeros(1, 2, 4, 4, dtype=torch.bfloat16)),
        (
            lambda x: nn.functional.max_pool2d(x, 2),
            torch.zeros(1, 2, 4, 4).contiguous(memory_format=torch.channels_last),
        ),
    ],
    ids=["positions are read", "overlapping", "padded", "does not tile", "bf16", "channels last"],
)
def test_other_pools_are_left_to_torch(pool, inputs):
    from torch.fx.experimental.proxy_tensor import make_fx

    assert not written_pools(make_fx(pool, tracing_mode="fake")(inputs))

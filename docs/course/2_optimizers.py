# %% [markdown] lang="en"
# # 2. Optimizers: what becomes of the gradient
#
# An optimizer holds the parameters and changes them by their gradients. Here is the whole of plain gradient descent; everything else is
# a better use of the same numbers.

# %% [markdown] lang="zh"
# # 2. 优化器：梯度怎样变成更新
#
# 优化器拿着参数，按梯度修改它们。下面就是最普通的梯度下降的全部内容，其余的优化器只是把同样的数用得更好。

# %%
import torch
from torch import nn

from surefoot.charts.figure import figure

weight = nn.Parameter(torch.tensor([1.0, -2.0]))
loss = (weight**2).sum()
loss.backward()
with torch.no_grad():
    weight -= 0.1 * weight.grad
print(weight.data)

# %% [markdown] lang="en"
# ## A narrow valley
#
# $f(x, y) = (x^2 + 25 y^2) / 2$ is 25 times as steep across (y) as along (x). A rate that suits the steep direction crawls along the flat one.
# Every dot below is a step.

# %% [markdown] lang="zh"
# ## 狭长的山谷
#
# $f(x, y) = (x^2 + 25 y^2) / 2$ 沿 y 方向（横穿山谷）比沿 x 方向（顺着谷底）陡 25 倍。适合陡峭方向的学习率，在平缓方向上只能慢慢爬。下图每个点是一步。

# %%
import math


def height_of(point):
    return 0.5 * (point[0] ** 2 + 25 * point[1] ** 2)


def descend(make, steps=40, start=(-9.0, 1.6)):
    point = nn.Parameter(torch.tensor(start))
    optimizer = make([point])
    path = [tuple(point.tolist())]
    for _ in range(steps):
        optimizer.zero_grad()
        height_of(point).backward()
        optimizer.step()
        path.append(tuple(point.tolist()))
    return path


def contours(*heights):
    """Lines of equal height, as one curve with gaps."""
    points = []
    for height in heights:
        wide, tall = math.sqrt(2 * height), math.sqrt(2 * height / 25)
        points += [(wide * math.cos(math.tau * k / 80), tall * math.sin(math.tau * k / 80)) for k in range(81)]
        points.append((0.0, math.nan))
    return points


paths = {
    "SGD": descend(lambda p: torch.optim.SGD(p, lr=0.07)),
    "SGD, momentum 0.8": descend(lambda p: torch.optim.SGD(p, lr=0.02, momentum=0.8)),
    "Adam": descend(lambda p: torch.optim.Adam(p, lr=0.5)),
}
valley = {"equal height": contours(5, 20, 40)}

# %% en="Forty steps of each, on lines of equal height: SGD swings from side to side, momentum rolls, Adam takes both directions alike." zh="各走四十步，背景是等高线：SGD 左右摇摆，动量像滚下去的球，Adam 对两个方向一视同仁。"
figure({**paths, **valley}, x="x", y="y", dots=True, title="f(x, y) = (x² + 25 y²) / 2")

# %% en="The same, as height over steps." zh="同样的过程：高度随步数的变化。"
figure({name: [height_of(point) for point in path] for name, path in paths.items()}, x="step", y="height", log=True)

# %% [markdown] lang="en"
# ## SGD by its formulas
#
# With the gradient $g_t$, the rate $\eta$ and the momentum $\mu$:
#
# $$b_t = \mu b_{t-1} + g_t, \quad \theta_t = \theta_{t-1} - \eta \, b_t$$
#
# Without momentum that is $\theta_t = \theta_{t-1} - \eta \, g_t$. It stays in the valley only while $\eta$ times the steepest curvature is below
# 2: here $\eta < 2/25$. With momentum, gradients that agree add up to $1 / (1 - \mu)$ times as much, and those that alternate cancel: so a rate that
# was right without momentum is ten times too high with $\mu = 0.9$.

# %% [markdown] lang="zh"
# ## 照公式写 SGD
#
# 梯度为 $g_t$，学习率为 $\eta$，动量为 $\mu$：
#
# $$b_t = \mu b_{t-1} + g_t, \quad \theta_t = \theta_{t-1} - \eta \, b_t$$
#
# 没有动量时就是 $\theta_t = \theta_{t-1} - \eta \, g_t$。只有当 $\eta$ 乘以最大曲率小于 2 时才不会冲出山谷：这里是 $\eta < 2/25$。
# 有动量时，方向一致的梯度会累积到 $1 / (1 - \mu)$ 倍，来回交替的梯度则互相抵消：
# 不带动量时合适的学习率，加上 $\mu = 0.9$ 就相当于大了十倍。

# %%
point, rolled = torch.tensor([-9.0, 1.6]), torch.zeros(2)
for _ in range(40):
    rolled = 0.8 * rolled + point * torch.tensor([1.0, 25.0])
    point = point - 0.02 * rolled
sgd_by_hand, sgd_by_torch = point.tolist(), list(paths["SGD, momentum 0.8"][-1])
print("by hand", sgd_by_hand, "\ntorch  ", sgd_by_torch)
for rate in (0.079, 0.081):
    print(
        f"lr {rate}: height {height_of(descend(lambda p, rate=rate: torch.optim.SGD(p, lr=rate), steps=400)[-1]):.3g} after 400 steps"
    )

# %% [markdown] lang="en"
# ## Adam by its formulas
#
# With the gradient $g_t$, Adam keeps a mean and a mean of squares, corrects both for having begun at zero, and divides:
#
# $$m_t = \beta_1 m_{t-1} + (1 - \beta_1) g_t, \quad v_t = \beta_2 v_{t-1} + (1 - \beta_2) g_t^2$$
#
# $$\theta_t = \theta_{t-1} - \eta \, \frac{m_t / (1 - \beta_1^t)}{\sqrt{v_t / (1 - \beta_2^t)} + \epsilon}$$

# %% [markdown] lang="zh"
# ## 照公式写 Adam
#
# 梯度为 $g_t$，Adam 记录它的滑动平均和平方的滑动平均，修正两者从零开始造成的偏差，然后相除：
#
# $$m_t = \beta_1 m_{t-1} + (1 - \beta_1) g_t, \quad v_t = \beta_2 v_{t-1} + (1 - \beta_2) g_t^2$$
#
# $$\theta_t = \theta_{t-1} - \eta \, \frac{m_t / (1 - \beta_1^t)}{\sqrt{v_t / (1 - \beta_2^t)} + \epsilon}$$

# %%
rate, beta1, beta2, epsilon = 0.5, 0.9, 0.999, 1e-8
point, m, v = torch.tensor([-9.0, 1.6]), torch.zeros(2), torch.zeros(2)
for t in range(1, 41):
    gradient = point * torch.tensor([1.0, 25.0])
    m = beta1 * m + (1 - beta1) * gradient
    v = beta2 * v + (1 - beta2) * gradient**2
    point = point - rate * (m / (1 - beta1**t)) / ((v / (1 - beta2**t)).sqrt() + epsilon)
by_hand, by_torch = point.tolist(), list(paths["Adam"][-1])
print("by hand", by_hand, "\ntorch  ", by_torch)

# %% [markdown] lang="en"
# The quotient does not depend on the scale of the gradient, so the first steps all have the size of the rate. `beta1` is how long the direction
# is remembered, about $1 / (1 - \beta_1)$ steps: high, it rolls past the goal; at zero nothing rolls, and nothing is carried along. `beta2` is the memory of the scale: too short, and one
# small gradient makes the next step a leap.

# %% [markdown] lang="zh"
# 这个商与梯度的尺度无关，所以最初的每一步都是学习率那么大。`beta1` 决定方向记多久，大约 $1 / (1 - \beta_1)$ 步：
# 太大会冲过头，为零则没有惯性，走得直，但也得不到加速。`beta2` 是尺度的记忆：太短的话，一次小梯度就会让下一步迈得太大。


# %%
def adam(**betas):
    return lambda p: torch.optim.Adam(p, lr=0.5, betas=(betas.get("beta1", 0.9), betas.get("beta2", 0.999)))


memories = {f"beta1 = {value}": descend(adam(beta1=value)) for value in (0.0, 0.9, 0.97)}
scales = {f"beta2 = {value}": descend(adam(beta2=value)) for value in (0.5, 0.9, 0.999)}

# %% en="What beta1 does." zh="beta1 的作用。"
figure({**memories, "equal height": contours(20)}, x="x", y="y", dots=True, title="beta1")

# %% en="What beta2 does." zh="beta2 的作用。"
figure({**scales, "equal height": contours(20)}, x="x", y="y", dots=True, title="beta2")

# %% [markdown] lang="en"
# ## zero_grad
#
# `backward` adds to `.grad`; it does not replace it. Without `zero_grad` each step follows the sum of all gradients so far. The same fact is
# what gradient accumulation lives on: add on purpose, then step once. `zero_grad()` sets `.grad` to `None`, not to zeros: a parameter that
# got no gradient is then left alone, where zeros would still move it by momentum and weight decay.

# %% [markdown] lang="zh"
# ## zero_grad
#
# `backward` 是往 `.grad` 上加，而不是替换。不调用 `zero_grad`，每一步走的就是至今所有梯度之和。
# 梯度累积正是利用这一点：故意多加几次，再走一步。`zero_grad()` 把 `.grad` 设为 `None` 而不是零：这样没有得到梯度的参数就不会动；
# 如果是零，动量和权重衰减仍会让它移动。

# %%
weight = nn.Parameter(torch.tensor(1.0))
for _ in range(3):
    (2 * weight).backward()
    print(weight.grad.item())

# %% [markdown] lang="en"
# ## Groups, and what they start from
#
# The constructor's arguments are the *defaults*. Every group is a dictionary of settings that begins as a copy of them, with what the group
# itself sets; from then on only the group counts. A schedule writes to `group["lr"]`, and `optimizer.defaults["lr"]` stays what it was:
# do not read the rate there. A layer that is unfrozen later joins by `add_param_group`, at the default, not at the rate that the others
# have come down to.

# %% [markdown] lang="zh"
# ## 参数组及其默认值
#
# 构造函数的参数是**默认值**。每个参数组是一个设置字典，一开始是默认值的副本，再加上该组自己的设置；此后起作用的只有组里的值。
# 调度器改的是 `group["lr"]`，`optimizer.defaults["lr"]` 不变，所以不要从那里读学习率。
# 后来解冻的层用 `add_param_group` 加入，拿到的是默认学习率，而不是其他组已经降到的学习率。

# %%
linear, late = nn.Linear(2, 2), nn.Linear(2, 2)
optimizer = torch.optim.SGD([{"params": [linear.weight], "weight_decay": 0.01}, {"params": [linear.bias]}], lr=0.1)
print("defaults", {key: optimizer.defaults[key] for key in ("lr", "momentum", "weight_decay")})
for group in optimizer.param_groups:
    group["lr"] *= 0.1  # as a schedule does
optimizer.add_param_group({"params": late.parameters()})
rates = [group["lr"] for group in optimizer.param_groups]
for group in optimizer.param_groups:
    print("group   ", {key: group[key] for key in ("lr", "momentum", "weight_decay")})

# %% [markdown] lang="en"
# Biases and norms are usually spared the weight decay. `param_groups` of Surefoot sorts them so that you need not, and a `Schedule` gives a
# group that joins late the rate that its place in the plan has.

# %% [markdown] lang="zh"
# 偏置和归一化层通常不做权重衰减。Surefoot 的 `param_groups` 替你分好组；后来加入的组，`Schedule` 会给它计划中当时的学习率。

# %%
from surefoot.optimizers import named_groups, param_groups

model = nn.Sequential(nn.Linear(8, 16), nn.LayerNorm(16), nn.ReLU(), nn.Linear(16, 2))
optimizer = torch.optim.AdamW(param_groups(model, no_decay="norm_and_bias"), lr=1e-3, weight_decay=0.05)
for (name, members), group in zip(named_groups(optimizer, model), optimizer.param_groups, strict=True):
    print(f"{name:10} lr {group['lr']}  weight_decay {group['weight_decay']}  {', '.join(members)}")

# %% [markdown] lang="en"
# ## A closure
#
# L-BFGS evaluates the loss several times within one step, so it wants a function that does. It is meant for small, smooth, whole-batch
# problems: on the valley it needs a few calls.

# %% [markdown] lang="zh"
# ## 闭包
#
# L-BFGS 在一步之内要多次计算损失，所以需要一个能计算损失的函数。它适合小规模、光滑、整批计算的问题：在上面的山谷里只要调用几次。

# %%
point = nn.Parameter(torch.tensor([-9.0, 1.6]))
lbfgs = torch.optim.LBFGS([point], line_search_fn="strong_wolfe")
calls = 0


def closure():
    global calls
    calls += 1
    lbfgs.zero_grad()
    height = height_of(point)
    height.backward()
    return height


lbfgs.step(closure)
print(f"height {closure().item():.1e} after {calls - 1} calls in one step")

# %% [markdown] lang="en"
# ## state_dict
#
# It holds the settings of each group and, for each parameter, its momentum or moments, **by position**. Load it into an optimizer whose parameters
# come in another order and, where the shapes fit, nobody objects: each parameter has another's moments.

# %% [markdown] lang="zh"
# ## state_dict
#
# 它保存每个参数组的设置，以及每个参数的动量或矩，**按位置**存放。如果加载到参数顺序不同的优化器里，只要形状吻合就没有人反对：
# 每个参数拿到的是别人的矩。

# %%
torch.manual_seed(0)
first, second = nn.Parameter(torch.zeros(2)), nn.Parameter(torch.zeros(2))
optimizer = torch.optim.SGD([first, second], lr=0.1, momentum=0.9)
first.grad, second.grad = torch.ones(2), 100 * torch.ones(2)
optimizer.step()
other = torch.optim.SGD([second, first], lr=0.1, momentum=0.9)  # the other order
other.load_state_dict(optimizer.state_dict())
swapped = other.state[first]["momentum_buffer"].tolist()
print("the first parameter's momentum:", optimizer.state[first]["momentum_buffer"].tolist(), "then", swapped)

# %% [markdown] lang="en"
# Surefoot's checkpoints keep optimizer state by the parameters' names, and refuse what does not fit. Which optimizer for what, and groups by
# pattern or layer: [Optimizers and parameter groups](../optimizers.md).

# %% [markdown] lang="zh"
# Surefoot 的检查点按参数名保存优化器状态，对不上就拒绝。什么任务用什么优化器、怎样按名称或按层分组，见[优化器与参数组](../optimizers.md)。

# %% tags=["remove-cell"]
heights = {name: height_of(path[-1]) for name, path in paths.items()}
assert all(abs(a - b) < 1e-4 for a, b in zip(sgd_by_hand, sgd_by_torch, strict=True))
assert heights["SGD, momentum 0.8"] < heights["SGD"]
assert all(abs(a - b) < 1e-4 for a, b in zip(by_hand, by_torch, strict=True))
assert rates == [0.1 * 0.1, 0.1 * 0.1, 0.1]
assert swapped == [100.0, 100.0] and calls < 20

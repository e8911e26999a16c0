# %% [markdown] lang="en"
# # 1. Losses: what is minimised
#
# A loss turns outputs and targets into one number; its gradient says how each output should move. So look at both: the curve, and its
# slope. Eight losses cover most of what is trained. Each comes with the mistake that it invites, and the mistake is run.

# %% [markdown] lang="zh"
# # 1. 损失函数：我们在最小化什么
#
# 损失函数把输出和目标变成一个数，它的梯度告诉每个输出该往哪里动。所以曲线和斜率都要看。
# 八个损失函数足以应付大部分训练。每个都有一个容易犯的错误，下面把错误也运行一遍。

# %%
import math

import torch
from torch import nn
from torch.nn import functional as F

import surefoot
from surefoot.charts.figure import figure


def curves(losses, low, high):
    """The value and the slope of each loss over one output, as points."""
    values, slopes = {}, {}
    for name, loss in losses.items():
        outputs = torch.linspace(low, high, 161, requires_grad=True)
        each = loss(outputs)
        (slope,) = torch.autograd.grad(each.sum(), outputs)
        values[name] = list(zip(outputs.tolist(), each.tolist(), strict=True))
        slopes[name] = list(zip(outputs.tolist(), slope.tolist(), strict=True))
    return values, slopes


# %% [markdown] lang="en"
# ## Numbers: MSELoss, L1Loss, SmoothL1Loss
#
# With the error $e = x - y$:
#
# - `MSELoss`: $e^2$. Large errors count most; its minimum is the mean. The usual choice.
# - `L1Loss`: $|e|$. Every error pulls equally hard; its minimum is the median. For data with outliers.
# - `SmoothL1Loss`: $e^2 / 2$ near zero, $|e| - 1/2$ beyond 1. Outliers are bounded and the slope is smooth at zero. For boxes and the
#   values of actions. Where near ends is `beta`, in the unit of the target: with rents in the thousands and `beta=1` it is `L1Loss`.

# %% [markdown] lang="zh"
# ## 回归：MSELoss、L1Loss、SmoothL1Loss
#
# 记误差 $e = x - y$：
#
# - `MSELoss`：$e^2$。大误差权重最大，最优解是均值。一般先用它。
# - `L1Loss`：$|e|$。每个误差的拉力相同，最优解是中位数。适合有离群点的数据。
# - `SmoothL1Loss`：零附近是 $e^2 / 2$，超过 1 之后是 $|e| - 1/2$。离群点的影响有上限，零点处斜率连续。
#   常用于检测框和动作价值。分界点由 `beta` 决定，单位与目标相同：目标上千而 `beta=1` 时，它其实就是 `L1Loss`。


# %%
def regression(name):
    loss = getattr(nn, name)(reduction="none")
    return lambda error: loss(error, torch.zeros_like(error))


values, slopes = curves({name: regression(name) for name in ("MSELoss", "L1Loss", "SmoothL1Loss")}, -3.0, 3.0)

# %% en="The loss over the error." zh="损失随误差的变化。"
figure(values, x="error", y="loss")

# %% en="Its slope: MSE pulls harder the farther away, L1 always equally, SmoothL1 as MSE and then as L1." zh="斜率：MSE 越远拉得越狠，L1 处处一样，SmoothL1 先像 MSE 后像 L1。"
figure(slopes, x="error", y="slope")

# %% [markdown] lang="en"
# **The trap: shapes.** Outputs of shape `(N, 1)` and targets of shape `(N,)` broadcast to `(N, N)`: every output is compared with every
# target, and the model learns the mean of them all. torch warns; Surefoot names it before the first step (`strict=True` stops there).

# %% [markdown] lang="zh"
# **陷阱：形状。** 输出是 `(N, 1)`、目标是 `(N,)` 时会广播成 `(N, N)`：每个输出都与所有目标比较，
# 模型学到的只是全体均值。torch 只给警告，Surefoot 在第一步之前就会指出来（设了 `strict=True` 就停在那里）。

# %%
import warnings

torch.manual_seed(0)
outputs, targets = torch.randn(64, 1), torch.randn(64)
with warnings.catch_warnings(action="ignore"):
    broadcast = nn.MSELoss()(outputs, targets).item()
print(f"(64, 1) against (64,)   {broadcast:.4f}")
print(f"(64, 1) against (64, 1) {nn.MSELoss()(outputs, targets[:, None]).item():.4f}")


def found(model, loss, batch):
    """What Surefoot says of the first batch."""
    with warnings.catch_warnings(action="ignore"):
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        findings = surefoot.lint(model, loss, optimizer, batch)
    for finding in findings:
        print(f"{finding.name}: {finding.message}")
    return [finding.name for finding in findings]


shapes = found(nn.Linear(4, 1), nn.MSELoss(), (torch.randn(64, 4), targets))

# %% [markdown] lang="en"
# ## Yes or no: BCELoss, BCEWithLogitsLoss
#
# For a probability $p$ and a target $y$ of 0 or 1, binary cross entropy is
#
# $$-y \log p - (1 - y) \log(1 - p)$$
#
# Use it for two classes, and for labels of which several may be true at once: one output each.
#
# `BCELoss` takes $p$, so the model ends in a sigmoid. `BCEWithLogitsLoss` takes the logit $x$, with $p = 1 / (1 + e^{-x})$, and has the
# sigmoid inside. Prefer the second: its slope is $p - y$, and it is exact where a sigmoid has already rounded to 1. `BCELoss` is for
# models that give probabilities by another way.

# %% [markdown] lang="zh"
# ## 是或否：BCELoss、BCEWithLogitsLoss
#
# 概率为 $p$，目标 $y$ 为 0 或 1，二元交叉熵是
#
# $$-y \log p - (1 - y) \log(1 - p)$$
#
# 用于二分类，也用于多标签分类：可以同时成立的标签，每个对应一个输出。
#
# `BCELoss` 接受 $p$，所以模型以 sigmoid 结尾。`BCEWithLogitsLoss` 接受 logit，即 $x$，其中 $p = 1 / (1 + e^{-x})$，sigmoid 已经包含在内。
# 优先用后者：它的斜率就是 $p - y$，而且在 sigmoid 已经舍入到 1 的地方依然精确。只有当模型以别的方式给出概率时，才用 `BCELoss`。


# %%
def yes_or_no(loss):
    return {f"target {y}": lambda x, y=y: loss(x, torch.full_like(x, y), reduction="none") for y in (1, 0)}


values, slopes = curves(yes_or_no(F.binary_cross_entropy_with_logits), -6.0, 6.0)
of_p, slopes_of_p = curves(yes_or_no(F.binary_cross_entropy), 0.02, 0.98)

# %% en="BCEWithLogitsLoss over the logit." zh="BCEWithLogitsLoss 随 logit 的变化。"
figure(values, x="logit", y="loss")

# %% en="Its slope, p - y: never steeper than 1, and flat only where the answer is right." zh="斜率 p - y：绝对值不超过 1，只在答对的地方趋于零。"
figure(slopes, x="logit", y="slope")

# %% en="BCELoss over the probability." zh="BCELoss 随概率的变化。"
figure(of_p, x="probability", y="loss")

# %% en="Its slope has no bound; the sigmoid's own slope, p (1 - p), brings it back to p - y, if it has not rounded to zero." zh="它的斜率没有上界；乘上 sigmoid 的斜率 p (1 - p) 才回到 p - y，前提是后者没有舍入成零。"
figure(slopes_of_p, x="probability", y="slope")

# %% [markdown] lang="en"
# **The traps.** Logits in `BCELoss` are an error as soon as one is below 0 or above 1, and a silent mistake until then. Probabilities in
# `BCEWithLogitsLoss` are never an error: the sigmoid is taken twice, and a perfect model still has the loss
# $\log(1 + e^{-1}) \approx 0.31$.

# %% [markdown] lang="zh"
# **陷阱。** 把 logit 交给 `BCELoss`，只要有一个小于 0 或大于 1 就报错，在那之前则是无声的错误。
# 把概率交给 `BCEWithLogitsLoss` 永远不报错：sigmoid 取了两次，完美的模型损失也只能降到
# $\log(1 + e^{-1}) \approx 0.31$。

# %%
one = torch.ones(1)
print(f"logit -40, target 1: {nn.BCEWithLogitsLoss()(torch.tensor([-40.0]), one):.1f}")
print(f"logit  40, target 0: {nn.BCEWithLogitsLoss()(torch.tensor([40.0]), 0 * one):.1f}")
print(
    f"the same by BCELoss: {nn.BCELoss()(torch.sigmoid(torch.tensor([40.0])), 0 * one):.1f}  (its log is cut at -100)"
)
print(f"a perfect model, probabilities taken for logits: {nn.BCEWithLogitsLoss()(one, one):.4f}")

torch.manual_seed(0)
yes_no = (torch.randn(64, 4), torch.randint(0, 2, (64, 1)).float())
logits = nn.Linear(4, 1)
twice = found(nn.Sequential(logits, nn.Sigmoid()), nn.BCEWithLogitsLoss(), yes_no)
raw = found(logits, nn.BCELoss(), yes_no)

# %% [markdown] lang="en"
# ## One of many: CrossEntropyLoss, NLLLoss
#
# For logits $x$ and the right class $y$:
#
# $$-\log \frac{e^{x_y}}{\sum_c e^{x_c}}$$
#
# Use it where exactly one class is right: pictures, pixels, the next word.
#
# `CrossEntropyLoss` takes logits. `NLLLoss` takes log-probabilities and only picks out $-x_y$; it is cross entropy if, and only if, the
# model ends in `LogSoftmax`, and is for models that give log-probabilities anyway. At chance both are $\ln C$ for $C$ classes: compare
# your first loss with it.

# %% [markdown] lang="zh"
# ## 多选一：CrossEntropyLoss、NLLLoss
#
# logit 为 $x$，正确类别为 $y$：
#
# $$-\log \frac{e^{x_y}}{\sum_c e^{x_c}}$$
#
# 用于恰好有一个类别正确的任务：图像分类、逐像素分类、预测下一个词。
#
# `CrossEntropyLoss` 接受 logit。`NLLLoss` 接受对数概率，只是取出 $-x_y$；当且仅当模型以 `LogSoftmax` 结尾，它才等于交叉熵，
# 所以只用于本来就输出对数概率的模型。随机猜测时两者都是 $\ln C$（$C$ 为类别数）：拿你的第一个损失值与它比一比。

# %%
right = torch.zeros(161, dtype=torch.int64)  # class 0 of three
one_of_three = {
    "CrossEntropyLoss": lambda x: F.cross_entropy(F.pad(x[:, None], (0, 2)), right, reduction="none"),
    "NLLLoss": lambda x: F.nll_loss(F.pad(x[:, None], (0, 2)), right, reduction="none"),
}
values, slopes = curves(one_of_three, -5.0, 5.0)

# %% en="Over the right class's number, the two others at 0: cross entropy is bent, NLL is the straight line -x and has no floor." zh="随正确类别的输出变化，另外两类为 0：交叉熵是弯的；NLL 只是直线 -x，没有下界。"
figure(values, x="output of the right class", y="loss")

# %% en="Slopes: cross entropy's is p - 1 and ends when the answer is right, NLL's is -1 for ever." zh="斜率：交叉熵是 p - 1，答对了就趋于零；NLL 永远是 -1。"
figure(slopes, x="output of the right class", y="slope")

# %% [markdown] lang="en"
# So the floor of `NLLLoss` is the model's business: a log-probability is never above 0. **The traps**: logits in `NLLLoss`, where nothing
# stops the line, and a `Softmax` before `CrossEntropyLoss`, which takes its own: outputs between 0 and 1 can never be far apart.

# %% [markdown] lang="zh"
# 可见 `NLLLoss` 的下界要靠模型保证：对数概率不会大于 0。**陷阱**有两个：把 logit 交给 `NLLLoss`，直线就一路向下；
# 在 `CrossEntropyLoss` 之前加 `Softmax`，等于做了两次，输出都在 0 和 1 之间，永远拉不开差距。

# %%
torch.manual_seed(0)
x, y = torch.randn(32, 10), torch.randint(0, 10, (32,))
print(f"CrossEntropyLoss           {nn.CrossEntropyLoss()(x, y):.4f}")
print(f"NLLLoss after LogSoftmax   {nn.NLLLoss()(x.log_softmax(1), y):.4f}")
print(f"NLLLoss of the logits      {nn.NLLLoss()(x, y):.4f}   nothing that means anything")
print(f"at chance, ln 10           {math.log(10):.4f}")


def train(model, loss, steps=60):
    torch.manual_seed(0)
    inputs, labels = torch.randn(64, 8), torch.arange(64) % 4
    optimizer = torch.optim.SGD(model.parameters(), lr=0.5)
    losses = []
    for _ in range(steps):
        value = loss(model(inputs), labels)
        optimizer.zero_grad()
        value.backward()
        optimizer.step()
        losses.append(value.item())
    return losses


def network(*end):
    torch.manual_seed(1)
    return nn.Sequential(nn.Linear(8, 64), nn.ReLU(), nn.Linear(64, 4), *end)


falling = {
    "CrossEntropyLoss of logits": train(network(), nn.CrossEntropyLoss()),
    "after a Softmax": train(network(nn.Softmax(1)), nn.CrossEntropyLoss()),
    "NLLLoss of logits": train(network(), nn.NLLLoss(), steps=6),
}

# %% en="NLLLoss without LogSoftmax falls below zero and on without end; after a Softmax the loss hardly falls." zh="NLLLoss 缺了 LogSoftmax，损失会跌破零并一直跌下去；多了 Softmax，损失几乎不降。"
figure(falling, x="step", y="loss")

# %%
batch = (torch.randn(64, 8), torch.arange(64) % 4)
softmax = found(network(nn.Softmax(1)), nn.CrossEntropyLoss(), batch)
no_log = found(network(), nn.NLLLoss(), batch)

# %% [markdown] lang="en"
# ## From one distribution to another: KLDivLoss
#
# $$\mathrm{KL}(q \,\|\, p) = \sum_c q_c (\log q_c - \log p_c)$$
#
# It takes the model's *log*-probabilities and the target's probabilities. Use it where the target is itself a distribution: the answers of
# a teacher in distillation, votes of several people. Cross entropy is no other thing: $H(q, p) = H(q) + \mathrm{KL}(q \,\|\, p)$, and
# $H(q)$ does not depend on the model, so both have the same gradient.

# %% [markdown] lang="zh"
# ## 从一个分布到另一个分布：KLDivLoss
#
# $$\mathrm{KL}(q \,\|\, p) = \sum_c q_c (\log q_c - \log p_c)$$
#
# 它接受模型的“对数”概率和目标的概率。用于目标本身就是分布的任务：蒸馏时教师模型的输出、多人标注的投票。
# 交叉熵与它是一回事：$H(q, p) = H(q) + \mathrm{KL}(q \,\|\, p)$，而 $H(q)$ 与模型无关，所以两者梯度相同。

# %%
target = torch.tensor([0.3, 0.7])  # two classes; the model's probability of the first is on the axis


def over_probability(loss):
    return lambda p: loss(torch.stack([p, 1 - p], dim=1).log(), target.expand(len(p), 2))


divergences = {
    "KLDivLoss": over_probability(lambda log_p, q: F.kl_div(log_p, q, reduction="none").sum(1)),
    "CrossEntropyLoss": over_probability(lambda log_p, q: F.cross_entropy(log_p, q, reduction="none")),
}
values, slopes = curves(divergences, 0.02, 0.98)

# %% en="Both are least where the model says what the target says, 0.3; there KL is zero, and cross entropy the target's entropy." zh="两者都在模型与目标一致（0.3）时最小：此时 KL 为零，交叉熵等于目标的熵。"
figure(values, x="probability", y="loss", marks={"the target": 0.3})

# %% en="Their slopes are one curve." zh="两者的斜率是同一条曲线。"
figure(slopes, x="probability", y="slope", marks={"the target": 0.3})

# %% [markdown] lang="en"
# **The trap** is the default, `reduction="mean"`: it divides by $N \cdot C$ and not by $N$, so the result is $C$ times too small.
# `batchmean` is the divergence. Probabilities in place of log-probabilities are no error either, and give a number without a meaning.

# %% [markdown] lang="zh"
# **陷阱**在默认的 `reduction="mean"`：除以的是 $N \cdot C$ 而不是 $N$，结果小了 $C$ 倍。`batchmean` 才是散度。
# 把概率当作对数概率交给它也不报错，得到的数没有意义。

# %%
torch.manual_seed(0)
logits = torch.randn(8, 10, requires_grad=True)
q = torch.randn(8, 10).softmax(1)
log_p = logits.log_softmax(1)
by_hand = (q * (q.log() - log_p)).sum(1).mean()
with warnings.catch_warnings(action="ignore"):
    mean, batchmean = (nn.KLDivLoss(reduction=how)(log_p, q) for how in ("mean", "batchmean"))
cross_entropy = nn.CrossEntropyLoss()(logits, q)
entropy = -(q * q.log()).sum(1).mean()
print(f"by the formula {by_hand:.4f}   batchmean {batchmean:.4f}   mean {mean:.4f}   mean x 10 {10 * mean:.4f}")
print(f"cross entropy {cross_entropy:.4f} = entropy {entropy:.4f} + KL {batchmean:.4f}")
(of_kl,), (of_ce,) = (torch.autograd.grad(each, logits, retain_graph=True) for each in (batchmean, cross_entropy))
print(f"largest difference of their gradients: {(of_kl - of_ce).abs().max():.1e}")
kl = found(nn.Sequential(nn.Linear(4, 10), nn.LogSoftmax(1)), nn.KLDivLoss(), (torch.randn(8, 4), q))

# %% [markdown] lang="en"
# ## A mean of means is not the mean
#
# One trap belongs to the loop and not to a loss. Adding `loss.item()` of each batch and dividing by the number of batches is the mean
# only if all batches are equally large, and the last one seldom is.

# %% [markdown] lang="zh"
# ## 平均的平均不是平均
#
# 还有一个陷阱属于循环，与损失函数无关：把每批的 `loss.item()` 加起来除以批数，只有各批一样大时才是平均值，
# 而最后一批往往不一样大。

# %%
each = torch.tensor([1.0] * 64 + [9.0])  # 65 samples: the last batch has one
of_batches = [chunk.mean() for chunk in each.split(32)]
print(f"mean of the batches' means {sum(of_batches) / len(of_batches):.4f}, mean over the samples {each.mean():.4f}")

# %% [markdown] lang="en"
# `fit` and `evaluate` weigh every batch by what its mean is over: samples, elements, class weights, or tokens that are not ignored.
#
# All losses, each with its formula and traps: [Losses](../losses.md). `surefoot explain softmax-before-cross-entropy` explains a
# finding by its name. Next: what follows the gradient.

# %% [markdown] lang="zh"
# `fit` 和 `evaluate` 按每批均值的实际分母加权：样本数、元素数、类别权重，或未被忽略的 token 数。
#
# 全部损失函数的公式与陷阱见[损失函数](../losses.md)。`surefoot explain softmax-before-cross-entropy` 按名称解释一条提示。
# 下一章：谁来沿着梯度走。

# %% tags=["remove-cell"]
assert shapes == ["broadcast"] and kl == ["kl-reduction-mean"]
assert twice == ["probabilities-to-bce-with-logits"] and raw == ["raw-logits-to-bce"]
assert softmax == ["softmax-before-cross-entropy"] and no_log == ["raw-logits-to-nll"]
assert (
    falling["NLLLoss of logits"][-1] < 0
    and falling["after a Softmax"][-1] > 2 * falling["CrossEntropyLoss of logits"][-1]
)
assert abs(by_hand - batchmean) < 1e-6 and abs(10 * mean - batchmean) < 1e-6
assert abs(entropy + batchmean - cross_entropy) < 1e-5 and (of_kl - of_ce).abs().max() < 1e-7

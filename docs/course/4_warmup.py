# %% [markdown] lang="en"
# # 4. Warmup: small steps first
#
# At the first step the weights are random, gradients are large and point anywhere, and Adam's second moments rest on one batch.
# A warmup multiplies the learning rate by a factor that grows to 1, so that the first updates are small.
#
# Below, a deep network without normalization, momentum 0.9 and a high rate, with and without warmup, from the same seed.
# Other seeds may get through without it, and a rate that is too high in the end is not saved by it.

# %% [markdown] lang="zh"
# # 4. 学习率预热：先迈小步
#
# 训练刚开始时权重是随机的，梯度又大又乱，Adam 的二阶矩也只来自一个批次。
# 学习率预热（warmup）给学习率乘上一个逐渐增大到 1 的系数，让最初的更新足够小。
#
# 下面是一个没有归一化的深层网络，动量 0.9，学习率偏大；随机种子相同，只差有无预热。
# 换一个种子，不预热也可能侥幸成功；而如果学习率最终就是太大，预热也救不了。

# %%
import pytorch_warmup
import torch
from torch import nn
from torch.optim import lr_scheduler

import surefoot
from surefoot import Schedule
from surefoot.charts.figure import figure
from surefoot.planning import plan_report

numbers = torch.Generator().manual_seed(0)
inputs = torch.randn(512, 16, generator=numbers)
targets = (inputs[:, :4].sum(1) > 0).long()


def train(warmup_period, lr=0.5, steps=240):
    torch.manual_seed(1)
    sizes = [16, 32, 32, 32, 32]
    hidden = [module for size in sizes for module in (nn.Linear(size, 32), nn.Tanh())]
    model = nn.Sequential(*hidden, nn.Linear(32, 2))
    optimizer = torch.optim.SGD(model.parameters(), lr=lr, momentum=0.9)
    warmup = surefoot.LinearWarmup(optimizer, warmup_period) if warmup_period else None
    schedule = Schedule(optimizer, None, warmup)
    losses = []
    for step in range(steps):
        rows = slice(step % 8 * 64, step % 8 * 64 + 64)
        loss = nn.functional.cross_entropy(model(inputs[rows]), targets[rows])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
        losses.append(loss.item())
    return [sum(losses[i : i + 8]) / 8 for i in range(0, steps, 8)]


courses = {"no warmup": train(0), "LinearWarmup over 120 steps": train(120)}

# %% en="The loss of each epoch, with and without warmup." zh="有无预热时每轮的损失。"
figure(courses, x="epoch", y="loss")

# %% [markdown] lang="en"
# ## Five factors
#
# The factor at step $t$, counted from 0, over a period of $T$ steps:
#
# - linear: $\min(1, (t + 1) / T)$
# - exponential: $1 - e^{-(t + 1) / T}$
# - the untuned ones choose $T$ from Adam's `beta2`: $2 / (1 - \beta_2)$ linear, $1 / (1 - \beta_2)$ exponential
# - `RAdamWarmup`: the rectification term of RAdam

# %% [markdown] lang="zh"
# ## 五种系数
#
# 第 $t$ 步（从 0 数起）的系数，预热期为 $T$ 步：
#
# - 线性：$\min(1, (t + 1) / T)$
# - 指数：$1 - e^{-(t + 1) / T}$
# - untuned 两种由 Adam 的 `beta2` 决定 $T$：线性取 $2 / (1 - \beta_2)$，指数取 $1 / (1 - \beta_2)$
# - `RAdamWarmup`：RAdam 的修正项


# %%
def factors(make, steps=600):
    optimizer = torch.optim.Adam([nn.Parameter(torch.zeros(1))], lr=1.0, betas=(0.9, 0.99))
    schedule = Schedule(optimizer, None, make(optimizer))
    used = []
    for _ in range(steps):
        used += schedule.lrs
        optimizer.step()
        schedule.step()
    return used


five = {
    "LinearWarmup": factors(lambda o: surefoot.LinearWarmup(o, 300)),
    "ExponentialWarmup": factors(lambda o: surefoot.ExponentialWarmup(o, 150)),
    "UntunedLinearWarmup": factors(surefoot.UntunedLinearWarmup),
    "UntunedExponentialWarmup": factors(surefoot.UntunedExponentialWarmup),
    "RAdamWarmup": factors(surefoot.RAdamWarmup),
}

# %% en="The five warmups, for beta2 = 0.99." zh="五种预热，beta2 = 0.99。"
figure(five, x="step", y="factor")

# %% [markdown] lang="en"
# ## The way of pytorch_warmup, and where it slips
#
# The package `pytorch_warmup` writes the damped rate into the optimizer and takes the factor off again around the scheduler:
#
# ```python
# with warmup.dampening():
#     scheduler.step()
# ```
#
# The rate is then kept in two places, and they come apart in four ways. Each is run below, beside Surefoot's warmup of the
# same name. **First**: a plateau that is stepped after the epoch, outside of the block, reduces the damped rate, and the next block
# writes the old one back.

# %% [markdown] lang="zh"
# ## pytorch_warmup 的做法，以及它的疏漏
#
# `pytorch_warmup` 把乘过系数的学习率写进优化器，在调度器走步的前后再取下系数：
#
# ```python
# with warmup.dampening():
#     scheduler.step()
# ```
#
# 这样学习率就存在两个地方，有四种情形会互相矛盾。下面逐一运行，并与 Surefoot 的同名预热对照。
# **第一**：每轮结束后，在代码块之外走步的 plateau 降低了乘过系数的学习率，而下一次进入代码块时旧值又被写了回来。

# %%
PACKAGES = {"pytorch_warmup": pytorch_warmup, "surefoot": surefoot}


def one_weight(lr=0.1):
    return torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=lr)


def outside(package):
    optimizer = one_weight()
    plateau = lr_scheduler.ReduceLROnPlateau(optimizer, factor=0.1, patience=0)
    warmup = package.LinearWarmup(optimizer, warmup_period=1)
    for loss in (1.0, 1.0, 1.0):
        optimizer.step()
        with warmup.dampening():
            pass
        plateau.step(loss)
    with warmup.dampening():
        pass
    return optimizer.param_groups[0]["lr"]


after_plateau = {name: outside(package) for name, package in PACKAGES.items()}
for name, rate in after_plateau.items():
    print(f"{name:15} two reductions later: lr {rate:.4g}")

# %% [markdown] lang="en"
# The tutorial's loop does step its plateau inside of the block, but only from the end of the ninth epoch on, by a condition
# that was written for something else. Its reductions are kept by luck: move that line out of the block, and they are lost without a word.
#
# **Second**: the warmup has a state. If a resumed run does not load it, the warmup starts again from its first step,
# silently.

# %% [markdown] lang="zh"
# 教程的循环确实在代码块里调用 plateau，但要从第九轮结束起才这样做，而且是因为一个另有用途的条件。学习率得以降低，是碰巧：
# 把那一行移到代码块之外，降低就会无声无息地丢失。
#
# **第二**：预热有自己的状态。恢复训练时如果不加载它，预热会从第一步重新开始，而且不报错。

# %%
from surefoot.errors import UsageError


def resumed(package):
    optimizer = one_weight()
    warmup = package.LinearWarmup(optimizer, warmup_period=10)
    for _ in range(20):
        optimizer.step()
        with warmup.dampening():
            pass
    saved = optimizer.state_dict()  # the optimizer alone
    optimizer = one_weight()
    warmup = package.LinearWarmup(optimizer, warmup_period=10)
    optimizer.load_state_dict(saved)
    optimizer.step()
    with warmup.dampening():
        pass
    return optimizer.param_groups[0]["lr"]


for name, package in PACKAGES.items():
    try:
        print(f"{name:15} lr {resumed(package):.4g} after the resume, 0.1 before it")
    except UsageError as error:
        print(f"{name:15} refused: {error}")

# %% [markdown] lang="en"
# **Third**: a parameter group that joins later (a layer that is unfrozen) is never warmed. **Fourth**: after an exception in
# the block, which a notebook survives, the rate stays without its factor.

# %% [markdown] lang="zh"
# **第三**：后来加入的参数组（例如解冻的层）得不到预热。**第四**：如果代码块里抛出异常（在 notebook 里程序还会继续），
# 学习率就一直不带系数。


# %%
def joined(package):
    optimizer = one_weight()
    warmup = package.LinearWarmup(optimizer, warmup_period=10)
    optimizer.add_param_group({"params": [nn.Parameter(torch.zeros(1))], "lr": 0.1})
    optimizer.step()
    with warmup.dampening():
        pass
    return optimizer.param_groups[1]["lr"]


def after_an_error(package):
    optimizer = one_weight()
    warmup = package.LinearWarmup(optimizer, warmup_period=10)
    try:
        with warmup.dampening():
            raise RuntimeError("a scheduler failed")
    except RuntimeError:
        pass
    return optimizer.param_groups[0]["lr"]


joined_rates = {name: joined(package) for name, package in PACKAGES.items()}
error_rates = {name: after_an_error(package) for name, package in PACKAGES.items()}
for name in PACKAGES:
    print(f"{name:15} new group: lr {joined_rates[name]:.3g}   after an error: lr {error_rates[name]:.3g}")

# %% [markdown] lang="en"
# ## One schedule of both
#
# `Schedule` holds scheduler and warmup. There is no block to be inside of: `schedule.step()` after each update,
# `schedule.epoch(value)` after each epoch. The plan shows the product.

# %% [markdown] lang="zh"
# ## 合成一个 Schedule
#
# `Schedule` 同时管理调度器和预热。没有什么代码块要记得放进去：每次更新后调用 `schedule.step()`，
# 每轮结束后调用 `schedule.epoch(value)`。画出来的是两者的乘积。

# %%
optimizer = one_weight()
scheduler = lr_scheduler.CosineAnnealingLR(optimizer, T_max=20)
schedule = Schedule(optimizer, scheduler, surefoot.LinearWarmup(optimizer, warmup_period=500))

# %% en="A cosine under a linear warmup." zh="线性预热加余弦退火。"
plan_report(schedule, steps_per_epoch=100, epochs=20, title="Warmup, then cosine")

# %% [markdown] lang="en"
# In a recipe the same is `warmup: {name: LinearWarmup, warmup_period: 500}`. How long? A few hundred steps, or $2 / (1 - \beta_2)$ for
# Adam; a warmup that is longer than the run is named by `surefoot check`. More: [Learning rates](../schedules.md).

# %% [markdown] lang="zh"
# 在配方文件里写作 `warmup: {name: LinearWarmup, warmup_period: 500}`。预热多久？几百步；用 Adam 时可取 $2 / (1 - \beta_2)$。
# 预热比训练还长时，`surefoot check` 会指出来。详见[学习率](../schedules.md)。

# %% tags=["remove-cell"]
assert courses["LinearWarmup over 120 steps"][-1] < 0.5 * courses["no warmup"][-1]
assert after_plateau["pytorch_warmup"] == 0.1 and round(after_plateau["surefoot"], 6) == 0.001
assert resumed(pytorch_warmup) < 0.03
assert (
    joined_rates == {"pytorch_warmup": 0.1, "surefoot": 0.02}
    or joined_rates["surefoot"] < joined_rates["pytorch_warmup"]
)
assert error_rates["pytorch_warmup"] == 0.1 and error_rates["surefoot"] < 0.1

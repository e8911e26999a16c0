# %% [markdown] lang="en"
# # 3. Schedules: how the learning rate moves
#
# A scheduler is a function from a count of calls to a learning rate. It sees neither the model nor the data (one exception:
# `ReduceLROnPlateau`), so the rate of a whole run can be known before the run. Surefoot draws it by moving torch's own
# scheduler over an optimizer without weights: what is drawn is what training uses, bit for bit.

# %% [markdown] lang="zh"
# # 3. 学习率调度：学习率怎样变化
#
# 调度器是从“调用次数”到“学习率”的函数。它既不看模型也不看数据（唯一的例外是 `ReduceLROnPlateau`），
# 所以整个训练过程的学习率在开始之前就能算出来。Surefoot 的做法是：在没有权重的优化器上把 torch 自己的调度器走一遍，
# 画出来的曲线与训练时使用的学习率逐位相同。

# %%
import torch
from torch.optim import lr_scheduler

from surefoot import Schedule
from surefoot.charts.figure import figure
from surefoot.planning import mistakes, plan_report
from surefoot.schedules import simulate_schedule


def sgd(lr=0.1):
    return torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=lr)


optimizer = sgd()
schedule = Schedule(optimizer, lr_scheduler.StepLR(optimizer, step_size=10, gamma=0.5))

# %% en="StepLR halves the rate every ten epochs." zh="StepLR：每十轮学习率减半。"
plan_report(schedule, steps_per_epoch=100, epochs=40, title="StepLR")

# %% [markdown] lang="en"
# ## The family
#
# | scheduler | the rate | use it |
# |---|---|---|
# | `StepLR` | times `gamma` every `step_size` calls | as a first try |
# | `MultiStepLR` | times `gamma` at each of `milestones` | when a paper names the epochs |
# | `ExponentialLR` | times `gamma` at every call | for a smooth decay without an end |
# | `CosineAnnealingLR` | half a cosine down to `eta_min` in `T_max` calls | by default, when the length is known |
# | `CosineAnnealingWarmRestarts` | the same again and again | for several models from one run |
# | `OneCycleLR` | up to `max_lr`, then far down | for short runs at a high rate |
# | `CyclicLR` | up and down between `base_lr` and `max_lr` | to look for a range of rates that works |
# | `LambdaLR` | the first rate times your function | for everything else |
# | `ReduceLROnPlateau` | times `factor` when a metric no longer improves | when the length is not known |
#
# Each line below is one constructor; nothing else differs.

# %% [markdown] lang="zh"
# ## 常用的调度器
#
# | 调度器 | 学习率 | 适用场合 |
# |---|---|---|
# | `StepLR` | 每 `step_size` 次调用乘以 `gamma` | 先试试看 |
# | `MultiStepLR` | 在 `milestones` 处各乘一次 `gamma` | 论文给出了具体轮数 |
# | `ExponentialLR` | 每次调用都乘以 `gamma` | 平滑衰减，没有终点 |
# | `CosineAnnealingLR` | 用 `T_max` 次调用沿半个余弦降到 `eta_min` | 训练长度已知时的首选 |
# | `CosineAnnealingWarmRestarts` | 上面的过程周期性重复 | 一次训练得到几个模型 |
# | `OneCycleLR` | 先升到 `max_lr`，再降到很低 | 用大学习率的短训练 |
# | `CyclicLR` | 在 `base_lr` 与 `max_lr` 之间来回 | 寻找可用的学习率范围 |
# | `LambdaLR` | 初始学习率乘以你的函数 | 其他情形 |
# | `ReduceLROnPlateau` | 指标不再改善时乘以 `factor` | 训练长度未知 |
#
# 下图每条曲线只差一个构造函数。

# %%
EPOCHS = 40
makers = {
    "StepLR": lambda o: lr_scheduler.StepLR(o, step_size=10, gamma=0.5),
    "MultiStepLR": lambda o: lr_scheduler.MultiStepLR(o, milestones=[24, 34]),
    "ExponentialLR": lambda o: lr_scheduler.ExponentialLR(o, gamma=0.92),
    "LambdaLR": lambda o: lr_scheduler.LambdaLR(o, lambda epoch: (1 - epoch / EPOCHS) ** 2),
    "CosineAnnealingLR": lambda o: lr_scheduler.CosineAnnealingLR(o, T_max=EPOCHS),
    "CosineAnnealingWarmRestarts": lambda o: lr_scheduler.CosineAnnealingWarmRestarts(o, T_0=10),
    "OneCycleLR": lambda o: lr_scheduler.OneCycleLR(o, max_lr=0.1, total_steps=EPOCHS),
    "CyclicLR": lambda o: lr_scheduler.CyclicLR(o, base_lr=0.01, max_lr=0.1, step_size_up=5),
}


def rates(make, epochs=EPOCHS):
    optimizer = sgd()
    return simulate_schedule(Schedule(optimizer, make(optimizer)), 1, epochs).rates(0).tolist()


curves = {name: rates(make) for name, make in makers.items()}

# %% en="Schedulers that only go down." zh="只降不升的调度器。"
figure({name: curves[name] for name in list(makers)[:4]}, x="epoch", y="learning rate", steps=True)

# %% en="Cosines and cycles." zh="余弦与周期。"
figure({name: curves[name] for name in list(makers)[4:]}, x="epoch", y="learning rate", steps=True)

# %% [markdown] lang="en"
# ## By step or by epoch
#
# A scheduler counts calls. Whether a call is a step or an epoch is up to you, and its arguments must use the same unit.
# The commonest mistake is a `T_max` in epochs under a scheduler that is called after each step: the cosine ends within the
# first epoch, rises, and swings for the rest of the run. `mistakes` names it before anything is trained; on the command line,
# `surefoot check` and `surefoot plan` do.

# %% [markdown] lang="zh"
# ## 按步还是按轮
#
# 调度器只数调用次数。一次调用是一步还是一轮由你决定，参数要用同一单位。
# 最常见的错误：`T_max` 按轮计，却每步都调用调度器。余弦在第一轮之内就走完，然后回升，在剩下的训练里来回摆动。
# `mistakes` 在训练之前就会指出来；在命令行里则是 `surefoot check` 和 `surefoot plan`。

# %%
optimizer = sgd()
wrong = Schedule(optimizer, lr_scheduler.CosineAnnealingLR(optimizer, T_max=10), by="step")
for finding in mistakes(wrong, steps_per_epoch=5, epochs=10):
    print(f"{finding.name}: {finding.message}")

# %% en="T_max in epochs, called after each step." zh="T_max 按轮计，却每步调用一次。"
plan_report(wrong, steps_per_epoch=5, epochs=10, title="T_max counts epochs, calls count steps")

# %% [markdown] lang="en"
# In `Schedule` the unit is said once, `by="step"` or `by="epoch"`. Then call `schedule.step()` after every update and
# `schedule.epoch(value)` after every epoch, whatever the scheduler; it is moved at the right one of the two.
#
# ## What a plateau watches
#
# `ReduceLROnPlateau` counts epochs without improvement of the number that you give it. Give it the validation loss: the
# training loss still falls when the model has long begun to overfit. Here both losses are given, of the same run.

# %% [markdown] lang="zh"
# 在 `Schedule` 里，单位只说一次：`by="step"` 或 `by="epoch"`。之后不管用哪种调度器，每次更新后调用 `schedule.step()`，
# 每轮结束后调用 `schedule.epoch(value)`，该动的时候它才会动。
#
# ## ReduceLROnPlateau 看的是什么
#
# `ReduceLROnPlateau` 数的是：你给它的那个数连续多少轮没有改善。应当给验证损失：模型早已过拟合时，训练损失仍在下降。
# 下面把同一次训练的两种损失分别交给它。

# %%
train_loss = [1.0 * 0.93**epoch for epoch in range(30)]
val_loss = [0.25 + 0.75 * 0.8**epoch + 0.01 * max(0, epoch - 10) for epoch in range(30)]


def under_plateau(losses):
    optimizer = sgd()
    schedule = Schedule(optimizer, lr_scheduler.ReduceLROnPlateau(optimizer, factor=0.5, patience=3))
    used = []
    for loss in losses:
        used += schedule.lrs
        optimizer.step()
        schedule.step()
        schedule.epoch(loss)
    return used


watching = {
    "watches the training loss": under_plateau(train_loss),
    "watches the validation loss": under_plateau(val_loss),
}

# %% en="The same run; only the number that the plateau watches differs." zh="同一次训练，只是被监视的数不同。"
figure(watching, x="epoch", y="learning rate", steps=True)

# %% [markdown] lang="en"
# Two more traps. For an accuracy the mode must be `max`: with `min`, its default, every better epoch counts as a bad
# one (`fit` refuses that). And the value must be there when the scheduler is stepped: the tutorial's loop uses the name of its
# training loss before any line gives it a value, so as printed it ends in a `NameError` at the first epoch.

# %% [markdown] lang="zh"
# 还有两个陷阱。监视准确率时模式必须是 `max`：默认的 `min` 会把每次进步都当成退步（`fit` 会拒绝）。
# 另外，调度器走步时，这个数必须已经存在：教程里的循环在给训练损失赋值之前就用了它的名字，照抄运行，第一轮就以 `NameError` 结束。

# %%
optimizer = sgd()
plateau = lr_scheduler.ReduceLROnPlateau(optimizer)
try:
    for epoch in range(2):
        plateau.step(train_loss_of_this_epoch)  # noqa: F821
        train_loss_of_this_epoch = 0.5
except NameError as error:
    print("NameError:", error)

# %% [markdown] lang="en"
# ## Schedulers in sequence
#
# torch's `SequentialLR` refuses `ReduceLROnPlateau` among its parts, since its `step` gives
# them no value. Surefoot's takes one.

# %% [markdown] lang="zh"
# ## 调度器的串联
#
# torch 的 `SequentialLR` 不接受 `ReduceLROnPlateau`，因为它的 `step` 不传数值。Surefoot 的可以。

# %%
from surefoot.schedules import SequentialLR


def parts(optimizer):
    rising = lr_scheduler.LinearLR(optimizer, start_factor=0.1, total_iters=5)
    return [rising, lr_scheduler.ReduceLROnPlateau(optimizer, factor=0.5, patience=3)]


optimizer = sgd()
try:
    lr_scheduler.SequentialLR(optimizer, parts(optimizer), milestones=[5])
except ValueError as error:
    print("torch:", error)

optimizer = sgd()
schedule = Schedule(optimizer, SequentialLR(optimizer, parts(optimizer), milestones=[5]))
used = []
for loss in val_loss:
    used += schedule.lrs
    optimizer.step()
    schedule.step()
    schedule.epoch(loss)

# %% en="Five epochs up, then a plateau." zh="先升五轮，然后按指标下降。"
figure({"LinearLR, then ReduceLROnPlateau": used}, x="epoch", y="learning rate", steps=True)

# %% [markdown] lang="en"
# ## Try it
#
# - `surefoot plan quickstart scheduler.name=OneCycleLR scheduler.max_lr=0.1` draws a plan in the terminal.
# - Change `T_0` above so that the run ends at the bottom of a cosine. Which of `mistakes` do you get otherwise?
#
# All schedulers, with every argument: [Learning rates](../schedules.md).

# %% [markdown] lang="zh"
# ## 动手试试
#
# - `surefoot plan quickstart scheduler.name=OneCycleLR scheduler.max_lr=0.1` 在终端里画出学习率。
# - 修改上面的 `T_0`，让训练恰好在余弦的谷底结束。否则 `mistakes` 会报告什么？
#
# 全部调度器及其参数见[学习率](../schedules.md)。

# %% tags=["remove-cell"]
assert [finding.name for finding in mistakes(wrong, 5, 10)] == ["rises-again"]
assert watching["watches the training loss"][-1] == 0.1 > watching["watches the validation loss"][-1]
assert used[:2] == [0.010000000000000002, 0.028000000000000004] and used[-1] < used[5] == 0.1

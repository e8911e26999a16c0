# %% [markdown] lang="en"
# # 6. Going on after an interruption
#
# A machine restarts, a quota ends, somebody presses Ctrl-C. What must be saved so that the run that goes on is the run that would
# have been? Here a small training is interrupted in the middle of its third epoch and continued in two ways, and both are compared with
# one that was never touched. It has what real ones have: dropout, shuffled data, momentum, a warmup and a plateau.

# %% [markdown] lang="zh"
# # 6. 中断之后接着训练
#
# 机器重启、配额用完、有人按了 Ctrl-C。要保存哪些东西，接着跑出来的才是“原来那次训练”？
# 下面让一个小训练在第三轮中途中断，用两种办法恢复，再分别与从未中断的训练比较。
# 真实训练里有的它都有：dropout、数据打乱、动量、预热和 plateau。

# %%
import torch
from torch import nn
from torch.optim import lr_scheduler

import surefoot
from surefoot.charts.figure import figure

numbers = torch.Generator().manual_seed(0)
inputs = torch.randn(320, 8, generator=numbers)
targets = (inputs[:, 0] * inputs[:, 1] > 0).long()
train_data, val_data = (inputs[:256], targets[:256]), (inputs[256:], targets[256:])
EPOCHS, KILLED_AT = 12, 40  # 16 steps an epoch: step 40 is in the middle of the third


class Killed(Exception):
    """Stands for whatever ends a process."""


def scheduled(optimizer):
    plateau = lr_scheduler.ReduceLROnPlateau(optimizer, factor=0.3, patience=0)
    return surefoot.Schedule(optimizer, plateau, surefoot.LinearWarmup(optimizer, warmup_period=60))


def parts(schedule_of=scheduled):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(8, 32), nn.ReLU(), nn.Dropout(0.2), nn.Linear(32, 2))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    return model, optimizer, schedule_of(optimizer)


def update(model, optimizer, batch):
    rows, labels = batch
    loss = nn.functional.cross_entropy(model(rows), labels)
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
    return loss.item()


def validate(model):
    model.eval()
    with torch.no_grad():
        loss = nn.functional.cross_entropy(model(val_data[0]), val_data[1]).item()
    model.train()
    return loss


# %% [markdown] lang="en"
# ## The template
#
# The usual template saves a dictionary after each epoch: `epoch`, the model's and the optimizer's `state_dict`, and the loss. It is
# written out here as it is commonly taught.

# %% [markdown] lang="zh"
# ## 常见模板
#
# 常见的模板在每轮结束后保存一个字典：`epoch`、模型和优化器的 `state_dict`，以及损失。下面照一般的教法写出来。


# %%
def template(path, schedule_of=scheduled, resume=False, killed_at=None):
    model, optimizer, schedule = parts(schedule_of)
    loader = torch.utils.data.DataLoader(torch.utils.data.TensorDataset(*train_data), batch_size=16, shuffle=True)
    first, step, history = 0, 0, []
    if resume:
        saved = torch.load(path, weights_only=True)
        model.load_state_dict(saved["model_state_dict"])
        optimizer.load_state_dict(saved["optimizer_state_dict"])
        first = saved["epoch"] + 1
    for epoch in range(first, EPOCHS):
        for batch in loader:
            update(model, optimizer, batch)
            schedule.step()
            step += 1
            if step == killed_at:
                raise Killed
        loss = validate(model)
        schedule.epoch(loss)
        history.append((epoch + 1, loss))
        state = {"epoch": epoch, "model_state_dict": model.state_dict()}
        torch.save({**state, "optimizer_state_dict": optimizer.state_dict(), "loss": loss}, path)
    return model, schedule, history


try:
    template("template.pt", killed_at=KILLED_AT)
except Killed:
    print(f"killed at step {KILLED_AT}")
try:
    template("template.pt", resume=True)
except surefoot.UsageError as error:
    print("\nresumed:", error)

# %% [markdown] lang="en"
# Surefoot's `Schedule` stops at the first fault: rates were loaded without the state that they belong to. Plain torch would go on
# without a word, so let us see what it makes of it: the same template with a warmup that does not look.

# %% [markdown] lang="zh"
# Surefoot 的 `Schedule` 在第一个问题上就停了下来：加载了学习率，却没有加载与之配套的状态。
# 纯 torch 会一声不响地继续，那就看看结果如何：同一个模板，换成不检查的预热。

# %%
import pytorch_warmup


class Unchecked:
    """A plateau within pytorch_warmup's `dampening()`, as such a loop has it."""

    def __init__(self, optimizer):
        self.optimizer = optimizer
        self.plateau = lr_scheduler.ReduceLROnPlateau(optimizer, factor=0.3, patience=0)
        self.warmup = pytorch_warmup.LinearWarmup(optimizer, warmup_period=60)

    def step(self):
        with self.warmup.dampening():
            pass

    def epoch(self, loss):
        with self.warmup.dampening():
            self.plateau.step(loss)

    @property
    def lrs(self):
        return [group["lr"] for group in self.optimizer.param_groups]


whole = template("whole.pt", Unchecked)
try:
    template("template.pt", Unchecked, killed_at=KILLED_AT)
except Killed:
    pass
resumed = template("template.pt", Unchecked, resume=True)


def difference(one, other):
    """The largest difference of any weight."""
    return max((a - b).abs().max().item() for a, b in zip(one.parameters(), other.parameters(), strict=True))


by_template = difference(whole[0], resumed[0])
print(f"largest difference of a weight  {by_template:.3f}")
print(f"learning rate at the end        {whole[1].lrs[0]:.3g} untouched, {resumed[1].lrs[0]:.3g} resumed")
print(f"validation loss at the end      {whole[2][-1][1]:.4f} untouched, {resumed[2][-1][1]:.4f} resumed")

# %% en="The run that was resumed by the template is another run." zh="用模板恢复的训练，已经是另一次训练。"
figure({"untouched": whole[2], "resumed by the template": resumed[2]}, x="epoch", y="validation loss")

# %% [markdown] lang="en"
# What was lost, and nobody said so:
#
# - half an epoch of work, since the file is from the end of an epoch
# - the plateau's best value and its count of bad epochs
# - the step of the warmup, which began again, on top of a rate that was already damped
# - the state of the random number generators: dropout and the order of the data are others
# - the place in the data
# - and had the process been killed while `torch.save` wrote over the old file, the file itself

# %% [markdown] lang="zh"
# 丢了什么？而且没有任何提示：
#
# - 半轮的计算，因为文件是上一轮结束时存的
# - plateau 记住的最好值和没有改善的轮数
# - 预热走到第几步：它从头开始，而且叠加在已经乘过系数的学习率上
# - 随机数生成器的状态：dropout 和数据顺序都变了
# - 数据读到哪里
# - 如果进程正好在 `torch.save` 覆盖旧文件时被杀，连文件也没有了

# %% [markdown] lang="en"
# ## Five lines
#
# A `Loader` knows its place in the data, and a `Checkpointer` saves everything that was given to it together with all random
# number generators. The lines marked (+) are all there is; the step stays as it was.

# %% [markdown] lang="zh"
# ## 五行代码
#
# `Loader` 记得数据读到哪里，`Checkpointer` 保存交给它的一切以及所有随机数生成器的状态。
# 标有 (+) 的就是全部改动，训练步骤本身不变。


# %%
def mended(run, killed_at=None):
    model, optimizer, schedule = parts()
    loader = surefoot.Loader(train_data, batch_size=16, seed=0)  # (+)
    objects = {"model": model, "optimizer": optimizer, "schedule": schedule, "loader": loader}
    history = []
    with surefoot.Checkpointer(run, every="5 steps", **objects) as saver:  # (+)
        saver.resume()  # (+)
        while loader.epoch < EPOCHS:
            for batch in loader:
                update(model, optimizer, batch)
                schedule.step()
                saver.step()  # (+)
                if saver.steps == killed_at:
                    raise Killed
            loss = validate(model)
            schedule.epoch(loss)
            history.append((loader.epoch, loss))
            saver.epoch({"val/loss": loss})  # (+)
    return model, schedule, history


whole = mended("runs/whole")
try:
    mended("runs/killed", killed_at=KILLED_AT)
except Killed:
    print(f"killed at step {KILLED_AT}")
resumed = mended("runs/killed")
by_surefoot = difference(whole[0], resumed[0])
print(f"largest difference of a weight  {by_surefoot}")
print(f"learning rate at the end        {whole[1].lrs[0]:.3g} untouched, {resumed[1].lrs[0]:.3g} resumed")
print(f"validation loss at the end      {whole[2][-1][1]:.4f} untouched, {resumed[2][-1][1]:.4f} resumed")

# %% en="The resumed run (from its third epoch on) lies on the untouched one." zh="恢复的训练（从第三轮起）与未中断的完全重合。"
figure({"untouched": whole[2], "resumed by surefoot": resumed[2]}, x="epoch", y="validation loss", dots=True)

# %% [markdown] lang="en"
# Not close: equal. With `fit` it is one argument, `resume=True`; with a recipe it is a command, `surefoot resume RUN`.
#
# ## Do not believe it: kill it
#
# `surefoot verify quickstart --kills 3` trains a recipe twice, kills the second run three times with SIGKILL at random moments, and
# compares every byte of both. `surefoot verify -- python my_loop.py` does so with a loop of your own. What is kept, and why it is enough:
# [Never lose a step](../reliability.md).

# %% [markdown] lang="zh"
# 不是接近，而是相等。用 `fit` 时只需一个参数 `resume=True`；用配方文件时是一条命令 `surefoot resume RUN`。
#
# ## 不必相信，亲手杀掉试试
#
# `surefoot verify quickstart --kills 3` 把同一个配方训练两次，第二次在随机时刻用 SIGKILL 杀掉三次，然后逐字节比较。
# 自己写的循环用 `surefoot verify -- python my_loop.py`。保存了什么、为什么足够，见[一步也不丢](../reliability.md)。

# %% tags=["remove-cell"]
assert by_template > 0.01 and by_surefoot == 0.0
assert whole[2][-len(resumed[2]) :] == resumed[2]

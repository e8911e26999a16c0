# %% [markdown] lang="en"
# # 7. The whole training
#
# The last chapter of most tutorials is a loop: epochs, batches, validation, a curve. Here it is, written out, on garments that Surefoot
# draws itself. Then the same training as a recipe of nine lines, and a look at whether it is the same.

# %% [markdown] lang="zh"
# # 7. 完整的训练
#
# 多数教程的最后一章都是一个循环：轮、批、验证、曲线。这里先把它写出来，数据是 Surefoot 自己画的服装图片。
# 然后用九行配方做同一次训练，再看看两者是否真的相同。

# %%
import json
from pathlib import Path

import torch
from torch import nn

import surefoot
from surefoot.charts.figure import figure
from surefoot.data.garments import garments
from surefoot.models import LeNet5

EPOCHS, BATCH = 4, 32
data = garments(train_size=480, val_size=120)
print(data.classes)

# %% [markdown] lang="en"
# ## The loop
#
# Nothing of Surefoot is in it but the `Loader`, which shuffles and applies the preprocessing. Note what even a plain loop must remember: the
# modes, `zero_grad`, `no_grad`, and to weigh the batches of validation by their sizes.

# %% [markdown] lang="zh"
# ## 循环
#
# 除了负责打乱和预处理的 `Loader`，这里没有用到 Surefoot。注意，最普通的循环也要记住这么多事：
# 训练与评估模式、`zero_grad`、`no_grad`，以及验证时按批大小加权。

# %%
torch.manual_seed(0)
model = LeNet5()
loss_fn = nn.CrossEntropyLoss()
optimizer = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9)
scheduler = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, T_max=EPOCHS)
loader = surefoot.Loader(data.train, batch_size=BATCH, seed=0, preprocessing=data.preprocessing)
val_loader = surefoot.Loader(data.val, batch_size=50, shuffle=False, preprocessing=data.preprocessing)

by_hand, of_means = [], []
for epoch in range(EPOCHS):
    model.train()
    for images, labels in loader:
        optimizer.zero_grad()
        loss = loss_fn(model(images), labels)
        loss.backward()
        optimizer.step()
    scheduler.step()
    model.eval()
    total, means = 0.0, []
    with torch.no_grad():
        for images, labels in val_loader:
            loss = loss_fn(model(images), labels).item()
            total += loss * len(labels)
            means.append(loss)
    by_hand.append(total / len(val_loader.source))
    of_means.append(sum(means) / len(means))
    print(f"epoch {epoch + 1}  val loss {by_hand[-1]:.4f}  (mean of the batches' means {of_means[-1]:.4f})")

# %% [markdown] lang="en"
# The tutorial divides by the number of batches. Its batches are all of four samples and ten thousand is a multiple of four, so it is right there; with
# the short last batch above it is not. Other things that it leaves to luck:
#
# - the name of the training loss is used before it has a value
# - the plateau is stepped inside of the warmup's block from the end of the ninth epoch on only because of a condition about the warmup
# - the file of the best model is written in place: a kill at that moment loses the old one and the new one
# - scheduler, warmup, random numbers and the place in the data are saved nowhere, so a run that stops starts over

# %% [markdown] lang="zh"
# 教程里除以的是批数。那里每批都是四个样本，一万又是四的倍数，所以恰好正确；上面最后一批较短，就不对了。
# 教程还有几处靠的是运气：
#
# - 训练损失的名字在赋值之前就被使用
# - plateau 从第九轮结束起在预热的代码块里调用，只是因为一个与预热有关的条件
# - 最佳模型的文件是原地覆盖的：如果正好在那时被杀，新旧两个都没了
# - 调度器、预热、随机数和数据位置都没有保存，训练一停就得从头再来

# %% [markdown] lang="en"
# ## The recipe
#
# The same training, with everything that the loop lacks: checkpoints, resume, a journal, TensorBoard, a report, a model that can be used.

# %% [markdown] lang="zh"
# ## 配方
#
# 同一次训练，再加上循环里没有的一切：检查点、恢复、日志、TensorBoard、报告，以及可以直接使用的模型。

# %%
Path("garments.yaml").write_text("""\
epochs: 4
seed: 0
model: LeNet5
data: {name: garments, train_size: 480, val_size: 120, batch_size: 32}
loss: CrossEntropyLoss
optimizer: {name: SGD, lr: 0.05, momentum: 0.9}
scheduler: CosineAnnealingLR
checkpoint: {every: 1 epoch, keep_best: val/accuracy}
execution: plain
""")
from surefoot.cli import main

exit_codes = main(["check", "garments.yaml"]), main(["train", "garments.yaml", "--run", "runs/garments"])

# %% [markdown] lang="en"
# In a terminal that is `surefoot check garments.yaml` and `surefoot train garments.yaml`. Every number is in `metrics.jsonl`, one record a line.

# %% [markdown] lang="zh"
# 在终端里就是 `surefoot check garments.yaml` 和 `surefoot train garments.yaml`。所有数字都在 `metrics.jsonl` 里，每行一条记录。

# %%
records = [json.loads(line) for line in Path("runs/garments/metrics.jsonl").read_text().splitlines()]
by_recipe = [r["loss"] for r in records if r["kind"] == "epoch" and r["split"] == "val"]
for mine, its in zip(by_hand, by_recipe, strict=True):
    print(f"by hand {mine:.6f}   by recipe {its:.6f}")

# %% en="One curve: the recipe is the loop." zh="两条曲线重合：配方就是那个循环。"
figure({"by hand": by_hand, "by recipe": by_recipe}, x="epoch", y="validation loss", dots=True)

# %% [markdown] lang="en"
# ## TensorBoard
#
# Its files are in the run's directory and were written on the way: `tensorboard --logdir runs` shows them, all runs side by side. They
# are made from `metrics.jsonl`, so after a resume no point stands there twice. Here they are read as TensorBoard reads them.

# %% [markdown] lang="zh"
# ## TensorBoard
#
# 它的文件就在训练目录里，训练时一并写好：运行 `tensorboard --logdir runs` 即可查看，多次训练并排显示。
# 这些文件由 `metrics.jsonl` 生成，所以恢复训练之后也不会有重复的点。下面照 TensorBoard 的方式把它们读出来。

# %%
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

events = EventAccumulator("runs/garments/tensorboard")
events.Reload()
print(*events.Tags()["scalars"], sep="  ")
in_tensorboard = [event.value for event in events.Scalars("loss/val")]
print("val loss:", *(f"{value:.6f}" for value in in_tensorboard))

# %% [markdown] lang="en"
# ## What is left to be read

# %% [markdown] lang="zh"
# ## 留下了什么

# %%
for path in sorted(Path("runs/garments").iterdir()):
    print(path.name + ("/" if path.is_dir() else ""))

surefoot.tracking.ReportPage("runs/garments")

# %% [markdown] lang="en"
# - `report.html` is one page with curves and the confusion matrix; it needs no network.
# - For both losses in one chart of TensorBoard's Scalars tab, write `tensorboard: together` in the recipe.
# - `surefoot eval runs/garments` and `surefoot predict runs/garments picture.png` use the model.
# - `surefoot resume runs/garments epochs=8` goes on.
#
# The tutorial's own job, at its own length, is packaged: `surefoot train fashion_mnist`. See [What a run leaves to be read](../tracking.md) and
# [the recipe](../recipe.md).

# %% [markdown] lang="zh"
# - `report.html` 是一个独立网页，有曲线和混淆矩阵，不需要联网。
# - 想让两种损失出现在 TensorBoard 的 Scalars 页的同一张图里，在配方中写 `tensorboard: together`。
# - `surefoot eval runs/garments` 和 `surefoot predict runs/garments picture.png` 使用模型。
# - `surefoot resume runs/garments epochs=8` 接着训练。
#
# 教程里的那个任务按原来的长度随包提供：`surefoot train fashion_mnist`。另见[训练留下的记录](../tracking.md)和[配方](../recipe.md)。

# %% tags=["remove-cell"]
assert in_tensorboard == [torch.tensor(value).item() for value in by_recipe]
assert all(abs(a - b) < 1e-6 for a, b in zip(by_hand, by_recipe, strict=True)), (by_hand, by_recipe)
assert any(abs(a - b) > 1e-4 for a, b in zip(by_hand, of_means, strict=True))

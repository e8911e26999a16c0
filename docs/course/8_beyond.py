# %% [markdown] lang="en"
# # 8. Beyond: your data, your objective, many processes
#
# So far a batch was a pair of inputs and targets, and a loss compared two tensors. Much of what people train is no such thing. Three steps
# further, each in a few lines.

# %% [markdown] lang="zh"
# # 8. 更进一步：自己的数据、自己的目标、多进程
#
# 到目前为止，一个批次是输入和目标，损失函数比较两个张量。实际训练的很多东西并不是这样。再往前走三步，每步只要几行。

# %%
import torch
from torch import nn

import surefoot
from surefoot import RunOptions
from surefoot.charts.figure import figure

quiet = RunOptions(progress=False)

# %% [markdown] lang="en"
# ## Your own data
#
# A `Dataset` of torch is taken as it is; so are arrays, data frames, folders of pictures and streams. What a sample is, is yours: a tuple, a
# dictionary, a dataclass. Where samples differ in length, a `collate` function makes the batch. Here sequences of numbers,
# padded; the model gets them with their lengths.

# %% [markdown] lang="zh"
# ## 自己的数据
#
# torch 的 `Dataset` 拿来就能用，数组、数据框、图片文件夹和数据流也一样。样本是什么形式由你定：元组、字典、dataclass 都行。
# 样本长短不一时，用 `collate` 函数拼成批次。下面是补齐的数字序列，模型同时拿到长度。

# %%
from surefoot.data import DatasetSource


class Sequences(torch.utils.data.Dataset):
    """Is the sum of the sequence above zero?"""

    def __len__(self):
        return 256

    def __getitem__(self, index):
        numbers = torch.randn(3 + index % 9, generator=torch.Generator().manual_seed(index))
        return numbers, int(numbers.sum() > 0)


def padded(samples):
    rows, labels = zip(*samples, strict=True)
    lengths = torch.tensor([len(row) for row in rows])
    return {"rows": nn.utils.rnn.pad_sequence(rows, batch_first=True), "lengths": lengths}, torch.tensor(labels)


class Summing(nn.Module):
    def __init__(self):
        super().__init__()
        self.cell = nn.GRU(1, 16, batch_first=True)
        self.head = nn.Linear(16, 2)

    def forward(self, rows, lengths):
        states, _ = self.cell(rows[..., None])
        return self.head(states[torch.arange(len(rows)), lengths - 1])


torch.manual_seed(0)
model = Summing()
optimizer = torch.optim.Adam(model.parameters(), lr=0.02)
data = DatasetSource(Sequences(), collate=padded)
result = surefoot.fit(model, nn.CrossEntropyLoss(), optimizer, data, epochs=6, batch_size=32, run=quiet)
of_sequences = result.metrics["train/accuracy"]
print(f"accuracy {of_sequences:.3f} after {result.steps} steps")

# %% [markdown] lang="en"
# ## Your own objective
#
# An objective is a function of model and batch. It may return more numbers than the loss; they are averaged and recorded under their names,
# and `keep_best`, early stopping or a plateau can watch them. Here an autoencoder, which has no targets, with a penalty on its code.

# %% [markdown] lang="zh"
# ## 自己的目标
#
# 目标（objective）是模型和批次的函数。除了损失，它还可以返回别的数：这些数会取平均、按名称记录，
# `keep_best`、早停和 plateau 都可以监视它们。下面是没有目标值的自编码器，对编码加了惩罚项。

# %%
torch.manual_seed(0)
rows = torch.randn(256, 4) @ torch.randn(4, 16)  # sixteen numbers, four that matter
encoder, decoder = nn.Linear(16, 4), nn.Linear(4, 16)
model = nn.ModuleDict({"encoder": encoder, "decoder": decoder})


@surefoot.objective
def reconstruction(model, rows):
    code = model["encoder"](rows)
    error = (model["decoder"](code) - rows).square().mean()
    size = code.square().mean()
    return {"loss": error + 0.01 * size, "error": error, "code": size}


optimizer = torch.optim.Adam(model.parameters(), lr=0.02)
errors = []
for epochs in (2, 5, 10, 20):
    result = surefoot.fit(
        model,
        reconstruction,
        optimizer,
        (rows,),
        epochs=epochs,
        batch_size=32,
        run=quiet,
        run_dir="runs/auto",
        resume=True,
    )
    errors.append((epochs, result.metrics["train/error"]))
    print(f"epoch {epochs:2}  error {result.metrics['train/error']:.4f}  code {result.metrics['train/code']:.3f}")

# %% en="The error alone, without the penalty; each dot is a run that was stopped and resumed." zh="只看重建误差，不含惩罚项；每个点都是一次停下再恢复的训练。"
figure({"error": errors}, x="epoch", y="error", dots=True)

# %% [markdown] lang="en"
# ## Your own step
#
# Two networks in turn (a GAN), rewards, a layer at a time: keep your loop, and give its parts to a `Checkpointer` by name. Chapter 6 has
# the lines; [the gallery](../gallery.md) has many jobs in a file each.
#
# ## Many processes
#
# `torchrun --nproc-per-node 4 -m surefoot train recipe.yaml --dir runs/four` trains the same recipe on four processes, a GPU each where there are
# GPUs; `torchrun --nproc-per-node 4 train.py` does so with a script that calls `surefoot.fit`. Nothing in either changes: `batch_size` stays the
# size of the whole batch, every sample is seen once an epoch and counted once in evaluation (a plain `DistributedSampler` repeats some to make the
# shares equal), and rank 0 alone writes. In a loop of your own, `surefoot.World.join()` is what a `Checkpointer`, a `Journal` and, as its
# `share`, a `Loader` take. What holds, and which bits: [Many processes](../distributed.md).
#
# How many shares there are must not change the mean. It does, as soon as means of ranks are averaged and the shares differ; here is the
# fault, in one process:

# %% [markdown] lang="zh"
# ## 自己的训练步骤
#
# 两个网络轮流训练（GAN）、强化学习、逐层训练：保留自己的循环，把各部分按名字交给 `Checkpointer`。代码见第 6 章；
# [示例集](../gallery.md)里有许多任务，各一个文件。
#
# ## 多进程
#
# `torchrun --nproc-per-node 4 -m surefoot train recipe.yaml --dir runs/four` 用四个进程训练同一个配方，有 GPU 时每个进程一块；
# 调用 `surefoot.fit` 的脚本则用 `torchrun --nproc-per-node 4 train.py`。配方和脚本都不用改：`batch_size` 仍是整个批次的大小，
# 每轮每个样本只看一次，评估时也只算一次（普通的 `DistributedSampler` 为了均分会重复一些样本），只有 0 号进程写文件。
# 在自己的循环里，把 `surefoot.World.join()` 交给 `Checkpointer`、`Journal`，并作为 `share` 交给 `Loader`。
# 保证什么、哪些逐位相同，见[多进程](../distributed.md)。
#
# 分成几份不应改变均值。可是只要各份大小不等，把各进程的均值再平均，结果就变了。下面在一个进程里演示这个错误：

# %%
losses = torch.tensor([0.2, 0.4, 0.1, 0.3, 2.0])
shares = losses.split(2)  # three ranks: two samples, two, one
mean_of_means = torch.stack([share.mean() for share in shares]).mean().item()
print(f"mean of the ranks' means {mean_of_means:.3f}, mean over the samples {losses.mean().item():.3f}")

# %% [markdown] lang="en"
# ## That was the course
#
# What to read next: [the recipe](../recipe.md), [objectives](../objectives.md), [data](../data.md). What was done to break Surefoot, and what came of
# it: [Never lose a step](../reliability.md).

# %% [markdown] lang="zh"
# ## 教程到此结束
#
# 接着读：[配方](../recipe.md)、[目标](../objectives.md)、[数据](../data.md)。为了弄坏 Surefoot 做过哪些事、结果如何，
# 见[一步也不丢](../reliability.md)。

# %% tags=["remove-cell"]
assert of_sequences > 0.8 and errors[-1][1] < 0.3 * errors[0][1]
assert abs(mean_of_means - losses.mean().item()) > 0.1

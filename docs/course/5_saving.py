# %% [markdown] lang="en"
# # 5. Saving and loading: which file for what
#
# There are two things to save, and they should not be mixed up. A **model** is to be used, by anyone, years from now. A **checkpoint** is to
# go on from, here, with everything that the run had; it is the next chapter. This one is about models.

# %% [markdown] lang="zh"
# # 5. 保存与加载：什么用途存什么文件
#
# 要保存的东西有两种，不要混淆。**模型**是拿来用的，任何人、若干年后都要能用。**检查点**是用来接着训练的，
# 需要训练时的一切；那是下一章的内容。本章讲模型。

# %%
import io
import pickle
from pathlib import Path

import torch
from torch import nn

import surefoot


class Net(nn.Module):
    def __init__(self, hidden=16):
        super().__init__()
        self.body = nn.Linear(8, hidden)
        self.head = nn.Linear(hidden, 3)

    def forward(self, inputs):
        return self.head(self.body(inputs).relu())


torch.manual_seed(0)
model = Net().eval()
inputs = torch.randn(4, 8)
outputs = model(inputs)

# %% [markdown] lang="en"
# ## Parameters: state_dict
#
# `state_dict` maps names to tensors. It holds no code, so it outlives the class that made it. To load it, make the model and fill it.

# %% [markdown] lang="zh"
# ## 参数：state_dict
#
# `state_dict` 是名称到张量的映射，不含代码，所以不依赖当初的类。加载时先建模型，再填入参数。

# %%
torch.save(model.state_dict(), "weights.pth")
again = Net().eval()
print(again.load_state_dict(torch.load("weights.pth", weights_only=True)))
print("same outputs:", torch.equal(again(inputs), outputs))

# %% [markdown] lang="en"
# `strict=False` is no cure for an error here: it leaves what does not match at random values and says so only in what it returns, which nobody reads. A
# layer that was renamed then stays untrained.

# %% [markdown] lang="zh"
# 遇到报错时，`strict=False` 不是解药：对不上的参数保持随机值，而它只在返回值里提一句，没人会看。于是改过名的层等于没有训练过。


# %%
class Renamed(Net):
    def __init__(self):
        super().__init__()
        self.classifier = self.head
        del self.head

    def forward(self, inputs):
        return self.classifier(self.body(inputs).relu())


renamed = Renamed().eval()
renamed.load_state_dict(torch.load("weights.pth", weights_only=True), strict=False)
kept_random = not torch.equal(renamed(inputs), outputs)
print("loaded without an error, and wrong:", kept_random)
try:
    surefoot.import_weights("weights.pth", Renamed())
except surefoot.UsageError as error:
    print(error)

# %% [markdown] lang="en"
# ## The whole model: why not
#
# `torch.save(model)` writes a pickle, and a pickle names a class by the module and the name that it had. Rename either, and the file is
# closed for good. Below the class is taken away, as a renaming would.

# %% [markdown] lang="zh"
# ## 整个模型：为什么不好
#
# `torch.save(model)` 写的是 pickle，而 pickle 按当时的模块名和类名记住类。任何一个改名，文件就再也打不开。
# 下面把类拿走，相当于改了名。

# %%
torch.save(model, "whole.pth")
kept = Net
del Net
try:
    torch.load("whole.pth", weights_only=False)
except AttributeError as error:
    print("AttributeError:", str(error)[:80])
Net = kept

# %% [markdown] lang="en"
# The parameters are still in there, and Surefoot reads them without running anything of the file:

# %% [markdown] lang="zh"
# 参数还在文件里，Surefoot 不执行文件中的任何内容就能读出来：

# %%
rescued = Net().eval()
surefoot.import_weights("whole.pth", rescued)
print("same outputs:", torch.equal(rescued(inputs), outputs))

# %% [markdown] lang="en"
# ## Why not pickle
#
# A pickle is a program. Loading it runs it, with all that you may do on your machine. This one is harmless: it writes a file.

# %% [markdown] lang="zh"
# ## 为什么不用 pickle
#
# pickle 是一段程序，加载就是执行，你在这台机器上能做什么，它就能做什么。下面这个是无害的：它只写一个文件。


# %%
class Trojan:
    def __reduce__(self):
        return Path.write_text, (Path("I_was_here.txt"), "and could have done anything")


torch.save({"weight": torch.zeros(2), "note": Trojan()}, "downloaded.pth")
torch.load("downloaded.pth", weights_only=False)
executed = Path("I_was_here.txt").exists()
print("torch.load, weights_only=False: its code was run:", executed)
Path("I_was_here.txt").unlink()
try:
    torch.load("downloaded.pth", weights_only=True)
except pickle.UnpicklingError:
    print("torch.load, weights_only=True:  refused")
linear = nn.Linear(2, 1, bias=False)
try:
    surefoot.import_weights("downloaded.pth", linear, cast=False)
except surefoot.UsageError as error:
    print("surefoot:                       read, not run;", str(error).splitlines()[0])
print("its code was run:", Path("I_was_here.txt").exists())

# %% [markdown] lang="en"
# ## A model that says what it is
#
# Weights alone do not tell what class 2 is, or how a pixel becomes a number. `save_model` writes a directory that does: the weights as
# safetensors (tensors and nothing else), their digest, the classes, the preprocessing and the results.

# %% [markdown] lang="zh"
# ## 会自我介绍的模型
#
# 光有权重，不知道第 2 类是什么，也不知道像素怎样变成数。`save_model` 写出的目录里都有：safetensors 格式的权重（只有张量）、
# 校验值、类别、预处理和成绩。

# %%
surefoot.save_model(model, "my_model", classes=["cat", "dog", "hare"], input_shape=(8,), metrics={"val/accuracy": 0.9})
print(*sorted(path.name for path in Path("my_model").iterdir()), sep="  ")
loaded = surefoot.load_model("my_model", model=Net())
opened = surefoot.open_model("my_model", Net())
print("same outputs:", torch.equal(loaded(inputs), outputs), " classes:", opened.classes)

# %% en="How large the same weights are in each form, in bytes." zh="同样的权重以各种形式保存时的字节数。"
from surefoot.charts.figure import figure

sizes = {}
for hidden in (16, 64, 256, 1024):
    wide, buffer = Net(hidden), io.BytesIO()
    torch.save(wide.state_dict(), buffer)
    sizes.setdefault(".pth", []).append((hidden, float(buffer.tell())))
    surefoot.export(wide, "wide.safetensors", info=opened.info)
    sizes.setdefault(".safetensors", []).append((hidden, float(Path("wide.safetensors").stat().st_size)))
    sizes.setdefault("the numbers alone", []).append((hidden, 4.0 * sum(p.numel() for p in wide.parameters())))
figure(sizes, x="hidden units", y="bytes", log=True, dots=True)

# %% [markdown] lang="en"
# ## Without your code, without PyTorch
#
# `surefoot export RUN --to m.pt2` writes the computation itself, `--to m.onnx` one that runs without PyTorch. Each is opened again and
# compared with the live model before it is kept. All formats in one table: [Saving, loading, exporting](../saving.md).

# %% [markdown] lang="zh"
# ## 不需要你的代码，也不需要 PyTorch
#
# `surefoot export RUN --to m.pt2` 写出计算过程本身，`--to m.onnx` 写出脱离 PyTorch 也能运行的模型。
# 写好之后都会重新打开，与原模型比较，通过才保留。各种格式的一览表：[保存、加载与导出](../saving.md)。

# %% tags=["remove-cell"]
assert kept_random and executed and not Path("I_was_here.txt").exists()
assert torch.equal(rescued(inputs), outputs) and torch.equal(loaded(inputs), outputs)

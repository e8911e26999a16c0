"""The format of a file, by its content, and for each that is not read how to get a file that is."""

from __future__ import annotations

import os
import re
import shlex
from dataclasses import dataclass
from pathlib import Path

from .archive import names_in, open_file
from .torch_file import LEGACY_MAGIC

SAVE = "torch.save(model.state_dict(), 'weights.pth')"
_NUMPY = "safetensors.numpy.save_file(arrays, 'weights.safetensors') (pip install safetensors)"

# What files of each kind are, and the way from there; the kinds that are read are not in it.
EXPLANATIONS = {
    "torchscript": "is a TorchScript program, not a file of weights; where it can be trusted, make one: "
    "torch.save(torch.jit.load(FILE, map_location='cpu').state_dict(), 'weights.pth')",
    "pickle": f"is a bare pickle; loading it would run whatever it says. Make a file of the state_dict alone: {SAVE}",
    "gzip": "is compressed by gzip; unpack it first (gunzip -k FILE)",
    "packed": "is a compressed archive; unpack it first and name the file in it",
    "zip archive": "is a zip archive of other files; unpack it first (unzip FILE) and name the file of weights in it",
    "html": "is a web page (HTML) and no model: the server sent a login, licence or error page in the file's place. "
    "Download it again, by the direct link to the file (on the Hugging Face hub /resolve/ and not /blob/)",
    "lfs": "is a pointer of git-lfs, which stands for the file itself; fetch that: git lfs pull",
    "hdf5": f"is an HDF5 file (.h5, Keras); read its arrays with h5py and write them: {_NUMPY}. Kernels of "
    "TensorFlow have another order of dimensions than torch's: transpose them",
    "keras": "is a Keras model (.keras); in Keras: m.save_weights('w.weights.h5'), then read its arrays with h5py "
    f"and write them: {_NUMPY}",
    "npz": "is a .npz of NumPy arrays; write them as safetensors: "
    "safetensors.numpy.save_file(dict(numpy.load(FILE)), 'weights.safetensors') (pip install safetensors)",
    "npy": "is one NumPy array (.npy), not a file of named weights",
    "gguf": "is a GGUF file (llama.cpp), whose weights are quantized for that program; take the model's .safetensors",
    "tflite": "is a TensorFlow Lite model (.tflite); it is a program without named weights: train from the source "
    "model's .h5 or .safetensors",
    "onnx": "is an ONNX program and no file of weights: use it as it is with `surefoot eval FILE --data NAME` and "
    "`surefoot predict FILE IMAGE`, or take its arrays: {i.name: onnx.numpy_helper.to_array(i) for i in "
    "onnx.load(FILE).graph.initializer}",
    "pt2": "is an exported program (.pt2), not a file of weights: use it as it is with `surefoot eval FILE --data "
    "NAME` and `surefoot predict FILE IMAGE`",
    "empty": "is empty: the download or the copy did not finish",
    "json": "is JSON and no weights; name the folder that it lies in, or the .safetensors beside it",
    "unknown": "is no file of weights that Surefoot knows (.safetensors, or .pth/.pt/.bin/.ckpt by torch.save)",
}
READ = ("safetensors", "zip", "legacy", "tar", "index")

_HEADS = (
    (b"\x89HDF\r\n\x1a\n", "hdf5"),
    (b"GGUF", "gguf"),
    (b"\x93NUMPY", "npy"),
    (b"version https://git-lfs.github.com/spec/", "lfs"),
    (b"\x1f\x8b", "gzip"),
    (b"7z\xbc\xaf\x27\x1c", "packed"),
    (b"\xfd7zXZ\0", "packed"),
    (b"\x28\xb5\x2f\xfd", "packed"),
    (b"BZh", "packed"),
    (b"Rar!", "packed"),
)


@dataclass(frozen=True)
class Format:
    """The `kind` of a file (one of `READ`, or a key of `EXPLANATIONS`)."""

    path: Path
    kind: str

    @property
    def explanation(self) -> str:
        """What the file is, and the way from there, with its name in the commands."""
        text = EXPLANATIONS.get(self.kind, EXPLANATIONS["unknown"]).replace("(FILE", f"({os.fspath(self.path)!r}")
        return text.replace(" FILE", " " + shlex.quote(os.fspath(self.path)))


def recognise(path: str | Path) -> Format:
    """The format of a file that the user named, by its content. Raises `BadFile` for what is no regular file."""
    path = Path(path)
    with open_file(path) as file:
        head = file.read(512)
        kind = _kind(head, path)
        if kind == "zip":
            kind = _of_zip(names_in(file))
    return Format(path, kind)


def _kind(head: bytes, path: Path) -> str:
    if not head:
        return "empty"
    if head.startswith(b"PK\x03\x04"):
        return "zip"
    for start, kind in _HEADS:
        if head.startswith(start):
            return kind
    if LEGACY_MAGIC.match(head):
        return "legacy"
    if len(head) >= 9 and head[8:9] == b"{":
        return "safetensors"
    if head[257:262] == b"ustar" or re.match(rb"(sys_info|pickle|tensors|storages)\0{20}", head):
        return "tar"
    if head[4:8] == b"TFL3":
        return "tflite"
    if re.match(rb"(\xef\xbb\xbf)?\s*<(!doctype|html|head|\?xml|!--)", head, re.I):
        return "html"
    if head[:1] == b"\x80" or re.match(rb"c[A-Za-z_][\w.]*\n|\([a-zA-Z(]|[\]}][q.(]", head):
        return "pickle"
    # A protobuf: the version of ONNX's form, then the names of its maker, its graph or its operators.
    if re.match(rb"\x08[\x01-\x20](\x12|\x1a|\x22|\x28|\x32|\x3a|\x42)", head) or path.suffix == ".onnx":
        return "onnx"
    if re.match(rb"\s*[{\[]", head):
        return "index" if path.name.endswith(".index.json") else "json"
    return "unknown"


def _of_zip(names: list[str]) -> str:
    """A zip archive of torch's, or what else the names in it say."""
    inner = {name.partition("/")[2] for name in names}
    if inner & {"models/model.json", "archive_format"}:
        return "pt2"
    if "constants.pkl" in inner or "bytecode.pkl" in inner or any(n.startswith("code/") for n in inner):
        return "torchscript"
    if names and all(name.endswith(".npy") for name in names):
        return "npz"
    if "model.weights.h5" in names:
        return "keras"
    # Where the directory cannot be read, torch's reader says what is damaged.
    plain = names and "data.pkl" not in inner and not any(n.startswith("data/") for n in inner)
    return "zip archive" if plain else "zip"

"""The hub's own library and the trackers themselves, servers on loopback: part of `python3 dev.py libraries`."""

from __future__ import annotations

import contextlib
import io
import os
import tempfile
from pathlib import Path

import hub_server

PACKAGES = ("mlflow", "wandb")
CASES = []


def case(function):
    """Mark a function as a case: it raises where something is wrong, and returns what is printed."""
    CASES.append(function)
    return function


@contextlib.contextmanager
def somewhere(**variables: str):
    """A new current directory, and environment variables, until the block ends."""
    before, where = dict(os.environ), os.getcwd()
    home = Path(tempfile.mkdtemp(prefix="surefoot-real-"))
    os.chdir(home)
    os.environ.update(variables)
    try:
        yield home
    finally:
        os.chdir(where)
        os.environ.clear()
        os.environ.update(before)


def command(*words: str) -> tuple[int, str]:
    """Exit code of a command, and what it prints, standard error included."""
    from surefoot.cli import main

    with contextlib.redirect_stdout(io.StringIO()) as out, contextlib.redirect_stderr(out):
        code = main(list(words))
    return code, out.getvalue()


@case
def pushed_and_pulled() -> str:
    """`surefoot push` by huggingface_hub itself: what is published is downloaded and opened; what fails is one line."""
    import subprocess
    import sys

    with hub_server.running() as hub:
        # Read once, when huggingface_hub is imported.
        variables = {"HF_ENDPOINT": hub.address, "HF_TOKEN": hub_server.TOKEN, "HF_HUB_DISABLE_XET": "1"}
        variables |= {"HF_HUB_OFFLINE": "0", "HF_HUB_ETAG_TIMEOUT": "5", "HF_HUB_DISABLE_TELEMETRY": "1"}
        with somewhere(**variables) as home:
            os.environ["HF_HOME"] = str(home / "hf")

            def surefoot(*words: str) -> subprocess.CompletedProcess:
                return subprocess.run([sys.executable, "-m", "surefoot", *words], capture_output=True, text=True)

            small = ("data.train_size=64", "data.val_size=32", "epochs=2", "execution=plain", "tensorboard=false")
            assert surefoot("train", "quickstart", "--run", "run", *small).returncode == 0
            done = surefoot("push", "run", "ada/lenet", "--private", "--message", "first")
            assert done.returncode == 0 and not done.stderr, done
            assert f"{hub.address}/ada/lenet: " in done.stdout, done.stdout
            assert hub.commits == [("ada/lenet", "first")] and hub.private == {"ada/lenet"}
            published = dict(hub.repositories["ada/lenet"])
            code = (
                "import huggingface_hub, surefoot, torch\n"
                "card = huggingface_hub.ModelCard.load('DIR/README.md')\n"
                "print(card.data.library_name, card.data.pipeline_tag, card.data.eval_results[0].metric_name)\n"
                "where = huggingface_hub.snapshot_download('ada/lenet', local_dir='DIR')\n"
                "print(surefoot.open_model(where).predict(torch.zeros(1, 1, 28, 28, dtype=torch.uint8)).shape)\n"
            )
            lines = code.splitlines()
            code = "\n".join([lines[0], lines[3], *lines[1:3], lines[4]]).replace("DIR", "pulled")
            done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
            assert done.returncode == 0, done.stderr
            first, second = done.stdout.splitlines()
            assert first.startswith("surefoot image-classification") and second == "torch.Size([1, 10])", done.stdout
            for fails, at, told in (
                (401, "/api/", "log in by `hf auth login`"),
                (403, "/commit/", "your token may not write there"),
                (404, "/preupload/", "has no such user or organisation"),
                (500, "/commit/", "a commit is there whole or not at all"),
                ("cut", "/commit/", "a commit is there whole or not at all"),
            ):
                hub.fails, hub.at = fails, at
                done = surefoot("push", "run", "ada/lenet", "--message", "second")
                assert done.returncode == 1 and told in done.stderr, (fails, done)
                assert len(done.stderr.strip().splitlines()) == 1, done.stderr
                assert hub.repositories["ada/lenet"] == published
            hub.fails = 0
            os.environ["HF_ENDPOINT"] = "http://127.0.0.1:9"
            done = surefoot("push", "run", "ada/lenet")
            assert done.returncode == 1 and len(done.stderr.strip().splitlines()) == 1, done
    return f"{len(published)} files; 6 failures, a line each"


@case
def transformers_from_a_pushed_folder() -> str:
    """A model of transformers that was trained and written by `push --to` is one that transformers opens."""
    import torch
    from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification, BertConfig, GPT2Config

    import surefoot

    sizes = {"num_hidden_layers": 2, "hidden_size": 32, "num_attention_heads": 2, "intermediate_size": 64}
    bert = BertConfig(vocab_size=100, num_labels=3, **sizes)
    gpt2 = GPT2Config(vocab_size=100, n_positions=16, n_embd=32, n_layer=2, n_head=2, bos_token_id=0, eos_token_id=0)
    tokens = torch.arange(24).reshape(2, 12)
    with somewhere():
        for name, kind, config in (
            ("bert", AutoModelForSequenceClassification, bert),
            ("gpt2", AutoModelForCausalLM, gpt2),
        ):
            model = kind.from_config(config).eval()
            surefoot.save_model(model, name, classes=["a", "b", "c"] if name == "bert" else None)
            code, out = command("push", name, "--to", f"{name}-hub")
            assert code == 0, out
            opened = kind.from_pretrained(f"{name}-hub").eval()
            with torch.no_grad():
                assert torch.equal(opened(tokens).logits, model(tokens).logits), name
            if name == "bert":
                assert opened.config.id2label == {0: "a", 1: "b", 2: "c"}
            again = surefoot.load_model(f"{name}-hub", trust_code=True)
            assert torch.equal(again(tokens).logits, model(tokens).logits)
    return "BERT and GPT-2"

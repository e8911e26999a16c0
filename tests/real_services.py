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


SCRIPT = """
import os, signal, sys
import torch
import surefoot
from surefoot.tracking import Progress

epochs, killed_at, trackers = int(sys.argv[1]), int(sys.argv[2]), sys.argv[3:]


class Heard(Progress):
    def record(self, record):
        if record["step"] == killed_at:
            os.kill(os.getpid(), signal.SIGKILL)

    def message(self, text):
        print(text, flush=True)


torch.manual_seed(0)
x = torch.linspace(-1, 1, 640).reshape(160, 4)
model = torch.nn.Linear(4, 2)
optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
options = surefoot.RunOptions(trackers=trackers, progress=Heard(), execution="plain", log_every=5, tensorboard=False)
surefoot.fit(model, torch.nn.MSELoss(), optimizer, (x, x[:, :2]), val=(x, x[:, :2]), epochs=epochs, batch_size=8,
             run_dir="run", resume=True, run=options)
"""


def fit(epochs: int, *trackers: str, killed_at: int = 0):
    """A process that calls `fit`: 20 steps an epoch, a record every 5; killed where it records step `killed_at`."""
    import subprocess
    import sys

    Path("train.py").write_text(SCRIPT)
    words = [sys.executable, "train.py", str(epochs), str(killed_at), *trackers]
    return subprocess.run(words, capture_output=True, text=True, timeout=300)


def expected_steps(epochs: int) -> dict[str, list[int]]:
    """The points that a tracker has of such a run."""
    steps, ends = list(range(5, 20 * epochs + 1, 5)), [20 * (epoch + 1) for epoch in range(epochs)]
    return {"loss/train_step": steps, "lr/0": steps, "loss/train": ends, "loss/val": ends}


@contextlib.contextmanager
def mlflow_server(port: int):
    """An MLflow server with SQLite, until the block ends; its data stay for the next."""
    import signal
    import subprocess
    import sys
    import time
    import urllib.request

    words = ["server", "--backend-store-uri", "sqlite:///mlflow.db", "--host", "127.0.0.1", "--port", str(port)]
    with open("server.log", "ab") as log:
        server = subprocess.Popen(
            [sys.executable, "-m", "mlflow", *words, "--workers", "1"], stdout=log, stderr=log, start_new_session=True
        )
    try:
        for _ in range(600):
            with contextlib.suppress(OSError), urllib.request.urlopen(f"http://127.0.0.1:{port}/health", timeout=5):
                break
            time.sleep(0.5)
        else:
            raise AssertionError(Path("server.log").read_text()[-2000:])
        yield
    finally:
        os.killpg(server.pid, signal.SIGTERM)
        server.wait(60)


@case
def mlflow_by_fit() -> str:
    """`fit` feeds a real MLflow server by a process of its own: killed, resumed, the server down in between."""
    import socket
    import time

    from mlflow.tracking import MlflowClient

    with contextlib.closing(socket.socket()) as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    address = f"http://127.0.0.1:{port}"
    with somewhere(MLFLOW_TRACKING_URI=address, MLFLOW_EXPERIMENT_NAME="mine") as home:

        def points() -> dict[str, list[int]]:
            client = MlflowClient(address)
            (found,) = client.search_runs([client.get_experiment_by_name("mine").experiment_id])
            assert found.data.params["optimizer.lr"] == "0.01", found.data.params
            states.append(found.info.status)
            names = expected_steps(1)
            return {name: sorted(p.step for p in client.get_metric_history(found.info.run_id, name)) for name in names}

        def completed() -> None:
            for _ in range(100):  # what a training left behind may be at it still
                code, out = command("track", "run", "--to", "mlflow")
                if code == 0:
                    return
                assert "another process tells mlflow" in out, out
                time.sleep(2)

        states: list[str] = []
        with mlflow_server(port):
            assert fit(3, "mlflow", killed_at=45).returncode == -9
            done = fit(3, "mlflow")
            assert done.returncode == 0, done
            completed()  # a slow machine may not have sent everything in the 20 seconds that a training waits
            assert points() == expected_steps(3)
        done = fit(4, "mlflow")  # the server is down
        assert done.returncode == 0, done.stderr
        told = [line for line in done.stdout.splitlines() if "mlflow does not have everything yet" in line]
        assert len(told) == 1 and "surefoot track run --to mlflow" in told[0], done.stdout
        with mlflow_server(port):
            completed()
            assert points() == expected_steps(4)
        assert states == ["FINISHED", "FINISHED"], states
        code, out = command("track", "run", "--to", "mlflow")
        assert code == 1 and len(out.strip().splitlines()) == 1, out
        note = (home / "run/trackers/mlflow.log").read_text()
        assert "Traceback" not in note, note
    return f"{sum(map(len, expected_steps(4).values()))} points, each once"


def entries(data: bytes):
    """The entries of a .wandb file: a header of 7 bytes, then a log as LevelDB writes it, in blocks of 32 KiB."""
    whole, at = b"", 7
    while at + 7 <= len(data):
        left = 32768 - at % 32768
        if left < 7:
            at += left
            continue
        length, kind = int.from_bytes(data[at + 4 : at + 6], "little"), data[at + 6]
        whole += data[at + 7 : at + 7 + length]
        at += 7 + length
        if kind in (1, 4):  # all of it, or its last part
            yield whole
            whole = b""


@case
def wandb_offline() -> str:
    """`fit` keeps a run of Weights & Biases in the run's directory, each row once after a kill."""
    from wandb.proto import wandb_internal_pb2

    with somewhere(WANDB_MODE="offline", WANDB_SILENT="true"):
        assert fit(3, "wandb", killed_at=45).returncode == -9
        done = fit(3, "wandb")
        assert done.returncode == 0 and "does not have everything" not in done.stdout, done
        steps: list[int] = []
        for path in sorted(Path("run/trackers").glob("wandb/offline-run-*/*.wandb"), key=lambda p: p.stat().st_mtime):
            for data in entries(path.read_bytes()):
                record = wandb_internal_pb2.Record()
                record.ParseFromString(data)
                if record.HasField("history"):
                    steps.append(record.history.step.num)
        assert steps == list(range(5, 61, 5)), steps
    return f"{len(steps)} rows, each once"


@case
def wandb_that_cannot_be_reached() -> str:
    """Online with a server that is down, and with an address that is none: the training ends in time, one line each."""
    import time

    ends = []
    for address in ("http://127.0.0.1:9", "not-an-address"):
        variables = {
            "WANDB_MODE": "online",
            "WANDB_API_KEY": "0" * 40,
            "WANDB_SILENT": "true",
            "WANDB_INIT_TIMEOUT": "5",
        }
        with somewhere(WANDB_BASE_URL=address, **variables):
            begun = time.monotonic()
            done = fit(1, "wandb")
            ends.append(time.monotonic() - begun)
            assert done.returncode == 0, done.stderr
            told = [line for line in done.stdout.splitlines() if "wandb does not have everything yet" in line]
            assert len(told) == 1, done.stdout
            note = Path("run/trackers/wandb.log").read_text()
            assert "Traceback" not in note, note
    return f"told after {max(ends):.0f} s at most"

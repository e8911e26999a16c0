"""`surefoot report`: the page written anew, and served while the run is written, cut back, damaged and removed."""

from __future__ import annotations

import contextlib
import http.client
import json
import re
import shutil
import signal
import socket
import threading
from html import unescape

import pytest
from command_runs import refused
from run_directories import make_run

from surefoot import signals
from surefoot.checkpoint.run import RunDirectory
from surefoot.cli import main
from surefoot.runs import serving
from surefoot.runs.serving import HOST, LiveReport, Server
from surefoot.tracking import JournalFile
from surefoot.tracking.journal import run_records
from surefoot.tracking.report import FILE
from surefoot.tracking.run_facts import cost_html
from surefoot.tracking.run_numbers import RunNumbers
from surefoot.tracking.validation import write_validation


@pytest.fixture
def run(tmp_path):
    return make_run(tmp_path / "run", [0.5, 0.6], name="<b>mine", status="interrupted")


@contextlib.contextmanager
def served(report):
    with Server(report, 0) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.01,))
        thread.start()
        try:
            yield server
        finally:
            server.shutdown()
            thread.join()


def ask(server, path="/", method="GET", **headers):
    connection = http.client.HTTPConnection(*server.server_address, timeout=30)
    try:
        connection.putrequest(method, path, skip_host=True)
        for name, value in {"Host": f"{HOST}:{server.server_address[1]}", **headers}.items():
            for each in value if isinstance(value, list) else [value]:
                connection.putheader(name.replace("_", "-"), each)
        connection.endheaders()
        answer = connection.getresponse()
        return answer, answer.read().decode()
    finally:
        connection.close()


def losses(page):
    """The losses of the page's first chart, by line."""
    spec = json.loads(unescape(re.search(r'<figure data-chart="([^"]*)"', page)[1]))
    return {line["label"]: list(zip(line["x"], line["y"], strict=True)) for line in spec["lines"]}


def text_of(report):
    return report.page()[0].decode()


def test_report_writes_the_page_anew_and_says_where(run, capsys):
    assert main(["report", str(run)]) == 0
    assert capsys.readouterr().out == f"{run / FILE}\n"
    page = (run / FILE).read_text()
    assert "&lt;b&gt;mine" in page and "<b>mine" not in page and 'name="surefoot-live"' not in page


def test_bad_input_is_one_message(run, tmp_path, capsys):
    assert "no such run" in refused(capsys, "report", str(tmp_path / "none"))
    assert "holds no run" in refused(capsys, "report", str(tmp_path))
    assert "--port belongs to --serve" in refused(capsys, "report", str(run), "--port", "1")
    assert "--port 99999: " in refused(capsys, "report", str(run), "--serve", "--port", "99999")
    with socket.socket() as taken:
        taken.bind((HOST, 0))
        taken.listen()
        port = str(taken.getsockname()[1])
        told = refused(capsys, "report", str(run), "--serve", "--port", port)
    assert told.startswith(f"surefoot: --port {port}: Address already in use") and "give another" in told


def test_serve_says_where_it_is_and_ends_with_one_line(run, monkeypatch, capsys):
    def stopped(server):
        raise signals.Interrupted(signal.SIGINT)

    monkeypatch.setattr(Server, "serve_forever", stopped)
    assert main(["report", str(run), "--serve", "--port", "0"]) == 130
    told = capsys.readouterr()
    assert re.fullmatch(rf"{run}: live at http://127\.0\.0\.1:\d+/ \(Ctrl-C ends it\)\n", told.out)
    assert told.err == "surefoot: stopped by SIGINT\n"


def test_the_page_is_given_once_and_then_only_where_it_is_another(run):
    with served(LiveReport(run)) as server:
        answer, page = ask(server)
        assert answer.status == 200 and 'name="surefoot-live"' in page and "connect-src 'self'" in page
        assert answer.headers["Content-Type"] == "text/html; charset=utf-8"
        again, nothing = ask(server, If_None_Match=answer.headers["ETag"])
        assert (again.status, nothing) == (304, "")
        head, nothing = ask(server, method="HEAD")
        assert (head.status, nothing, head.headers["Content-Length"]) == (200, "", str(len(page.encode())))
        with JournalFile(run / "metrics.jsonl") as journal:
            journal.append(dict(kind="step", split="train", epoch=2, step=77, loss=0.125, lr=[0.1]))
        changed, page = ask(server, If_None_Match=answer.headers["ETag"])
        assert changed.status == 200 and (77, 0.125) in losses(page)["train, a few steps"]


@pytest.mark.parametrize(
    "host",
    [
        "evil.example",
        "evil.example:PORT",
        "127.0.0.1",
        "127.0.0.1:1",
        "",
        "localhost.evil:PORT",
        ["127.0.0.1:PORT"] * 2,
    ],
)
def test_a_request_by_another_name_gets_nothing_of_the_run(run, host):
    with served(LiveReport(run)) as server:
        port = str(server.server_address[1])
        named = [each.replace("PORT", port) for each in host] if isinstance(host, list) else host.replace("PORT", port)
        answer, text = ask(server, Host=named)
        assert answer.status == 403 and "mine" not in text
        assert ask(server, Host=f"LocalHost:{port}")[0].status == 200


@pytest.mark.parametrize("path", ["/../run.json", "/run.json", "/%2e%2e/run.json", "/metrics.jsonl", "*", "http://x/"])
def test_nothing_but_the_page_is_there(run, path):
    with served(LiveReport(run)) as server:
        answer, text = ask(server, path)
        assert answer.status == 404 and len(text) < 100
        assert ask(server, "/?from=elsewhere")[0].status == 200


@pytest.mark.parametrize("method", ["POST", "PUT", "DELETE", "OPTIONS", "TRACE", "CONNECT", "PATCH"])
def test_only_get_is_answered(run, method):
    with served(LiveReport(run)) as server:
        answer, text = ask(server, method=method)
        assert (
            answer.status == 405
            and answer.headers["Allow"] == "GET, HEAD"
            and "Access-Control" not in str(answer.headers)
        )


def test_only_this_machine_is_listened_to(run):
    with Server(LiveReport(run), 0) as server:
        assert server.server_address[0] == "127.0.0.1"


def test_a_journal_that_is_cut_back_and_goes_on_is_read_anew(run):
    report = LiveReport(run)
    before = losses(text_of(report))["train, the epoch"]
    lines = (run / "metrics.jsonl").read_bytes().splitlines(keepends=True)
    # A resume cuts it back, and the same steps come again, with other losses and as many bytes and more.
    other = b"".join(lines[:-1]) + lines[-1].replace(b'"step"', b'"note": 1, "step"') + lines[-1].replace(b"20", b"30")
    with (run / "metrics.jsonl").open("r+b") as file:
        file.write(other)
        file.truncate()
    after = losses(text_of(report))
    assert after == losses(text_of(LiveReport(run))) and before == after["train, the epoch"][: len(before)]


def test_only_what_is_new_is_read(run, monkeypatch):
    report = LiveReport(run)
    report.page()
    numbers, before = report._numbers, report._numbers.last
    starts = []
    monkeypatch.setattr(
        serving,
        "run_records",
        lambda *words, start, **more: starts.append(start) or run_records(*words, start=start, **more),
    )
    report.page()
    assert starts == [], "nothing has changed"
    size = (run / "metrics.jsonl").stat().st_size
    with JournalFile(run / "metrics.jsonl") as journal:
        journal.append(dict(kind="step", split="train", epoch=2, step=88, loss=0.1))
    report.page()
    assert starts == [size]
    assert report._numbers is numbers and before["step"] != numbers.last["step"] == 88


def test_half_a_line_and_half_a_file_are_waited_for(run):
    report = LiveReport(run)
    whole = text_of(report)
    with (run / "metrics.jsonl").open("ab") as file:
        file.write(b'{"kind": "step", "split": "train", "epoch": 2, "ste')
    assert losses(text_of(report)) == losses(whole) and "Problems" not in text_of(report)
    with (run / "metrics.jsonl").open("ab") as file:
        file.write(b'p": 99, "loss": 0.5}\n')
    assert losses(text_of(report))["train, a few steps"][-1] == (99, 0.5)
    (run / "run.json").write_text('{"id": "a')
    (run / "validation.json").write_text('{"sha')
    page = text_of(report)
    assert "run.json: not JSON" in page and "validation.json: is damaged" in page
    assert losses(page)["train, a few steps"][-1] == (99, 0.5)


@pytest.mark.parametrize(
    "about",
    [
        {
            "name": ["<i>"],
            "status": {"a": "<i>"},
            "damaged": "<i>",
            "inexact": 4,
            "resumes": {"a": 1},
            "conditions": [1],
        },
        {
            "name": "<i>" * 500,
            "damaged": [{"<i>": 1}],
            "conditions": {"threads": "<i>", "device.<i>": "<i>"},
            "processes": -1,
        },
        {"created": 5, "conditions": {"loader.batch_size": True, "fit.grad_accum_steps": "x", "threads": 10**400}},
    ],
)
def test_whatever_run_json_holds_is_escaped_and_never_a_traceback(run, about):
    (run / "run.json").write_text(json.dumps({"id": "a", **about}))
    write_validation(
        run, {"classes": ["<i>"], "confusion": [[1]], "wrong": [{"index": 0, "loss": 1.0, "true": 0, "predicted": 9}]}
    )
    page = text_of(LiveReport(run))
    assert "<i>" not in page and "</html>" in page


def test_a_run_that_is_removed_shows_what_was_read_and_one_that_comes_again_is_read_anew(run, tmp_path):
    report = LiveReport(run)
    before = losses(text_of(report))
    shutil.move(run, tmp_path / "elsewhere")
    page = text_of(report)
    assert "the run is not there any more" in page and losses(page) == before and "status removed" in page
    make_run(run, [0.9], name="another")
    page = text_of(report)
    assert "not there" not in page and "another" in page and losses(page) != before


def test_a_link_in_the_place_of_the_journal_is_not_followed(run, tmp_path):
    shutil.move(run / "metrics.jsonl", tmp_path / "metrics.jsonl")
    (run / "metrics.jsonl").symlink_to(tmp_path / "metrics.jsonl")
    page = text_of(LiveReport(run))
    assert "the journal cannot be read" in page and "data-chart" not in page


def test_what_it_cost_counts_all_sittings_processes_and_memory(run):
    at = {"epoch": 2, "step": 40, "lr": [0.1]}
    with JournalFile(run / "metrics.jsonl") as journal:
        journal.append({"kind": "epoch", "split": "train", "loss": 1.0, "wall_s": 3600.0, **at})
        journal.append({"kind": "epoch", "split": "val", "loss": 1.0, "wall_s": 7200.0, **at})
    about = {"processes": 2, "peak_bytes": 5 * 10**8}
    about["conditions"] = {
        "threads": 4,
        "loader.batch_size": 64,
        "fit.grad_accum_steps": 2,
        "device.accelerator": "none",
    }
    cost = cost_html(about, RunNumbers(run_records(run / "metrics.jsonl", pytest.fail)))
    rows = dict(re.findall(r"<td[^>]*>([^<]*)</td><td[^>]*>([^<]*)</td>", cost))
    assert rows["of it validation"].endswith("(50 %)") and rows["done"] == "3 epochs, 40 steps"
    assert rows["a step"] == "1 min 30 s" and rows["samples a second"] == "1"
    assert (
        rows["core hours, at most"] == "16 (4 threads in each of 2 processes)" and rows["memory, at most"] == "500 MB"
    )
    about["conditions"]["device.accelerator"] = "NVIDIA <H100>"
    assert "<td class=words>GPU hours</td><td>4 (2 processes: NVIDIA &lt;H100&gt;)</td>" in cost_html(
        about, RunNumbers(run_records(run / "metrics.jsonl", pytest.fail))
    )


def test_the_status_is_what_it_is_seen_to_be(run):
    with RunDirectory.open(run) as held:
        held.record(status="running")
        page = text_of(LiveReport(run))
        assert "status running" in page and 'content="2"' in page
    page = text_of(LiveReport(run))
    assert "status killed" in page and 'content="10"' in page


def test_a_page_is_a_function_of_the_run(run):
    assert LiveReport(run).page() == LiveReport(run).page()

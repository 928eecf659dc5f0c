"""``verl-rlkd data structure``, through its command line: what is refused, what is resumed, what is reported."""

from __future__ import annotations

import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from made_traces import row, write_jsonl
from stub_server import Payload, StubServer, default_answer, text_of
from typer.testing import CliRunner

from verl_rlkd.cli import app, main
from verl_rlkd.config import GeneratorConfig, RetryConfig
from verl_rlkd.data import structure as structure_module
from verl_rlkd.data.estimate import estimate
from verl_rlkd.data.structure import StructureSummary, structure_traces
from verl_rlkd.errors import ConfigError, DataError, GeneratorError
from verl_rlkd.gsrm.store import TeacherStore, prompt_key


def run(server: StubServer, traces: Path, out: Path, **settings: Any) -> StructureSummary:
    return structure_traces(
        traces,
        out,
        generator=GeneratorConfig(base_url=server.base_url, model="gsrm", **settings),
        retry=RetryConfig(max_attempts=2, max_wait_s=0.01),
        concurrency=4,
    )


def key(n: int) -> str:
    return prompt_key(row(n)["prompt"])


def command(server: StubServer, traces: Path, out: Path) -> list[str]:
    settings = ["--base-url", server.base_url, "--model", "gsrm", "--concurrency", "2"]
    return ["data", "structure", "--traces", str(traces), "--out", str(out), *settings]


def test_every_trace_gets_its_structure(tmp_path: Path) -> None:
    traces = write_jsonl(tmp_path / "t.jsonl", [row(n) for n in range(20)])
    with StubServer(latency_s=0.02) as server:
        summary = run(server, traces, tmp_path / "s.sqlite")
        assert server.most_in_flight == 4
        assert any("so 7</given_reasoning>\n" in text_of(payload) for payload in server.requests)
        assert not any("<think>" in text_of(payload) for payload in server.requests)
    assert summary == StructureSummary(rows=20, skipped=0, written=20, path_truncated=0, cut=0, left_out=())
    store = TeacherStore(tmp_path / "s.sqlite")
    assert len(store) == 20
    record = store.record(key(7))
    assert record is not None
    assert [step.answer for step in record.structure.steps] == ["Two numbers", "4"]
    assert store.meta == {"model": "gsrm", "prompt version of math": record.prompt_version}


def test_a_bad_row_is_named_before_anything_is_asked(tmp_path: Path) -> None:
    traces = write_jsonl(tmp_path / "t.jsonl", [row(1), row(2, trace="")])
    with StubServer() as server:
        with pytest.raises(DataError, match="row 2: trace: empty"):
            run(server, traces, tmp_path / "s.sqlite")
        assert server.requests == []
    assert not (tmp_path / "s.sqlite").exists()


def test_the_same_row_twice_is_structured_once(tmp_path: Path) -> None:
    traces = write_jsonl(tmp_path / "t.jsonl", [row(1), row(1), row(2)])
    with StubServer() as server:
        assert run(server, traces, tmp_path / "s.sqlite").rows == 2
        assert len(server.requests) == 2


def test_rows_in_the_store_are_skipped_unless_their_trace_changed(tmp_path: Path) -> None:
    out = tmp_path / "s.sqlite"
    with StubServer() as server:
        run(server, write_jsonl(tmp_path / "t.jsonl", [row(1), row(2)]), out)
        rows = [row(1), row(2, trace="another</think>4"), row(3)]
        summary = run(server, write_jsonl(tmp_path / "t.jsonl", rows), out)
        assert (summary.rows, summary.skipped, summary.written) == (3, 1, 2)
        assert len(server.requests) == 4
    assert len(TeacherStore(out)) == 3


def test_a_store_of_another_prompt_is_refused(tmp_path: Path) -> None:
    traces = write_jsonl(tmp_path / "t.jsonl", [row(1)])
    (tmp_path / "math.txt").write_text("{{problem}} {{reasoning}}", encoding="utf-8")
    with StubServer() as server:
        run(server, traces, tmp_path / "s.sqlite")
        with pytest.raises(DataError, match=r"made with prompt version of math .* a store never mixes the two"):
            run(server, traces, tmp_path / "s.sqlite", prompt_dir=str(tmp_path))
        assert len(server.requests) == 1


def test_rows_without_a_structure_are_reported_by_reason_and_left_out(tmp_path: Path) -> None:
    marks = {2: "FAIL_GENERATOR", 4: "NO_STRUCTURE_GENERATOR", 5: "FAIL_GENERATOR", 6: "CUT_GENERATOR"}
    rows = [row(n, trace=f"so {marks.get(n, n)}</think>4") for n in range(1, 8)]
    traces = write_jsonl(tmp_path / "t.jsonl", rows)
    out = tmp_path / "s.sqlite"
    with StubServer() as server:
        summary = run(server, traces, out)
        assert (summary.written, summary.cut) == (4, 1)
        reasons = {left.reason: (left.count, left.first_row) for left in summary.left_out}
        assert reasons == {"no answer arrived": (2, 2), "the answer held no complete step": (1, 4)}
        server.answer = lambda payload: default_answer({**payload, "messages": []})
        assert run(server, traces, out).written == 3
    assert len(TeacherStore(out)) == 7


def test_a_server_that_went_away_stops_the_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(structure_module, "MAX_FAILURES_IN_A_ROW", 8)
    traces = write_jsonl(tmp_path / "t.jsonl", [row(n) for n in range(200)])
    left = [50]

    def answer(payload: Payload) -> Any:
        left[0] -= 1
        return default_answer(payload) if left[0] >= 0 else 503

    with StubServer(answer) as server:
        with pytest.raises(
            GeneratorError, match=r"stopped after 8 failures in a row, 50 structures written; .*HTTP 503"
        ):
            run(server, traces, tmp_path / "s.sqlite")
        assert len(server.requests) < 100
    assert len(TeacherStore(tmp_path / "s.sqlite")) == 50


def test_failures_between_answers_do_not_stop_the_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(structure_module, "MAX_FAILURES_IN_A_ROW", 8)
    rows = [row(n, trace=f"so {'FAIL_GENERATOR' if n % 2 else n}</think>4") for n in range(40)]
    with StubServer() as server:
        summary = run(server, write_jsonl(tmp_path / "t.jsonl", rows), tmp_path / "s.sqlite")
    assert (summary.written, summary.left_out[0].count) == (20, 20)


def test_settings_that_are_missing_or_wrong_are_named(tmp_path: Path) -> None:
    traces = write_jsonl(tmp_path / "t.jsonl", [row(1)])
    with pytest.raises(ConfigError, match="give --base-url and --model"):
        structure_traces(traces, tmp_path / "s", generator=GeneratorConfig(), retry=RetryConfig(), concurrency=1)
    with pytest.raises(ConfigError, match="concurrency is 0"):
        generator = GeneratorConfig(base_url="http://x/v1", model="m")
        structure_traces(traces, tmp_path / "s", generator=generator, retry=RetryConfig(), concurrency=0)


# The command line.


def test_the_command_exits_0_when_every_row_has_a_structure_and_1_when_not(tmp_path: Path) -> None:
    good = write_jsonl(tmp_path / "good.jsonl", [row(n) for n in range(3)])
    bad = write_jsonl(tmp_path / "bad.jsonl", [row(9, trace="NO_STRUCTURE_GENERATOR</think>")])
    with StubServer() as server:
        done = CliRunner().invoke(app, command(server, good, tmp_path / "s.sqlite"))
        assert (done.exit_code, done.exception) == (0, None)
        assert "3 rows, 0 were there, 3 written" in done.output
        done = CliRunner().invoke(app, command(server, bad, tmp_path / "s.sqlite"))
        assert done.exit_code == 1
        assert "left out: 1 rows, the answer held no complete step; first row 1" in done.output


@pytest.mark.parametrize(
    ("extra", "error"),
    [
        ([], "error: {traces}: row 1: prompt: missing; the row has nope\n"),
        (["--max-tokens", "0"], "error: max_tokens is 0; give a value >= 1\n"),
        (["--context-tokens", "10"], "error: context_tokens is 10, not above max_tokens 10240"),
        (["--tokenizer", "/nowhere"], "error: --tokenizer /nowhere is not a folder"),
        (["--tokenizer", "{folder}"], "error: --tokenizer {folder} holds no tokenizer"),
        (["--prompt-dir", "/nowhere"], "error: {traces}: row 1: prompt: missing"),
    ],
)
def test_bad_input_is_one_line_on_stderr_and_exit_code_2(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
    extra: list[str],
    error: str,
) -> None:
    traces = write_jsonl(tmp_path / "t.jsonl", [{"nope": 1}])
    names = {"folder": str(tmp_path), "traces": str(traces)}
    with StubServer() as server:
        arguments = command(server, traces, tmp_path / "s.sqlite") + [text.format(**names) for text in extra]
        monkeypatch.setattr(sys, "argv", ["verl-rlkd", *arguments])
        with pytest.raises(SystemExit) as exit_:
            main()
    assert exit_.value.code == 2
    stderr = capfd.readouterr().err
    assert stderr.startswith(error.format(**names))
    assert stderr.count("\n") == 1


def test_a_server_that_is_not_there_is_bad_input(tmp_path: Path) -> None:
    traces = write_jsonl(tmp_path / "t.jsonl", [row(1)])
    arguments = ["data", "structure", "--traces", str(traces), "--out", str(tmp_path / "s"), "--model", "m"]
    done = subprocess.run(
        [sys.executable, "-m", "verl_rlkd.cli", *arguments, "--base-url", "http://127.0.0.1:9/v1"],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 2
    assert "error: --base-url: nothing answers at http://127.0.0.1:9/v1" in done.stderr
    assert "Traceback" not in done.stderr


def test_a_killed_run_goes_on_without_loss_or_repetition(tmp_path: Path) -> None:
    rows = [row(n) for n in range(40)]
    traces = write_jsonl(tmp_path / "t.jsonl", rows)
    out = tmp_path / "s.sqlite"
    with StubServer(latency_s=0.1) as server:
        arguments = [sys.executable, "-m", "verl_rlkd.cli", *command(server, traces, out)]
        first = subprocess.Popen(arguments, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        server.wait_for(lambda s: len(s.requests) >= 15)
        server.latency_s = 5  # The first must not be done before the second has started, on a busy machine too.
        second = subprocess.run(arguments, capture_output=True, text=True, check=False)
        assert (second.returncode, "another process is writing it" in second.stderr) == (2, True)
        first.send_signal(signal.SIGKILL)
        assert first.wait() == -signal.SIGKILL
        server.settle()
        asked, stored = len(server.requests), len(TeacherStore(out))
        assert 0 < stored < 40
        assert asked - stored <= 2  # in flight: --concurrency 2
        server.latency_s = 0
        done = subprocess.run(arguments, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
        assert f"40 rows, {stored} were there, {40 - stored} written" in done.stdout
        assert len(server.requests) == asked + 40 - stored
    store = TeacherStore(out)
    assert len(store) == 40
    assert all(store.get(key(n)) for n in range(40))


def test_a_dry_run_estimates_what_is_missing_and_asks_nothing(tmp_path: Path) -> None:
    rows = [row(n, trace="so " * 1000 + "</think>4") for n in range(10)]
    traces = write_jsonl(tmp_path / "t.jsonl", rows)
    base = ["data", "structure", "--traces", str(traces), "--out", str(tmp_path / "s.sqlite"), "--dry-run"]
    done = CliRunner().invoke(app, [*base, "--price-in", "2", "--price-out", "10"])
    assert done.exit_code == 0, done.output
    assert "10 rows, 0 are there, 10 to do; 0 paths would be cut" in done.output
    assert "at 0.25 per token of the path, assumed" in done.output
    assert list(tmp_path.iterdir()) == [traces]
    estimated = estimate(traces, tmp_path / "none", generator=GeneratorConfig())
    # 2,999 bytes are taken to be 1,500 tokens; a quarter of them is expected back.
    assert estimated.completion_tokens == 10 * 375
    assert 10 * 1500 < estimated.prompt_tokens < 10 * 3000
    assert estimated.cost(2, 10) == pytest.approx((estimated.prompt_tokens * 2 + 3750 * 10) / 1e6)
    assert f"{estimated.cost(2, 10):,.2f}  at 2 and 10 per million" in done.output
    with StubServer() as server:
        half = write_jsonl(tmp_path / "half.jsonl", rows[:5])
        run(server, half, tmp_path / "s.sqlite")
    done = CliRunner().invoke(app, base)
    assert "10 rows, 5 are there, 5 to do" in done.output
    assert "measured on 5 structures" in done.output
    small = estimate(traces, tmp_path / "none", generator=GeneratorConfig(context_tokens=1200, max_tokens=100))
    assert (small.cut, small.prompt_tokens, small.most_completion_tokens) == (10, 10 * 1100, 1000)


def test_without_a_server_nothing_but_a_dry_run_is_possible(tmp_path: Path) -> None:
    traces = write_jsonl(tmp_path / "t.jsonl", [row(1)])
    done = CliRunner().invoke(app, ["data", "structure", "--traces", str(traces), "--out", str(tmp_path / "s")])
    assert isinstance(done.exception, ConfigError)
    assert "give --base-url and --model" in str(done.exception)


def test_a_trace_of_ten_megabytes_is_used_from_its_beginning(tmp_path: Path) -> None:
    traces = write_jsonl(tmp_path / "t.jsonl", [row(1, trace="so it is. " * 1_000_000 + "</think>4")])
    with StubServer() as server:
        summary = run(server, traces, tmp_path / "s.sqlite")
        assert summary.path_truncated == 1
        assert len(text_of(server.requests[0])) < 100_000
    record = TeacherStore(tmp_path / "s.sqlite").record(key(1))
    assert record is not None
    assert record.path_truncated


def test_a_full_disk_is_one_line_and_what_was_written_stays(tmp_path: Path) -> None:
    traces = write_jsonl(tmp_path / "t.jsonl", [row(n) for n in range(400)])
    out = tmp_path / "s.sqlite"
    with StubServer() as server:
        # The kernel refuses what lies beyond 64 KiB of any file, as it would on a full disk.
        limit = "import resource, signal, sys; signal.signal(signal.SIGXFSZ, signal.SIG_IGN); "
        limit += "resource.setrlimit(resource.RLIMIT_FSIZE, (65536, 65536)); "
        code = limit + "from verl_rlkd.cli import main; main()"
        arguments = [sys.executable, "-c", code, *command(server, traces, out)]
        done = subprocess.run(arguments, capture_output=True, text=True, check=False)
        assert done.returncode == 2
        assert done.stderr.startswith(f"error: {out}: ")
        assert done.stderr.endswith("see that the disk has room and the file may be read (and, to make it, written)\n")
        assert done.stderr.count("\n") == 1
        stored = len(TeacherStore(out))
        assert 0 < stored < 400
        done = subprocess.run(
            [sys.executable, "-m", "verl_rlkd.cli", *command(server, traces, out)],
            capture_output=True,
            text=True,
            check=True,
        )
        assert f"400 rows, {stored} were there, {400 - stored} written" in done.stdout


def test_a_place_that_cannot_be_written_is_one_line(tmp_path: Path) -> None:
    traces = write_jsonl(tmp_path / "t.jsonl", [row(1)])
    with StubServer() as server:
        # /proc is read-only even for root.
        arguments = [sys.executable, "-m", "verl_rlkd.cli", *command(server, traces, Path("/proc/s.sqlite"))]
        done = subprocess.run(arguments, capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert done.stderr.startswith("error: /proc/s.sqlite")
    assert done.stderr.count("\n") == 1


def test_a_store_made_with_another_prompt_is_not_mixed(tmp_path: Path) -> None:
    traces = write_jsonl(tmp_path / "t.jsonl", [row(1)])
    (tmp_path / "prompts").mkdir()
    (tmp_path / "prompts" / "math.txt").write_text("Another prompt: {{problem}} {{reasoning}}", encoding="utf-8")
    with StubServer() as server:
        run(server, traces, tmp_path / "s.sqlite")
        with pytest.raises(DataError, match=r"its structures were made with prompt version of math '.*', not '"):
            run(server, traces, tmp_path / "s.sqlite", prompt_dir=str(tmp_path / "prompts"))

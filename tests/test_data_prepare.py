"""``verl-rlkd data prepare``: three formats in, verl's files and traces out, drops counted, nothing half-made."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pyarrow
import pyarrow.parquet
import pytest

from verl_rlkd.cli import main
from verl_rlkd.data.decontamination import Benchmarks
from verl_rlkd.data.files import read_rows
from verl_rlkd.data.prepare import INSTRUCTION, PrepareConfig, PrepareReport, prepare
from verl_rlkd.data.sources import last_boxed
from verl_rlkd.errors import ConfigError, DataError
from verl_rlkd.rewards import format_reward

Row = dict[str, Any]


def plain(n: int, **changes: Any) -> Row:
    return {"problem": f"What is {n} + {n}?", "answer": str(2 * n), "reasoning": f"so {n} twice"} | changes


def openr1(n: int, **changes: Any) -> Row:
    generations = [
        f"<think>\nbad {n}\n</think>\nno",
        f"<think>\ngood {n}\n</think>\nyes",
        f"<think>\nalso {n}\n</think>\n",
    ]
    row = {"problem": f"Problem {n}", "answer": str(n), "generations": generations}
    return row | {"correctness_math_verify": [False, True, True], "uuid": "x"} | changes


def openthoughts(n: int, **changes: Any) -> Row:
    row = {"problem": f"Task {n}", "deepseek_reasoning": f"thinking {n}", "deepseek_solution": f"It is {n}"}
    return row | {"ground_truth_solution": f"Thus \\boxed{{\\frac{{{n}}}{{2}}}}.", "domain": "physics"} | changes


def write(path: Path, rows: Sequence[Any]) -> Path:
    if path.suffix == ".jsonl":
        path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    elif path.suffix == ".json":
        path.write_text(json.dumps(rows), encoding="utf-8")
    else:
        pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), path)
    return path


def run(path: Path, out: Path, **settings: Any) -> PrepareReport:
    return prepare([path], out, PrepareConfig(**{"val_share": 0.0, **settings}))


def made(folder: Path, name: str) -> list[Row]:
    return [dict(fields) for _row, fields in read_rows(folder / f"{name}.parquet")]


@pytest.mark.parametrize("suffix", [".jsonl", ".json", ".parquet"])
def test_openr1_takes_the_first_verified_generation(tmp_path: Path, suffix: str) -> None:
    report = run(write(tmp_path / f"a{suffix}", [openr1(n) for n in range(3)]), tmp_path / "out")
    assert (report.rows, report.train, report.val, report.drops) == (3, 3, 0, {})
    assert made(tmp_path / "out", "train")[1] == {
        "data_source": "openr1_math",
        "prompt": [{"role": "user", "content": "Problem 1" + INSTRUCTION}],
        "ability": "math",
        "reward_model": {"style": "rule", "ground_truth": "1"},
        "extra_info": {"index": 1, "split": "train", "domain": "math", "problem": "Problem 1"},
    }
    assert made(tmp_path / "out", "traces")[1] == {
        "prompt": [{"role": "user", "content": "Problem 1" + INSTRUCTION}],
        "problem": "Problem 1",
        "trace": "<think>\ngood 1\n</think>\nyes",
        "domain": "math",
        "answer": "1",
        "split": "train",
    }
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == [
        "report.json", "sft.parquet", "traces.parquet", "train.parquet"
    ]  # fmt: skip


def test_the_teachers_responses_have_the_format_that_is_rewarded(tmp_path: Path) -> None:
    whole = plain(2, reasoning="<think>\nwhole\n</think>\nIt is four")
    run(write(tmp_path / "a.jsonl", [plain(1), whole, plain(3), plain(4)]), tmp_path / "out", val_share=0.5)
    rows, train = made(tmp_path / "out", "sft"), made(tmp_path / "out", "train")
    assert 0 < len(rows) < 4
    assert [row["messages"][:-1] for row in rows] == [row["prompt"] for row in train]  # none of validation
    for row, given in zip(rows, train, strict=True):
        answer = given["reward_model"]["ground_truth"]
        reasoning = "whole" if answer == "4" else f"so {int(answer) // 2} twice"
        content = row["messages"][-1]["content"]
        assert content == f"<think>\n{reasoning}\n</think>\n<answer>\n{answer}\n</answer>"
        assert format_reward(content) == 1.0


def test_openthoughts_joins_its_parts_and_finds_the_boxed_answer(tmp_path: Path) -> None:
    rows = [
        openthoughts(1),
        openthoughts(2, domain="code", ground_truth_solution="no box"),
        openthoughts(3, domain=None),
    ]
    run(
        write(tmp_path / "a.jsonl", rows), tmp_path / "out", domain="puzzle", system_prompt="Be brief.", instruction="!"
    )
    first, second, third = made(tmp_path / "out", "train")
    assert first["prompt"] == [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Task 1!"}]
    assert [row["ability"] for row in (first, second, third)] == ["science", "code", "puzzle"]
    assert [row["reward_model"]["ground_truth"] for row in (first, second)] == [r"\frac{1}{2}", "no box"]
    assert made(tmp_path / "out", "traces")[0]["trace"] == "thinking 1\n</think>\nIt is 1"


def test_plain_rows_may_hold_a_whole_trace_and_numbers(tmp_path: Path) -> None:
    rows = [plain(1), plain(2, reasoning="<think>\nwhole\n</think>\nfour", answer=4), plain(3, domain="Code")]
    run(write(tmp_path / "a.jsonl", rows), tmp_path / "out", data_source="mine")
    traces = [row["trace"] for row in made(tmp_path / "out", "traces")]
    assert traces[:2] == ["so 1 twice\n</think>\n2", "<think>\nwhole\n</think>\nfour"]
    rows = made(tmp_path / "out", "train")
    assert rows[1]["reward_model"]["ground_truth"] == "4"
    assert (rows[2]["ability"], rows[2]["data_source"]) == ("code", "mine")


def test_every_drop_is_counted_with_its_first_row(tmp_path: Path) -> None:
    rows = [
        openr1(0),
        openr1(1, correctness_math_verify=[False, False, False]),
        openr1(2, correctness_math_verify=None),
        openr1(3, generations=["<think>cut", "cut too", "</think>"], correctness_math_verify=[True, True, True]),
        openr1(4, answer=None),
        openr1(5, problem="  "),
        openr1(0, problem="PROBLEM \n 0"),
        openr1(7, problem="half a pair \ud800"),
        openr1(8, generations=["<think>\n" + "x" * 2000 + "\n</think>", "", ""], correctness_math_verify=[True] * 3),
    ]
    report = run(write(tmp_path / "a.jsonl", rows), tmp_path / "out", max_trace_chars=1000)
    assert (report.rows, report.train) == (9, 1)
    told = {reason: (drop.count, drop.first.split(": ", 1)[1]) for reason, drop in report.drops.items()}
    assert told == {
        "no verified generation": (2, "row 2: 'Problem 1'"),
        "verified generation without reasoning before </think>": (1, "row 4: 'Problem 3'"),
        "answer is null or empty": (1, "row 5: 'Problem 4'"),
        "problem is null or empty": (1, "row 6: ''"),
        "duplicate problem": (1, "row 7: 'PROBLEM 0'"),
        "half of a surrogate pair in a text": (1, "row 8: \"'half a pair \\\\ud800'\""),
        "trace longer than 1000 characters": (1, "row 9: 'Problem 8'"),
    }
    written = json.loads((tmp_path / "out" / "report.json").read_text(encoding="utf-8"))
    assert sum(drop["count"] for drop in written["drops"]) == 8
    assert written["settings"]["max_trace_chars"] == 1000


def test_the_split_depends_on_seed_and_problem_alone(tmp_path: Path) -> None:
    def val_problems(rows: Sequence[Row], name: str, seed: int = 0) -> set[str]:
        report = run(write(tmp_path / f"{name}.jsonl", rows), tmp_path / name, val_share=0.2, seed=seed)
        assert report.train + report.val == len(rows)
        return {row["extra_info"]["problem"] for row in made(tmp_path / name, "val")}

    rows = [plain(n) for n in range(400)]
    few = val_problems(rows[:200], "few")
    assert 20 <= len(few) <= 60
    assert val_problems(rows[::-1], "many") & {row["problem"] for row in rows[:200]} == few
    assert val_problems(rows[:200], "other", seed=1) != few
    splits = {row["problem"]: row["split"] for row in made(tmp_path / "few", "traces")}
    assert {problem for problem, split in splits.items() if split == "val"} == few


def test_benchmark_problems_are_kept_out_and_reported(tmp_path: Path) -> None:
    words = [f"word{i}" for i in range(20)]
    bench = write(tmp_path / "bench.jsonl", [{"problem": "Short one?"}, {"question": " ".join(words)}])
    chat = write(tmp_path / "chat.json", [{"prompt": [{"role": "user", "content": "Asked in a chat"}]}])
    rows = [
        plain(1),
        plain(2, problem="short ONE"),
        plain(3, problem="short one and more"),
        plain(4, problem="Before: " + ", ".join(words[3:16]).upper() + "!"),
        plain(5, problem=" ".join(words[3:15])),
        plain(6, problem="asked, in a chat"),
    ]
    report = run(write(tmp_path / "a.jsonl", rows), tmp_path / "out", decontaminate=(bench, chat))
    assert [row["extra_info"]["problem"] for row in made(tmp_path / "out", "train")] == [
        rows[i]["problem"] for i in (0, 2, 4)
    ]
    hits = {reason: (drop.count, drop.first) for reason, drop in report.drops.items()}
    count, first = hits[f"in the benchmark {bench}"]
    assert count == 2
    assert "row 2" in first
    assert "row 1 there: short one" in first
    assert hits[f"in the benchmark {chat}"][0] == 1
    with pytest.raises(DataError, match="row 1: no problem; a benchmark has it in a column problem, question, prompt"):
        Benchmarks([write(tmp_path / "none.jsonl", [{"answer": 1}])])


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ([openr1(1), openr1(2, correctness_math_verify=[True])], "row 2: 3 generations but 1 correctness_math_verify"),
        (
            [openr1(1), plain(2)],
            "row 2: no column 'generations', which openr1 rows have; it has problem, answer",
        ),
        (
            [{"text": "x"}],
            "row 1: none of the known formats; it has text. They have openr1: problem, answer",
        ),
        ([plain(1, domain="mth")], "row 1: domain: no generator prompt for the domain 'mth'; did you mean 'math'?"),
        ([plain(1, problem=["x"])], "row 1: problem: a list; give a text"),
        ([openr1(1, generations="x")], "row 1: generations: a str; give a list"),
        (
            [openr1(1, correctness_math_verify=[False, "true", None])],
            "row 1: correctness_math_verify: a str in it; give true or false",
        ),
        ([], "a.jsonl: no row; give files with rows"),
        ([plain(1, answer=None)], "no training row is left of 1: 1 answer is null or empty, first"),
        ([plain(1), "x"], "row 2: a str; write one JSON object per line"),
    ],
)
def test_damaged_files_are_refused_and_nothing_is_written(tmp_path: Path, rows: list[Any], message: str) -> None:
    path = write(tmp_path / "a.jsonl", rows)
    with pytest.raises(DataError) as refused:
        run(path, tmp_path / "out")
    assert message in str(refused.value)
    assert "\n" not in str(refused.value)
    assert list(tmp_path.iterdir()) == [path]


def whole_parquet() -> bytes:
    buffer = pyarrow.BufferOutputStream()
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist([plain(n) for n in range(100)]), buffer)
    return bytes(buffer.getvalue())


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.jsonl", b'{"problem": "caf\xe9"}\n', "a.jsonl: row 1: not UTF-8"),
        ("a.json", b'[{"problem": "caf\xe9"}]', "a.json: after row 0: not JSON in UTF-8"),
        ("a.json", json.dumps([plain(1), plain(2)]).encode()[:-30], "a.json: after row 1: not JSON in UTF-8"),
        ("a.json", b'{"problem": "x"}', "a.json: no row; write a list of JSON objects"),
        ("a.json", b"[1]", "a.json: row 1: a int; write a list of JSON objects"),
        ("a.parquet", whole_parquet()[:-200], "a.parquet cannot be read as parquet"),
        ("a.parquet", b"PAR1" + bytes(50) + whole_parquet()[54:], "a.parquet cannot be read as parquet"),
        ("a.csv", b"x", "a.csv ends in .csv; give a .jsonl, .json or .parquet file"),
    ],
)
def test_unreadable_files_end_the_command_with_one_line_and_code_2(
    tmp_path: Path,
    name: str,
    content: bytes,
    message: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    (tmp_path / name).write_bytes(content)
    command = ["data", "prepare", str(tmp_path / name), "--out", str(tmp_path / "out")]
    monkeypatch.setattr(sys, "argv", ["verl-rlkd", *command])
    with pytest.raises(SystemExit) as ended:
        main()
    assert ended.value.code == 2
    error = capsys.readouterr().err
    assert message in error
    assert error.count("\n") == 1
    assert [path.name for path in tmp_path.iterdir()] == [name]


def test_an_existing_folder_is_refused_or_replaced_when_the_new_one_is_whole(tmp_path: Path) -> None:
    good = write(tmp_path / "good.jsonl", [plain(1), plain(2)])
    bad = write(tmp_path / "bad.jsonl", [plain(3), {}])
    run(good, tmp_path / "out")
    with pytest.raises(DataError, match="out exists; give another --out, or --overwrite to replace it"):
        run(good, tmp_path / "out")
    with pytest.raises(DataError, match="no column"):
        prepare([bad], tmp_path / "out", PrepareConfig(), overwrite=True)
    assert len(made(tmp_path / "out", "train")) == 2
    prepare([write(tmp_path / "more.jsonl", [plain(4)])], tmp_path / "out", PrepareConfig(val_share=0), overwrite=True)
    assert len(made(tmp_path / "out", "train")) == 1
    assert not [path.name for path in tmp_path.iterdir() if path.name.startswith(".")]


def test_a_full_disk_leaves_nothing_behind(tmp_path: Path) -> None:
    path = write(tmp_path / "a.jsonl", [plain(n, reasoning=f"{n} so " * 500) for n in range(300)])
    limit = "import resource, signal; signal.signal(signal.SIGXFSZ, signal.SIG_IGN); "
    limit += "resource.setrlimit(resource.RLIMIT_FSIZE, (4096, 4096)); from verl_rlkd.cli import main; main()"
    command = [sys.executable, "-c", limit, "data", "prepare", str(path), "--out", str(tmp_path / "out")]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 2, done.stderr
    assert "out cannot be written: " in done.stderr
    assert done.stderr.count("\n") == 1
    assert list(tmp_path.iterdir()) == [path]


def test_overwrite_deletes_nothing_but_what_prepare_wrote(tmp_path: Path) -> None:
    source = write(tmp_path / "a.jsonl", [plain(1), plain(2)])
    run(source, tmp_path / "out")
    store = tmp_path / "out" / "teachers.sqlite"
    store.write_bytes(b"hours of work")
    with pytest.raises(
        DataError, match=r"out holds 'teachers.sqlite', which `data prepare` did not write; --overwrite"
    ):
        prepare([source], tmp_path / "out", PrepareConfig(), overwrite=True)
    with pytest.raises(DataError, match=r"a.jsonl is a file; give another --out"):
        prepare([source], source, PrepareConfig(), overwrite=True)

    late = write(tmp_path / "late.jsonl", [plain(n) for n in range(3)])
    store.unlink()
    with pytest.raises(DataError, match=r"out holds 'teachers.sqlite'"):
        # It is put there while the rows are read.
        prepare([late], tmp_path / "out", PrepareConfig(), overwrite=True, advance=lambda _: store.touch())
    assert store.exists()
    assert len(made(tmp_path / "out", "train")) == 2
    assert not [path.name for path in tmp_path.iterdir() if path.name.startswith(".")]


def test_a_missing_number_of_pandas_is_no_answer(tmp_path: Path) -> None:
    rows = [plain(1, answer=2.0), plain(2, answer=float("nan"))]
    report = run(write(tmp_path / "a.parquet", rows), tmp_path / "out")
    assert {reason: drop.count for reason, drop in report.drops.items()} == {"answer is null or empty": 1}
    assert [row["reward_model"]["ground_truth"] for row in made(tmp_path / "out", "train")] == ["2.0"]


def test_short_rows_are_not_gathered_without_limit(tmp_path: Path) -> None:
    run(write(tmp_path / "a.jsonl", [plain(n) for n in range(20_000)]), tmp_path / "out")
    for name in ("train", "traces"):
        metadata = pyarrow.parquet.read_metadata(tmp_path / "out" / f"{name}.parquet")
        assert max(metadata.row_group(i).num_rows for i in range(metadata.num_row_groups)) <= 8_000


@pytest.mark.parametrize(
    "setting",
    [
        {"source": "openr2"},
        {"val_share": 1.0},
        {"val_share": float("nan")},
        {"max_trace_chars": 0},
        {"domain": "x"},
        {"system_prompt": "\udcff"},
        {"instruction": "\udcff"},
    ],
)
def test_wrong_settings_are_refused(setting: dict[str, Any]) -> None:
    with pytest.raises(ConfigError):
        PrepareConfig(**setting)


def test_memory_does_not_grow_with_the_file(tmp_path: Path) -> None:
    def peak_mb(path: Path) -> float:
        command = [sys.executable, "-m", "verl_rlkd.cli", "data", "prepare", str(path), "--out", str(path) + ".out"]
        code = "import resource, subprocess, sys; subprocess.run(sys.argv[1:], check=True, stdout=subprocess.DEVNULL); "
        code += "print(resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss / 1024)"
        done = subprocess.run([sys.executable, "-c", code, *command], capture_output=True, text=True, check=True)
        return float(done.stdout)

    text = "".join(chr(97 + i * i % 26) for i in range(50_000))
    rows = [plain(n, reasoning=f"{n} {text}") for n in range(8000)]
    table = pyarrow.Table.from_pylist(rows)
    # 400 MB in one row group, which pyarrow would read as a whole.
    pyarrow.parquet.write_table(table, tmp_path / "big.parquet", compression="none", use_dictionary=False)
    assert (tmp_path / "big.parquet").stat().st_size > 400e6
    small = write(tmp_path / "small.parquet", rows[:10])
    assert peak_mb(tmp_path / "big.parquet") - peak_mb(small) < 250


@pytest.mark.parametrize(
    ("text", "boxed"),
    [
        (r"\boxed{1} then \boxed{ \frac{1}{2} }.", r"\frac{1}{2}"),
        (r"\boxed{1", None),
        ("none", None),
        (r"\boxed{}", None),
    ],
)
def test_last_boxed(text: str, boxed: str | None) -> None:
    assert last_boxed(text) == boxed

"""``verl-rlkd data validate`` and ``data inspect``, on real traces and on every fault they name."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pyarrow
import pyarrow.parquet
import pytest
from runs import user, write_store
from typer.testing import CliRunner

from verl_rlkd.checks import Check
from verl_rlkd.cli import app, main
from verl_rlkd.config import GeneratorConfig
from verl_rlkd.data.tags import check_tags
from verl_rlkd.data.validation import validate_data
from verl_rlkd.gsrm.prompting import prompt_version
from verl_rlkd.gsrm.store import TeacherRecord, TeacherStoreWriter, prompt_key
from verl_rlkd.types import Step, Structure

TRACES = Path(__file__).parents[1] / "recipes" / "cpu_demo" / "traces.jsonl"
STEPS = (Step("first", "what?", "a"), Step("second", None, "b"), Step("third", "how?", None))
Row = dict[str, Any]


def training_row(text: str, **changes: Any) -> Row:
    row = {"prompt": user(text), "data_source": "x", "reward_model": {"ground_truth": "1"}, "extra_info": {"index": 0}}
    return row | changes


def write_parquet(path: Path, rows: Sequence[Row]) -> Path:
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(list(rows)), path)
    return path


@pytest.fixture
def good(tmp_path: Path) -> dict[str, Any]:
    """Arguments of ``validate_data`` that pass."""
    write_store(tmp_path / "s.sqlite", dict.fromkeys(("a", "b"), STEPS))
    train = write_parquet(tmp_path / "train.parquet", [training_row("a"), training_row("b")])
    val = write_parquet(tmp_path / "val.parquet", [training_row("c")])
    return {"train_files": [train], "val_files": [val], "store": tmp_path / "s.sqlite"}


@pytest.fixture(scope="module")
def traces(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The demo's real traces as ``data structure`` reads them."""
    path = tmp_path_factory.mktemp("traces") / "traces.jsonl"
    rows = [json.loads(line) for line in TRACES.read_text(encoding="utf-8").splitlines()]
    path.write_text("".join(json.dumps({**row, "prompt": user(row["problem"])}) + "\n" for row in rows))
    return path


def named(checks: Sequence[Check], name: str) -> Check:
    (found,) = (check for check in checks if check.name == name)
    return found


def test_good_data_passes(good: dict[str, Any]) -> None:
    checks = validate_data(**good)
    assert [(check.name, check.status) for check in checks] == [
        ("training rows", "ok"),
        ("validation rows", "ok"),
        ("overlap", "ok"),
        ("teachers", "ok"),
        ("prompt version", "ok"),
        ("steps", "ok"),
    ]
    steps = named(checks, "steps").detail
    assert steps.startswith("mean 3.0; structures by number of steps 3:█2")
    assert "33% of steps have no sub-problem; 33% of steps have no answer" in steps


@pytest.mark.parametrize(
    ("rows", "detail"),
    [
        (
            [training_row("a"), training_row("b", reward_model={"style": "x"})],
            r"row 2: reward_model has no ground_truth",
        ),
        ([training_row("a", extra_info={"domain": "mth"})], r"row 1: extra_info\.domain: .*did you mean 'math'"),
        ([{"prompt": user("a"), "data_source": "x"}], r"row 1: no column 'reward_model'; it has prompt, data_source"),
        ([training_row("a", prompt="a")], r"row 1: prompt: no chat messages"),
        (
            [training_row(text, reward_model={"ground_truth": None}) for text in "ab"],
            r"row 1: reward_model has no ground_truth; .* \(2 rows in all\)",
        ),
    ],
)
def test_bad_rows_are_named(good: dict[str, Any], tmp_path: Path, rows: list[Row], detail: str) -> None:
    bad = write_parquet(tmp_path / "bad.parquet", rows)
    check = named(validate_data(**good | {"train_files": [bad]}), "training rows")
    assert check.status == "failed"
    assert str(bad) in check.detail
    assert re.search(detail, check.detail)


def test_a_truncated_parquet_file_is_named(good: dict[str, Any], tmp_path: Path) -> None:
    whole = good["train_files"][0].read_bytes()
    (tmp_path / "cut.parquet").write_bytes(whole[: len(whole) // 2])
    check = named(validate_data(**good | {"train_files": [tmp_path / "cut.parquet"]}), "training rows")
    assert check.status == "failed"
    assert "cut.parquet cannot be read as parquet" in check.detail


def test_rows_without_a_teacher_are_counted(good: dict[str, Any], tmp_path: Path) -> None:
    more = write_parquet(tmp_path / "more.parquet", [training_row(text) for text in "axyx"])
    check = named(validate_data(**good | {"train_files": [more]}), "teachers")
    assert check.status == "failed"
    assert check.detail.startswith("2 of 3 prompts have no structure in")
    assert check.detail.endswith("more.parquet: row 2")


def test_a_missing_store_is_named(good: dict[str, Any], tmp_path: Path) -> None:
    check = named(validate_data(**good | {"store": tmp_path / "none.sqlite"}), "teachers")
    assert check.status == "failed"
    assert "no such teacher store; make it with `verl-rlkd data structure`" in check.detail


def test_a_store_made_with_another_prompt_is_a_warning(good: dict[str, Any], tmp_path: Path) -> None:
    for version, status in ((prompt_version("math"), "ok"), ("0123456789ab", "warning")):
        path = tmp_path / f"{version}.sqlite"
        with TeacherStoreWriter(path, {"model": "m", "prompt version of math": version}) as writer:
            for text in ("a", "b"):
                record = TeacherRecord(
                    structure=Structure(STEPS), domain="math", prompt_version=version, model="m",
                    trace_sha256="0" * 64, path_truncated=False, cut=False,
                )  # fmt: skip
                writer.put(prompt_key(user(text)), record)
        assert named(validate_data(**good | {"store": path}), "prompt version").status == status


@pytest.mark.parametrize(
    ("steps", "detail"),
    [
        ((Step("only", "what?", "a"),), "100% have a single step"),
        ((Step("same", "what?", "a"),) * 4, "100% say the same in all their steps"),
    ],
)
def test_structures_that_say_little_are_a_warning(
    good: dict[str, Any], tmp_path: Path, steps: tuple[Step, ...], detail: str
) -> None:
    write_store(tmp_path / "odd.sqlite", {"a": steps, "b": steps})
    check = named(validate_data(**good | {"store": tmp_path / "odd.sqlite"}), "steps")
    assert check.status == "warning"
    assert check.detail.startswith(detail)


def test_prompts_in_training_and_validation_are_a_warning(good: dict[str, Any]) -> None:
    check = named(validate_data(**good | {"val_files": good["train_files"]}), "overlap")
    assert check.status == "warning"
    assert check.detail.startswith("2 prompts are in training and validation, the first in")


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder of a tokenizer: a token per character, the tags are special tokens."""
    from tiny_policy import make_tiny_policy

    folder = tmp_path_factory.mktemp("policy")
    make_tiny_policy(folder)
    return folder


def loaded(folder: Path) -> Any:
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(folder)


def test_prompts_longer_than_the_limit_fail_with_a_limit_that_fits(good: dict[str, Any], tokenizer: Path) -> None:
    measured = good | {"tokenizer": loaded(tokenizer)}
    # "a" and a line feed by the chat template.
    assert "2 / 2 / 2 / 2 tokens" in named(validate_data(**measured), "prompt lengths").detail
    check = named(validate_data(**measured, max_prompt_length=1), "prompt lengths")
    assert check.status == "failed"
    assert check.cure.startswith("set data.max_prompt_length=64;")
    assert named(validate_data(**measured, max_prompt_length=2), "prompt lengths").status == "ok"


def test_paths_longer_than_the_context_are_counted(good: dict[str, Any], traces: Path, tokenizer: Path) -> None:
    def lengths(context: int, **more: Any) -> Check:
        generator = GeneratorConfig(context_tokens=context, max_tokens=1000)
        return named(validate_data(**good, traces=traces, generator=generator, **more), "path lengths")

    assert lengths(1_000_000).status == "ok"
    check = lengths(4096)
    assert check.status == "warning"
    assert "8 of 8 paths would be cut" in check.detail
    suggested = int(check.cure.split("=")[1].split()[0])
    assert lengths(suggested).status == "ok"
    assert suggested % 1024 == 0
    # A character per token is more than estimated; a sample is said to be one.
    assert lengths(suggested, gsrm_tokenizer=loaded(tokenizer)).status == "warning"
    assert "(of 3 drawn from 8)" in lengths(1_000_000, sample=3).detail


def test_tags_as_special_tokens_are_told(tokenizer: Path) -> None:
    tokens, decoded, prefill = check_tags(loaded(tokenizer), think_prefilled=False)
    assert tokens.detail.startswith("<think> </think> <answer> </answer>: one special token (the reward keeps them")
    assert decoded.status == prefill.status == "ok"


@pytest.mark.parametrize(("opens", "setting"), [(True, False), (False, True)])
def test_who_opens_think_must_agree_with_the_setting(tokenizer: Path, opens: bool, setting: bool) -> None:
    policy = loaded(tokenizer)
    if opens:
        policy.chat_template += "{% if add_generation_prompt %}<think>\n{% endif %}"
    check = named(check_tags(policy, think_prefilled=setting), "<think> in the chat template")
    assert check.status == "failed"
    assert check.cure == f"set rlkd.think_prefilled={str(opens).lower()}"
    assert named(check_tags(policy, think_prefilled=opens), "<think> in the chat template").status == "ok"


def test_a_tokenizer_that_loses_the_format_fails(tokenizer: Path) -> None:
    from tokenizers import normalizers

    policy = loaded(tokenizer)
    policy.backend_tokenizer.normalizer = normalizers.Replace("\n", " ")
    check = named(check_tags(policy, think_prefilled=False), "tags decoded")
    assert check.status == "failed"
    policy.chat_template = None
    assert named(check_tags(policy, think_prefilled=False), "<think> in the chat template").status == "failed"


def test_the_command_prints_lines_or_json_and_fails_with_1(good: dict[str, Any], tmp_path: Path) -> None:
    arguments = ["data", "validate", "--train-files", str(good["train_files"][0]), "--store", str(good["store"])]
    done = CliRunner().invoke(app, arguments)
    assert done.exit_code == 0
    assert "ok  training rows" in done.output
    more = write_parquet(tmp_path / "more.parquet", [training_row("x")])
    done = CliRunner().invoke(app, [*arguments, "--train-files", str(more), "--json"])
    assert done.exit_code == 1
    (failed,) = (check for check in json.loads(done.output) if check["status"] == "failed")
    assert failed["name"] == "teachers"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["data", "validate"], "nothing to check; give the folder of `data prepare`"),
        (["data", "validate", "nowhere"], "nowhere is not a folder"),
        (
            ["data", "validate", "--train-files", "a", "--store", "b", "--max-tokens", "99999"],
            "context_tokens is 32768",
        ),
        (["data", "inspect", "--traces", "a", "--store", "b"], "which row? give either --row or --problem"),
        (["data", "inspect", "--traces", "TRACES", "--store", "b", "--row", "1"], "b: no such teacher store"),
        (["data", "inspect", "--traces", "TRACES", "--store", "b", "--row", "99"], "row 99 is not there"),
        (["data", "inspect", "--traces", "TRACES", "--store", "b", "--problem", "zebra"], "no problem holds 'zebra'"),
    ],
)
def test_wrong_arguments_end_with_one_line_and_code_2(
    traces: Path,
    arguments: list[str],
    message: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    named_files = [str(traces) if argument == "TRACES" else argument for argument in arguments]
    monkeypatch.setattr("sys.argv", ["verl-rlkd", *named_files])
    with pytest.raises(SystemExit) as ended:
        main()
    assert ended.value.code == 2
    error = capsys.readouterr().err
    assert message in error
    assert error.count("\n") == 1


def test_inspect_shows_problem_path_and_structure(tmp_path: Path) -> None:
    row = json.loads(TRACES.read_text(encoding="utf-8").splitlines()[1])
    traces = tmp_path / "t.jsonl"
    traces.write_text(json.dumps({**row, "prompt": user("the prompt")}) + "\n", encoding="utf-8")
    write_store(tmp_path / "s.sqlite", {"the prompt": STEPS, "other": STEPS})
    where = ["--traces", str(traces), "--store", str(tmp_path / "s.sqlite")]
    words = row["problem"].split()
    done = CliRunner().invoke(app, ["data", "inspect", *where, "--problem", " ".join(words[:3]).upper()])
    assert done.exit_code == 0, done.output
    for text in (*words[:3], "characters; --full shows them", "first", "how?", "by by hand", "CHANGED SINCE"):
        assert text in done.output
    full = CliRunner().invoke(app, ["data", "inspect", *where, "--row", "1", "--full"])
    assert "--full shows them" not in full.output
    assert len(full.output) > len(done.output)

"""What counts as the same problem as a benchmark's."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from verl_rlkd.data.decontamination import Benchmarks, Hit, N

WORDS = [f"w{i}" for i in range(N + 3)]


def benchmark(folder: Path, *problems: str) -> Benchmarks:
    path = folder / "bench.jsonl"
    path.write_text("".join(json.dumps({"problem": problem}) + "\n" for problem in problems), encoding="utf-8")
    return Benchmarks([path])


@pytest.mark.parametrize(
    ("problem", "known"),
    [
        pytest.param(" ".join(WORDS), True, id="the same"),
        pytest.param("before " + " ".join(WORDS[:N]) + " after", True, id="its first 13 words"),
        pytest.param(" ".join(WORDS[3:]), True, id="its last 13 words"),
        pytest.param(" ".join(WORDS[: N - 1]), False, id="12 words"),
        pytest.param(" ".join(WORDS[: N - 1]) + " x " + " ".join(WORDS[N - 1 :]), False, id="a word between"),
        pytest.param("-- ".join(WORDS).upper(), True, id="other case and punctuation"),
        pytest.param("".join(chr(ord(c) + 0xFEE0) if c > " " else c for c in " ".join(WORDS)), True, id="full width"),
    ],
)
def test_thirteen_words_in_a_row_are_a_hit(tmp_path: Path, problem: str, known: bool) -> None:
    assert (benchmark(tmp_path, "other", " ".join(WORDS)).find(problem) is not None) is known


def test_a_hit_says_where_and_what(tmp_path: Path) -> None:
    found = benchmark(tmp_path, "other", " ".join(WORDS)).find("so: " + " ".join(WORDS[1:]))
    assert found == Hit(tmp_path / "bench.jsonl", 2, " ".join(WORDS[1 : N + 1]))


def test_problems_without_a_word_are_not_all_the_same(tmp_path: Path) -> None:
    assert benchmark(tmp_path, "$$ + $$").find("?!") is None

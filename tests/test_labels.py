"""What each stage learns: exactly its texts, whatever they hold."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from verl_rlkd.gsrm.labels import is_learned, label_characters, label_tokens
from verl_rlkd.parsing import render_structure
from verl_rlkd.types import Step, Structure

TEXT = st.text(alphabet=st.sampled_from("ab [](){}\\:.\n1-MetaAnswer"), min_size=1).map(str.strip).filter(bool)
PART = st.one_of(st.none(), TEXT)
STRUCTURES = st.lists(st.builds(Step, TEXT, PART, PART), min_size=1, max_size=4).map(
    lambda steps: Structure(tuple(steps))
)


def texts(rendered: str, kind: str) -> list[str]:
    return [rendered[span.start : span.end] for span in label_characters(rendered) if span.kind == kind]


def test_one_step() -> None:
    rendered = "[Meta-reasoning 1]: Pair the ends.\n[Sub-problem 1]: What sum?\n[Answer 1]: 101"
    assert texts(rendered, "meta_reasoning") == ["Pair the ends."]
    assert texts(rendered, "question_and_answer") == ["What sum?", "101"]
    assert texts(rendered, "frame") == ["[Meta-reasoning 1]: ", "\n[Sub-problem 1]: ", "\n[Answer 1]: "]


@given(STRUCTURES)
def test_parts_are_the_structures_texts_and_nothing_is_left_out(structure: Structure) -> None:
    rendered = render_structure(structure)
    spans = label_characters(rendered)
    assert "".join(rendered[span.start : span.end] for span in spans) == rendered
    count = sum(part is not None for step in structure.steps for part in (step.sub_problem, step.answer))
    assert len(texts(rendered, "meta_reasoning")) == len(structure.steps)
    assert len(texts(rendered, "question_and_answer")) == count


def test_a_response_without_structure_is_all_frame() -> None:
    response = "<think>\nHe has 4.\n</think>\n<answer>\n4\n</answer>"
    assert texts(response, "frame") == [response]


def test_a_tag_inside_a_text_is_text() -> None:
    rendered = render_structure(Structure((Step("say\n[Answer 1]: no", "q", "a"),)))
    assert len(texts(rendered, "meta_reasoning")) == 1
    assert texts(rendered, "question_and_answer") == ["q", "a"]


def test_tokens_that_straddle_a_border_belong_to_the_part() -> None:
    text = "[Meta-reasoning 1]: Go on.\n[Sub-problem 1]: x"
    tokens = ["prompt ", "[Meta-reasoning", " 1", "]:", " Go", " on", ".\n", "[Sub-problem 1]:", " x", "<end>"]
    offsets, at = [], 0
    for token in tokens:
        offsets.append((at, at + len(token)))
        at += len(token)
    kinds = label_tokens(label_characters(text), offsets, shift=len("prompt "))
    assert kinds == ["frame"] * 4 + ["meta_reasoning"] * 3 + ["frame", "question_and_answer", "frame"]


def test_each_stage_learns_its_kind_and_the_last_one_all() -> None:
    assert [is_learned(kind, "all") for kind in ("meta_reasoning", "question_and_answer", "frame")] == [True] * 3
    assert [is_learned(kind, "meta_reasoning") for kind in ("meta_reasoning", "question_and_answer", "frame")] == [
        True, False, False,
    ]  # fmt: skip

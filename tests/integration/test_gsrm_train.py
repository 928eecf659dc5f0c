"""Structured Fine-grained Training by verl's own SFT trainer: labels under any chat template, stages, resume."""

from __future__ import annotations

import dataclasses
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from hydra import compose, initialize_config_module
from omegaconf import OmegaConf
from stub_server import Answer, Payload, StubServer, completion, text_of
from tiny_policy import CHAT_TEMPLATE, make_tiny_policy

from verl_rlkd.branchworld.rows import PROMPTS
from verl_rlkd.cli import app
from verl_rlkd.commands.terminal import load_tokenizer
from verl_rlkd.config import GeneratorConfig, RetryConfig
from verl_rlkd.data.world import WorldSizes, write_world
from verl_rlkd.errors import ConfigError, DataError
from verl_rlkd.evaluation.gsrm import evaluate_gsrm
from verl_rlkd.gsrm.labels import STAGES, Stage, is_learned
from verl_rlkd.integration.gsrm_training import TrainConfig, _overrides, check_rows, train
from verl_rlkd.integration.serving import serve
from verl_rlkd.integration.sft_dataset import StructureDataset, encode
from verl_rlkd.parsing import parse_structure
from verl_rlkd.rewards import split_response

ROOT = Path(__file__).parents[2]
MODEL = ROOT / "recipes" / "miniature" / "models" / "gsrm"
TEMPLATES = {
    "chatml": "{% for m in messages %}<|im_start|>{{ m['role'] }}\n{{ m['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}",
    "headers": "{% for m in messages %}[{{ m['role'] }}]\n\n{{ m['content'] | trim }}<eot>{% endfor %}"
    "{% if add_generation_prompt %}[assistant]\n\n{% endif %}",
    "bare": "{% for m in messages %}{{ m['content'] }}{% if m['role'] == 'assistant' %}<eot>{% endif %}\n{% endfor %}",
    "thinking": "{% for m in messages %}<{{ m['role'] }}>"
    "{% if m['role'] == 'assistant' %}<think>\n\n</think>\n{% endif %}"
    "{{ m['content'] }}<eot>{% endfor %}{% if add_generation_prompt %}<assistant>{% endif %}",
}


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("gsrm") / "data"
    write_world(folder, WorldSizes(train=1, val=0, shifted=0, gsrm_train=16, gsrm_val=0), seed=3)
    return folder / "gsrm" / "train.parquet"


def conversations(path: Path) -> list[list[dict[str, str]]]:
    return [list(messages) for messages in pd.read_parquet(path)["messages"]]


@pytest.fixture(scope="module")
def tokenizer() -> Any:
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(MODEL)


@pytest.mark.parametrize("template", TEMPLATES)
def test_what_a_stage_learns_decodes_to_exactly_its_texts(template: str, data: Path, tokenizer: Any) -> None:
    tokenizer.chat_template = TEMPLATES[template]
    for messages in conversations(data):
        steps = parse_structure(messages[-1]["content"]).steps
        ids, kinds = encode(tokenizer, messages)
        learned = {
            stage: [
                tokenizer.decode(run).strip()
                for run in runs(ids, [kind is not None and is_learned(kind, stage) for kind in kinds])
            ]
            for stage in STAGES
        }
        assert learned["meta_reasoning"] == [step.meta_reasoning for step in steps]
        assert learned["question_and_answer"] == [part for step in steps for part in (step.sub_problem, step.answer)]
        (everything,) = learned["all"]
        assert messages[-1]["content"] in everything
        assert everything.startswith("<think>" if template == "thinking" else "[Meta-reasoning 1]")
        assert everything.endswith("<|im_end|>" if template == "chatml" else "<eot>")


def runs(ids: list[int], mask: list[bool]) -> list[list[int]]:
    """The stretches of ``ids`` where ``mask`` holds."""
    found: list[list[int]] = []
    for i, (token, wanted) in enumerate(zip(ids, mask, strict=True)):
        if wanted and i and mask[i - 1]:
            found[-1].append(token)
        elif wanted:
            found.append([token])
    return found


@pytest.mark.parametrize("stage", STAGES)
def test_the_dataset_masks_as_verl_expects(stage: Stage, data: Path, tokenizer: Any) -> None:
    from omegaconf import OmegaConf

    tokenizer.chat_template = TEMPLATES["chatml"]
    config = OmegaConf.create({"rlkd_stage": stage, "max_length": 2048, "pad_mode": "no_padding"})
    row = StructureDataset(str(data), tokenizer, config)[0]
    assert row["input_ids"].shape == row["position_ids"].shape == row["loss_mask"].shape
    assert 0 < int(row["loss_mask"].sum()) < len(row["input_ids"])


def settings(data: Path, **changes: Any) -> TrainConfig:
    defaults = {"model": str(MODEL), "train_files": str(data), "batch_size": 16, "max_length": 1280, "lr": 1e-3}
    return TrainConfig(**{**defaults, **changes})


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("pipeline") / "world"
    write_world(folder, WorldSizes(train=1, val=0, shifted=0, gsrm_train=28, gsrm_val=8), seed=11)
    return folder


@pytest.fixture(scope="module")
def annotated(world: Path) -> Path:
    """Annotations of the world's traces, by a stub that errs and a command that was killed in the middle."""
    out = world.parent / "annotations"
    rows = pd.read_parquet(world / "gsrm" / "train.parquet")
    true = {str(split_response(row["trace"]).reasoning): row["messages"][1]["content"] for _, row in rows.iterrows()}
    hopeless = next(iter(true))

    def annotator(payload: Payload) -> Answer:
        text = text_of(payload)
        trace = next(trace for trace in true if trace in text)
        if trace == hopeless:
            return completion("I would rather not.")
        # Every third is garbage at first.
        return completion("garbage" if payload["seed"] == 0 and len(trace) % 3 == 0 else true[trace])

    with StubServer(annotator, latency_s=0.1) as server:
        command = [
            sys.executable, "-m", "verl_rlkd.cli", "gsrm", "annotate", "--out", str(out), "--val-share", "0",
            "--traces", str(world / "gsrm" / "train.parquet"), "--base-url", server.base_url, "--model", "gsrm",
            "--prompt-dir", str(PROMPTS), "--concurrency", "2", "--attempts", "2",
        ]  # fmt: skip
        first = subprocess.Popen(command)
        log, deadline = out / "log.jsonl", time.monotonic() + 60
        while time.monotonic() < deadline and (not log.exists() or log.read_bytes().count(b"\n") < 8):
            time.sleep(0.02)
        os.kill(first.pid, signal.SIGKILL)
        first.wait()
        server.latency_s = 0
        assert subprocess.run(command, check=False).returncode == 0
    return out


def test_annotations_are_whole_after_faults_and_a_kill(annotated: Path, world: Path) -> None:
    rows, written = (pd.read_parquet(path) for path in (world / "gsrm" / "train.parquet", annotated / "train.parquet"))
    true = {row["trace"]: list(row["steps"]) for _, row in rows.iterrows()}
    assert len(written) == len(set(written["trace"])) == 27
    assert all(list(row["steps"]) == true[row["trace"]] for _, row in written.iterrows())
    report = json.loads((annotated / "report.json").read_text(encoding="utf-8"))
    assert report["drops"] == {"the annotator's answer holds no complete step": 1}


@pytest.fixture(scope="module")
def trained(annotated: Path) -> tuple[TrainConfig, Path, list[str]]:
    # Three single steps shall change the weights and leave a GSRM that is still good.
    config, out, told = settings(annotated / "train.parquet", lr=1e-4), annotated.parent / "out", list[str]()
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("VERL_PLATFORM", "cpu")
        assert train(config, out, announce=told.append).resolve() == out / "3_all" / "model"
    return config, out, told


def test_each_stage_starts_from_the_last_ones_weights(trained: tuple[TrainConfig, Path, list[str]]) -> None:
    _config, out, told = trained
    folders = [out / "1_meta_reasoning", out / "2_question_and_answer", out / "3_all"]
    starts = [MODEL, *(folder / "model" for folder in folders)]
    assert [text.split(": from ") for text in told] == [
        ["stage 1 of 3, meta_reasoning", str(starts[0])],
        ["stage 2 of 3, question_and_answer", str(starts[1])],
        ["stage 3 of 3, all", str(starts[2])],
    ]
    for before, after in zip(starts, folders, strict=False):
        assert not same_weights(before, after / "model")
        steps = [json.loads(line) for line in (after / "metrics.jsonl").read_text().splitlines()]
        assert [line["step"] for line in steps] == [1]


def test_the_trained_gsrm_is_served_and_measured(trained: tuple[TrainConfig, Path, list[str]], world: Path) -> None:
    out = trained[1]
    options = ("--enforce-eager", "--max-model-len", "1536", "--dtype", "bfloat16")
    with serve(out / "model", out / "vllm.log", name="gsrm", options=options) as base_url:
        found = evaluate_gsrm(
            world / "gsrm" / "val.parquet",
            out / "quality",
            GeneratorConfig(
                base_url=base_url, model="gsrm", prompt_dir=str(PROMPTS), max_tokens=768, context_tokens=1536
            ),
            retry=RetryConfig(),
            # Estimated lengths would cut the longest traces.
            tokenizer=load_tokenizer(MODEL),
        )
    assert found["all"]["parsed"].mean >= 0.8
    assert found["all"]["exact_steps"].mean >= 0.7


def test_finished_stages_are_kept_and_lost_ones_told(
    trained: tuple[TrainConfig, Path, list[str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    config, out, _told = trained
    monkeypatch.setenv("VERL_PLATFORM", "cpu")
    with pytest.raises(ConfigError, match=r"1_meta_reasoning was trained with lr 0\.0001, not 0\.01"):
        train(dataclasses.replace(config, lr=1e-2), out)
    # As if killed in stage 3: only that is run again.
    shutil.rmtree(out / "3_all")
    told: list[str] = []
    train(config, out, announce=told.append)
    assert [text.partition(": from ")[0] for text in told if ": from " in text] == ["stage 3 of 3, all"]
    shutil.rmtree(out / "2_question_and_answer" / "model")
    with pytest.raises(DataError, match=r"2_question_and_answer was finished but .* is gone; remove"):
        train(config, out)
    shutil.rmtree(out / "2_question_and_answer")
    with pytest.raises(DataError, match=r"3_all is there, but .*2_question_and_answer before it is not"):
        train(config, out)


def same_weights(first: Path, second: Path) -> bool:
    from safetensors.torch import load_file

    ours, theirs = load_file(first / "model.safetensors"), load_file(second / "model.safetensors")
    return all(bool((ours[name].float() == theirs[name].float()).all()) for name in ours.keys() & theirs.keys())


def parquet(path: Path, conversations: list[list[dict[str, str]]]) -> Path:
    pd.DataFrame({"messages": conversations}).to_parquet(path)
    return path


def test_rows_that_cannot_be_trained_on_are_one_line(data: Path, tmp_path: Path) -> None:
    rows = conversations(data)
    with pytest.raises(DataError, match="row 2: messages: asks the same as row 1; keep one of them"):
        check_rows(settings(parquet(tmp_path / "twice.parquet", [rows[0], rows[0]])))
    with pytest.raises(DataError, match="has no rows; give a split with rows"):
        check_rows(settings(parquet(tmp_path / "empty.parquet", [])))
    with pytest.raises(DataError, match="row 1: messages: they do not end in the assistant's structure"):
        check_rows(settings(parquet(tmp_path / "cut.parquet", [rows[0][:1]])))
    with pytest.raises(DataError, match=r"row \d+: messages: \d+ tokens, max_length is 100; leave it out or raise it"):
        check_rows(settings(data, max_length=100))
    with pytest.raises(DataError, match="has 16 rows, a batch 32; give more rows or a smaller batch"):
        check_rows(settings(data, batch_size=32))


def test_a_tokenizer_that_does_not_fit_is_one_line(data: Path, tmp_path: Path) -> None:
    make_tiny_policy(tmp_path / "other")
    tokenizer_file = tmp_path / "other" / "tokenizer_config.json"
    assert CHAT_TEMPLATE
    (tmp_path / "other" / "chat_template.jinja").unlink(missing_ok=True)
    text = json.loads(tokenizer_file.read_text())
    text.pop("chat_template", None)
    tokenizer_file.write_text(json.dumps(text))
    with pytest.raises(ConfigError, match="has no chat template; give an instruct model"):
        check_rows(settings(data, model=str(tmp_path / "other")))
    shutil.copytree(MODEL, tmp_path / "mixed")
    shutil.copy(tmp_path / "other" / "model.safetensors", tmp_path / "mixed")
    shutil.copy(tmp_path / "other" / "config.json", tmp_path / "mixed")
    with pytest.raises(
        ConfigError, match=r"its tokenizer has \d+ tokens, its weights \d+: they do not belong together"
    ):
        check_rows(settings(data, model=str(tmp_path / "mixed")))


@pytest.mark.parametrize("changes", [{"epochs": 0}, {"batch_size": 0}, {"lr": 0.0}, {"lora_rank": -1}])
def test_wrong_settings_are_refused(changes: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match="give"):
        settings(Path("x"), **changes)


@pytest.mark.parametrize("recipe", sorted((ROOT / "recipes" / "gsrm").glob("*.yaml")), ids=lambda path: path.stem)
def test_every_recipe_is_a_configuration_of_verls_trainer(recipe: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[TrainConfig] = []

    def remember(config: TrainConfig, out: Path, **_: Any) -> Path:
        asked.append(config)
        return out

    monkeypatch.setattr("verl_rlkd.integration.gsrm_training.train", remember)
    given = ["--config", str(recipe), "--train-files", "train.parquet", "--out", "out", "--lr", "0.5"]
    app(["gsrm", "train", *given], standalone_mode=False)
    (config,) = asked
    assert config.lr == 0.5  # the command line prevails
    yaml_keys = OmegaConf.load(recipe)
    assert (config.model, config.batch_size) == (yaml_keys.model, yaml_keys.batch_size)
    overrides = _overrides(config, "all", Path("checkpoints"), start=config.model, adapter=None)
    with initialize_config_module("verl.trainer.config", version_base=None):
        composed = compose("sft_trainer_engine", overrides=[one for one in overrides if not one.startswith("hydra.")])
    assert composed.data.train_batch_size == config.batch_size
    for override in config.overrides:
        name, _, value = override.partition("=")
        assert str(OmegaConf.select(composed, name)).lower() == value


def test_an_unknown_key_of_a_recipe_is_one_line(tmp_path: Path) -> None:
    path = tmp_path / "recipe.yaml"
    path.write_text("learning_rate: 1\n", encoding="utf-8")
    with pytest.raises(ConfigError, match=r"\['learning_rate'\] is not known; give options of this command"):
        app(["gsrm", "train", "--config", str(path), "--train-files", "x", "--out", "y"], standalone_mode=False)

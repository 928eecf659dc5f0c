"""A run that cannot work ends before a model loads, with one line that names key, file or row, and the cure."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import pandas as pd
import pytest
from omegaconf import OmegaConf
from runs import ROOT, compose, main_ppo, user, write_store
from stub_server import StubServer

from verl_rlkd.errors import ConfigError, DataError
from verl_rlkd.types import Step

NOWHERE = "http://127.0.0.1:9/v1"
STEP = Step("think", "what?", "that")


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("store") / "teachers.sqlite"
    write_store(path, {"known": (STEP,)})
    return path


HOSTED = ("reward.reward_model.enable=true", "reward.reward_model.model_path=somewhere")


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        pytest.param(
            ("trainer.v1.trainer_mode=sync",),
            "the reward manager rlkd needs its trainer mode; set trainer.v1.trainer_mode=rlkd_sync",
            id="without the trainer mode",
        ),
        pytest.param(
            ("trainer.v1.trainer_mode=colocate_async",),
            "the reward manager rlkd needs its trainer mode; set trainer.v1.trainer_mode=rlkd_colocate_async",
            id="without the async trainer mode",
        ),
        pytest.param(
            ("trainer.use_v1=false",),
            "the reward manager rlkd needs its trainer mode; set trainer.v1.trainer_mode=rlkd_sync and "
            "trainer.use_v1=true",
            id="legacy trainer",
        ),
        pytest.param(
            ("reward.reward_manager.name=naive",),
            "trainer.v1.trainer_mode is rlkd_sync but reward.reward_manager.name is naive; "
            "set reward.reward_manager.name=rlkd",
            id="without the reward manager",
        ),
        pytest.param(
            ("actor_rollout_ref.rollout.n=1",),
            "actor_rollout_ref.rollout.n is 1; RLKD compares the responses of a group: give 2 or more",
            id="groups of one",
        ),
        pytest.param((), "no GSRM: set reward.reward_model.enable=true and", id="no GSRM"),
        pytest.param(
            (*HOSTED, "reward.custom_reward_function.path=null"),
            "reward.custom_reward_function.path is null, so verl would never call",
            id="verl would classify",
        ),
        pytest.param(HOSTED, "rlkd.teacher_store is null; make one with `verl-rlkd data structure`", id="no store"),
        pytest.param(
            (f"rlkd.generator.base_url={NOWHERE}", "rlkd.generator.model=gsrm"),
            "rlkd.generator.base_url",
            id="generator down",
        ),
        pytest.param((*HOSTED, f"rlkd.matcher.base_url={NOWHERE}"), "rlkd.matcher.base_url", id="judge down"),
        pytest.param(
            ("rlkd.matcher.threshold=1.5",), "rlkd.matcher.threshold is 1.5; give a value in [0, 1]", id="value"
        ),
        pytest.param(
            ("+rlkd.matcher.treshold=0.5",),
            "rlkd.matcher.treshold is not a setting; did you mean rlkd.matcher.threshold?",
            id="key",
        ),
        pytest.param(("rlkd.weights.tags=-1",), "rlkd.weights.tags is -1.0; give a finite weight >= 0", id="weight"),
    ],
)
def test_check_run_refuses_with_one_line(overrides: tuple[str, ...], message: str) -> None:
    from verl_rlkd.integration.run_config import check_run

    with pytest.raises(ConfigError) as refused:
        check_run(compose(*overrides))
    assert str(refused.value).startswith(message)
    assert "\n" not in str(refused.value)


def test_a_missing_store_is_named(tmp_path: Path) -> None:
    from verl_rlkd.integration.run_config import check_run

    with pytest.raises(
        DataError, match=r"nothing\.sqlite: no such teacher store; make it with `verl-rlkd data structure`"
    ):
        check_run(compose(*HOSTED, f"rlkd.teacher_store={tmp_path / 'nothing.sqlite'}"))


def test_a_good_run_passes_and_a_run_without_structure_asks_for_nothing(store: Path) -> None:
    from verl_rlkd.integration.run_config import check_run

    with StubServer() as stub:
        config = compose(
            f"rlkd.generator.base_url={stub.base_url}", "rlkd.generator.model=gsrm", f"rlkd.teacher_store={store}"
        )
        assert check_run(config).teacher_store == str(store)
        assert not stub.requests
    assert check_run(compose("rlkd.weights.structure=0")).weights.structure == 0


def test_the_drop_in_lines_of_the_readme_make_a_good_run_of_verls_own_config(store: Path) -> None:
    from verl_rlkd.integration.run_config import check_run

    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    block = readme.split("**In a verl project you have**", 1)[1].split("\n\n", 2)[1]
    overrides = block.replace("\\", " ").replace("teachers.sqlite", str(store)).split()
    assert len(overrides) == 8
    config = compose(*overrides, "actor_rollout_ref.rollout.n=4", name="ppo_trainer")
    assert check_run(config).teacher_store == str(store)


def test_verl_stops_before_ray_starts(tmp_path: Path) -> None:
    done = main_ppo(["--config-name=rlkd_trainer", "trainer.v1.trainer_mode=sync"], folder=tmp_path)
    assert done.returncode != 0
    assert (
        "ConfigError: the reward manager rlkd needs its trainer mode; set trainer.v1.trainer_mode=rlkd_sync"
        in done.stdout
    )
    assert "Started a local Ray instance" not in done.stdout


def test_manager_and_trainer_refuse_by_themselves_too() -> None:
    from verl.trainer.ppo.v1 import PPOTrainerSync

    from verl_rlkd.integration.reward_manager import RLKDRewardManager

    config = compose("trainer.v1.trainer_mode=sync")
    with pytest.raises(ConfigError, match=r"set trainer\.v1\.trainer_mode=rlkd_sync"):
        RLKDRewardManager(config, None, None)
    with pytest.raises(ConfigError, match=r"set trainer\.v1\.trainer_mode=rlkd_sync"):
        PPOTrainerSync(config)


def dataset(table: pd.DataFrame) -> SimpleNamespace:
    """What ``check_rows`` reads of verl's RLHFDataset: a datasets.Dataset under ``dataframe``."""
    from datasets import Dataset

    return SimpleNamespace(dataframe=Dataset.from_pandas(table))


def table(**columns: object) -> pd.DataFrame:
    base: dict[str, object] = {
        "prompt": [user("known"), user("unknown")],
        "data_source": ["x", "x"],
        "reward_model": [{"ground_truth": "1"}, {"ground_truth": "2"}],
    }
    return pd.DataFrame({name: values for name, values in {**base, **columns}.items() if values is not None})


@pytest.mark.parametrize(
    ("columns", "message"),
    [
        ({}, "data.train_files a.parquet: 1 of 2 rows have no structure in .*teachers.sqlite, the first is row 2; run"),
        ({"data_source": None}, "data.train_files a.parquet: no column 'data_source'; it has prompt, reward_model"),
        ({"prompt": None}, "data.train_files a.parquet: no column 'prompt'"),
        (
            {"prompt": [user("known"), user("known")], "extra_info": [{"domain": "math"}, {"domain": "mth"}]},
            "data.train_files a.parquet: row 2: extra_info.domain: .*mth.*math",
        ),
        (
            {"reward_model": [{"ground_truth": "1"}, {"ground_truth": None}]},
            "data.train_files a.parquet: row 2: reward_model has no ground_truth",
        ),
    ],
)
def test_bad_training_rows_are_named(store: Path, columns: dict[str, object], message: str) -> None:
    from verl_rlkd.gsrm.store import TeacherStore
    from verl_rlkd.integration.dataset import check_rows

    data_config = OmegaConf.create({"train_files": "a.parquet", "prompt_key": "prompt"})
    with pytest.raises(DataError, match=message):
        check_rows(dataset(table(**columns)), data_config, TeacherStore(store))

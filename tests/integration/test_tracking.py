"""Components and health through verl's own loggers: the file, TensorBoard, and wandb without a network.

That a run hands them over is test_main_ppo's matter (test_every_component_reaches_log_validation_and_tensorboard).
"""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from verl_rlkd.components import PREFIX, Components, component_means
from verl_rlkd.health import SIGNALS, HealthMonitor, as_metrics


def test_every_component_and_signal_reaches_file_tensorboard_and_wandb(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import wandb
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
    from verl.utils.tracking import Tracking

    row = Components(structure=0.5, exit_step=2.0, asked=5.0, rejudged=1.0, response_chars=9.0).as_extra_info()
    means = component_means([row])
    monitor = HealthMonitor(window=1)
    monitor.observe(means)
    data = {**means, **as_metrics(monitor.observe(means))}
    assert {f"{PREFIX}{name}/mean" for name in vars(Components())} == means.keys()
    assert {f"rlkd/health/{name}_alarm" for name in SIGNALS} < data.keys()
    for name, value in {
        "WANDB_MODE": "offline", "WANDB_DIR": str(tmp_path), "WANDB_SILENT": "true",
        "TENSORBOARD_DIR": str(tmp_path / "tensorboard"), "VERL_FILE_LOGGER_PATH": str(tmp_path / "metrics.jsonl"),
    }.items():  # fmt: skip
        monkeypatch.setenv(name, value)
    tracking = Tracking("rlkd", "test", ["file", "tensorboard", "wandb"], config={"trainer": {}})
    tracking.log(data, step=1)
    tracking.log({}, step=2)  # wandb keeps a step open until the next
    assert wandb.run is not None
    in_wandb = dict(wandb.run.summary)
    tracking.finish()
    events = EventAccumulator(str(tmp_path / "tensorboard"))
    events.Reload()
    assert data.keys() <= in_wandb.keys()
    assert in_wandb["rlkd/structure/mean"] == 0.5
    assert data.keys() == set(events.Tags()["scalars"])
    (first, _) = map(json.loads, (tmp_path / "metrics.jsonl").read_text(encoding="utf-8").splitlines())
    assert first == {"step": 1, "data": data}

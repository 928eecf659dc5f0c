"""``verl-rlkd doctor``: what would stop a run, or make it do something else, looked at before it starts.

installation   versions, the plugin here and in a Ray worker, Math-Verify in a worker process
configuration  the run's settings, and what verl would silently make of them
services       data, tokenizers and servers that the configuration names
"""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from verl_rlkd.checks import Check
from verl_rlkd.errors import ConfigError
from verl_rlkd.integration.doctor import configuration, installation, services


def diagnose(*, config_name: str | None, config_dir: Path | None = None, overrides: Sequence[str] = ()) -> list[Check]:
    """Look at the installation and, if it is named, at a run's configuration.

    Args:
        config_name: As for ``python -m verl.trainer.main_ppo``; None = the installation only.
        config_dir: As for main_ppo.
        overrides: As for main_ppo.
    """
    with ThreadPoolExecutor() as threads:
        # The two that wait for processes to start run beside everything else.
        in_ray = threads.submit(installation.plugin_in_ray)
        grading = threads.submit(installation.math_verify)
        checks = [*installation.versions(), installation.entry_point(), installation.plugin_policy()]
        run: list[Check] = []
        if config_name is not None:
            try:
                config = configuration.composed(config_name, config_dir, overrides)
            except ConfigError as error:
                run = [Check(name="configuration", status="failed", detail=str(error))]
            else:
                run = [*configuration.checks(config), *services.checks(config)]
        return [*checks, in_ray.result(), grading.result(), *run]

"""Hydra search path: ``--config-name=rlkd_trainer`` works with ``python -m verl.trainer.main_ppo`` from anywhere."""

from pathlib import Path

from hydra.core.config_search_path import ConfigSearchPath
from hydra.plugins.search_path_plugin import SearchPathPlugin


class VerlRlkdSearchPath(SearchPathPlugin):
    """Append this package's ``config`` folder, after verl's own."""

    def manipulate_search_path(self, search_path: ConfigSearchPath) -> None:
        import verl_rlkd

        folder = Path(verl_rlkd.__file__).parent / "config"
        search_path.append(provider="verl-rlkd", path=f"file://{folder}")

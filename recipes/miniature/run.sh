#!/usr/bin/env bash
# The miniature from start to finish, below the folder given. `make demo` calls it with the environment of .venv.
# Prepared data and teachers are kept; the run itself starts anew. Further arguments override the recipe.
set -euo pipefail
work=${1:?give the folder of the demo, e.g. outputs/miniature}
shift
run=$work/run

python -m recipes.miniature.prepare "$work"
rm -rf "$run"
mkdir -p "$run"
export VERL_FILE_LOGGER_PATH=$run/metrics.jsonl TENSORBOARD_DIR=$run/tensorboard TOKENIZERS_PARALLELISM=false
python -m recipes.support.watch "$run" -- \
  python -m verl.trainer.main_ppo --config-dir recipes --config-name rlkd_miniature work="$work" "$@"
python -m recipes.miniature.report "$work"

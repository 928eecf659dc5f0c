#!/usr/bin/env bash
# The demo from start to finish, below the folder given. `make demo` calls it with the environment of .venv.
# Prepared models and data are kept; the run itself starts anew.
set -euo pipefail
work=${1:?give the folder of the demo, e.g. outputs/cpu_demo}
run=$work/run

python -m recipes.cpu_demo.prepare "$work"
rm -rf "$run"
mkdir -p "$run"
export VERL_FILE_LOGGER_PATH=$run/metrics.jsonl TENSORBOARD_DIR=$run/tensorboard TOKENIZERS_PARALLELISM=false
python -m recipes.support.watch "$run" -- \
  python -m verl.trainer.main_ppo --config-dir recipes --config-name rlkd_cpu_demo work="$work"
python -m recipes.cpu_demo.report "$work"

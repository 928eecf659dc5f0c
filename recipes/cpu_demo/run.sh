#!/usr/bin/env bash
# The demo, start to finish, below the folder given (outputs/cpu_demo). `make demo` calls it with everything installed.
# Prepared models and data are kept; the run itself starts anew.
set -euo pipefail
work=${1:?give the folder of the demo, e.g. outputs/cpu_demo}
python=${PYTHON_BIN:-.venv/bin/python}
export VERL_PLATFORM=cpu HF_HUB_OFFLINE=1 TOKENIZERS_PARALLELISM=false VLLM_CPU_KVCACHE_SPACE=1
run=$work/run

"$python" recipes/cpu_demo/prepare.py "$work"
rm -rf "$run"
mkdir -p "$run"
VERL_FILE_LOGGER_PATH=$run/metrics.jsonl TENSORBOARD_DIR=$run/tensorboard \
  "$python" recipes/cpu_demo/watch.py "$run" -- \
  "$python" -m verl.trainer.main_ppo --config-dir recipes --config-name rlkd_cpu_demo work="$work"
"$python" recipes/cpu_demo/report.py "$work"

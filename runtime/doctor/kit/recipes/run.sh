#!/bin/sh
# Installs what is missing into .venv beside this file, then builds, checks and measures everything here.
#   ./run.sh                       on a Jetson with JetPack 6 or 7, or a PC with an RTX card
#   ./run.sh --minutes 40          options are those of cospec-kit
set -eu
cd "$(dirname "$0")"
python=${PYTHON:-python3}
"$python" -c 'import sys; sys.exit(sys.version_info < (3, 10))' || {
  echo "Python 3.10 or newer is needed; name one: PYTHON=python3.12 ./run.sh"; exit 2; }
if [ ! -x .venv/bin/cospec-kit ]; then
  # JetPack's TensorRT belongs to the system's Python, so the environment must see its packages.
  "$python" -m venv --system-site-packages .venv
  wheel=$(ls cospec-*.whl 2>/dev/null | head -n 1 || true)
  .venv/bin/pip install --quiet "${wheel:-cospec}"
  if .venv/bin/python -c 'import tensorrt' 2>/dev/null; then
    # cuda-bindings of CUDA's own major version: 12 with JetPack 6, 13 with JetPack 7.
    major=$(nvcc --version 2>/dev/null | sed -n 's/.*release \([0-9]*\).*/\1/p')
    [ -n "$major" ] || major=$(ls -d /usr/local/cuda-1[0-9]* 2>/dev/null | sed 's/.*cuda-\([0-9]*\).*/\1/' | sort -n | tail -n 1)
    [ -n "$major" ] || major=12
    .venv/bin/pip install --quiet "cuda-bindings>=$major,<$((major + 1))"
  elif [ "$(uname -m)" = x86_64 ]; then
    .venv/bin/pip install --quiet tensorrt-rtx cuda-bindings
  else
    echo "TensorRT is missing; on a Jetson: sudo apt-get install python3-libnvinfer"
    .venv/bin/pip install --quiet cuda-bindings
  fi
fi
.venv/bin/cospec-doctor || true
exec .venv/bin/cospec-kit . --output device-report.json "$@"

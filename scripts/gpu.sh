#!/usr/bin/env bash
# The program for a machine with an NVIDIA GPU, and what is measured there.
#   scripts/gpu.sh build      target/gpu/arithmo.gz, below 64 MiB; needs no GPU and no CUDA toolkit. Prints the line to use there.
#   scripts/gpu.sh run OUT    on the GPU machine: doctor, bench, torch's products and TRL where python3 has them; one log each in OUT
# CUDA_PATH (/usr/local/cuda) must hold NVRTC and the CUDA headers. LIMIT: seconds a part may take at most, 240.
set -euo pipefail
cd "$(dirname "$0")/.."
packed=target/gpu/arithmo.gz

build() {
  # cudarc asks an installed toolkit for its version; this is the oldest that is supported. The profile strips.
  CUDARC_CUDA_VERSION=13000 cargo build --release --features cuda --bin arithmo
  mkdir -p "${packed%/*}"
  gzip -9 -c "${CARGO_TARGET_DIR:-target}/release/arithmo" >"$packed"
  local bytes
  bytes=$(wc -c <"$packed")
  if ((bytes >= 64 << 20)); then
    echo "error: $packed has $bytes bytes, 64 MiB or more" >&2
    exit 1
  fi
  echo "$packed: $bytes bytes. Take it and this repository there, then: scripts/gpu.sh run OUT"
}

part() { # part NAME COMMAND...: its output is shown and kept; a failure does not end the others
  local name=$1
  shift
  echo "=== $name: $*"
  timeout "${LIMIT:-240}" "$@" 2>&1 | tee "$out/$name.log" || failed+=("$name")
}

run() {
  out=$1 failed=()
  mkdir -p "$out"
  out=$(realpath "$out")
  export CUDA_PATH=${CUDA_PATH:-/usr/local/cuda}
  export LD_LIBRARY_PATH=$CUDA_PATH/lib64${LD_LIBRARY_PATH:+:$LD_LIBRARY_PATH}
  work=$(mktemp -d)
  trap 'rm -rf "$work"' EXIT
  gzip -dc "$packed" >"$work/arithmo"
  chmod +x "$work/arithmo"
  local bench=("$work/arithmo" bench --backend cuda --shape mistral-7b --tokens "1024,2048,4096,8192")

  part nvidia-smi nvidia-smi
  part doctor "$work/arithmo" doctor --backend cuda --json
  products
  part bench "${bench[@]}"
  # Steps by CubeCL's kernels alone.
  part bench-kernels env ARITHMO_CUBLASLT=0 "${bench[@]}"
  part bench-kept "${bench[@]}" --gradient-checkpointing false
  peer
  if ((${#failed[@]})); then
    echo "error: failed, or took too long: ${failed[*]}" >&2
    exit 1
  fi
}

products() { # of a layer and the head: by cuBLASLt and by CubeCL's kernels, then by torch, with the shares of its speed
  part products "$work/arithmo" bench --backend cuda --shape mistral-7b --layers 1 --tokens 8192
  if ! python3 -c 'import torch; assert torch.cuda.is_available()' 2>/dev/null; then
    echo "=== torch's products were not measured: python3 with torch that finds the GPU is absent"
    return
  fi
  part torch-products python3 scripts/torch_products.py "$out/products.log"
}

peer() { # TRL on a smaller model, and the same shape here
  local scripts=../shared/bench
  if [[ -d shared/bench ]]; then scripts=shared/bench; fi
  if ! [[ -f $scripts/trl_dpo.py ]] || ! python3 -c 'import trl, peft, datasets' 2>/dev/null; then
    echo "=== the peer was not measured: $scripts/trl_dpo.py, or python3 with trl, peft and datasets, is absent"
    return
  fi
  part peer-inputs python3 "$scripts/make_inputs.py" "$work/inputs" --size 110m
  part peer python3 "$scripts/trl_dpo.py" "$work/inputs" --batch 4 --targets qv --device cuda --dtype bf16
  part bench-peer "$work/arithmo" bench --backend cuda --shape "$work/inputs/model/config.json" --tokens 2048 --dtype bf16
}

case ${1:-} in
  build) build ;;
  run) run "${2:?scripts/gpu.sh run OUT: name the folder for the logs}" ;;
  *)
    sed -n '2,5s/^# //p' "$0" >&2
    exit 2
    ;;
esac

#!/usr/bin/env bash
# Builds the program for a machine with an NVIDIA GPU, and runs the measurements there.
#   scripts/gpu.sh build      write target/gpu/arithmo.gz, below 64 MiB; needs no GPU and no CUDA toolkit
#   scripts/gpu.sh run OUT    on the GPU machine: run doctor, bench, and torch and TRL if python3 has them; one log each in OUT
# CUDA_PATH (default /usr/local/cuda) must contain NVRTC and the CUDA headers. LIMIT: seconds per part, default 240.
set -euo pipefail
cd "$(dirname "$0")/.."
archive=target/gpu/arithmo.gz

build() {
  # cudarc would ask an installed toolkit for its version; this is the oldest that is supported. The profile strips the binary.
  CUDARC_CUDA_VERSION=13000 cargo build --release --features cuda --bin arithmo
  mkdir -p "${archive%/*}"
  gzip -9 -c "${CARGO_TARGET_DIR:-target}/release/arithmo" >"$archive"
  local bytes
  bytes=$(wc -c <"$archive")
  if ((bytes >= 64 << 20)); then
    echo "error: $archive has $bytes bytes, 64 MiB or more" >&2
    exit 1
  fi
  echo "$archive: $bytes bytes. Copy it and this repository to the GPU machine, then run scripts/gpu.sh run OUT"
}

part() { # part NAME COMMAND...: runs a command and logs its output; a failure does not stop the other parts
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
  gzip -dc "$archive" >"$work/arithmo"
  chmod +x "$work/arithmo"
  local bench=("$work/arithmo" bench --backend cuda --shape mistral-7b --tokens "1024,2048,4096,8192")

  part nvidia-smi nvidia-smi
  part doctor "$work/arithmo" doctor --backend cuda --json
  gemms
  part bench "${bench[@]}"
  # Steps with CubeCL's kernels only.
  part bench-kernels env ARITHMO_CUBLASLT=0 "${bench[@]}"
  part bench-kept "${bench[@]}" --gradient-checkpointing false
  peer
  if ((${#failed[@]})); then
    echo "error: failed or took too long: ${failed[*]}" >&2
    exit 1
  fi
}

gemms() { # GEMMs of a layer and the head by cuBLASLt and by CubeCL's kernels, then by torch for comparison
  part products "$work/arithmo" bench --backend cuda --shape mistral-7b --layers 1 --tokens 8192
  if ! python3 -c 'import torch; assert torch.cuda.is_available()' 2>/dev/null; then
    echo "=== torch was not measured: no python3 with a torch that finds the GPU"
    return
  fi
  part torch-products python3 scripts/torch_products.py "$out/products.log"
}

peer() { # TRL on a smaller model, and bench with the same shape
  local scripts=../shared/bench
  if [[ -d shared/bench ]]; then scripts=shared/bench; fi
  if ! [[ -f $scripts/trl_dpo.py ]] || ! python3 -c 'import trl, peft, datasets' 2>/dev/null; then
    echo "=== the peer was not measured: no $scripts/trl_dpo.py, or no python3 with trl, peft and datasets"
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

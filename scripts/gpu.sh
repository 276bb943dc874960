#!/usr/bin/env bash
# Builds the program for a machine with an NVIDIA GPU, and measures everything there in one call.
#   scripts/gpu.sh build      write target/gpu/arithmo.gz, below 64 MiB; needs no GPU and no CUDA toolkit
#   scripts/gpu.sh run OUT    on the GPU machine: run the parts below, the most valuable first
# OUT gets summary.txt (a line per part), results.jsonl (every line of JSON that a part printed) and results.tar.gz (these two, and
# a log per part). They are written when the call is stopped, too. A part that fails, hangs or lacks its tool stops no other part.
# DEADLINE: seconds for all parts, default 590; what does not fit is skipped. PROGRAM: a program to run instead of the archive's.
# CACHE: a folder for compiled kernels and tuning, to be kept for the next call.
set -uo pipefail
cd "$(dirname "$0")/.."
archive=target/gpu/arithmo.gz

build() {
  # cudarc would ask an installed toolkit for its version; this is the oldest that is supported. The profile strips the binary.
  CUDARC_CUDA_VERSION=13000 cargo build --release --features cuda --bin arithmo || exit 1
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

# Runs a command for at most so many seconds, and not beyond the deadline. Logs its output, and a line about it in the summary.
part() { # part NAME SECONDS COMMAND...
  local name=$1 limit=$2 begin=$SECONDS code
  shift 2
  local left=$((DEADLINE - SECONDS))
  if ((left < 5)); then
    note "$name: skipped: the deadline of $DEADLINE s is reached"
    return 1
  fi
  if ((limit > left)); then limit=$left; fi
  # `timeout` runs programs, not functions.
  if declare -F "$1" >/dev/null; then set -- bash -c "$1"; fi
  if ! type "$1" >/dev/null 2>&1; then
    note "$name: skipped: there is no $1"
    return 1
  fi
  echo "=== $name: $*"
  # In the background, because a shell takes no signal while it waits for a command in the foreground.
  (cd "$work" && exec timeout -k 5 "$limit" "$@") >"$logs/$name.log" 2>&1 &
  running=$!
  wait "$running"
  code=$?
  tail -n 40 "$logs/$name.log"
  case $code in
    0) note "$name: done in $((SECONDS - begin)) s" ;;
    124 | 137) note "$name: stopped after $limit s" ;;
    *) note "$name: FAILED with status $code in $((SECONDS - begin)) s" ;;
  esac
  return "$code"
}

note() {
  echo "=== $1"
  echo "$1" >>"$out/summary.txt"
}

# Writes what there is so far; called at the end, and when the call is stopped.
collect() {
  trap - EXIT
  kill "${running:-}" 2>/dev/null
  grep -h '^{.*}$' "$logs"/*.log >"$out/results.jsonl" 2>/dev/null
  cp "$out/summary.txt" "$out/results.jsonl" "$logs/"
  tar -czf "$out/results.tar.gz" -C "$logs" .
  rm -rf "$logs" "$work"
}

# Finds NVIDIA's libraries where a toolkit or Python's wheels put them, and keeps compiled kernels in one folder.
find_libraries() {
  local folder packages
  packages=$(python3 -c 'import sysconfig; print(sysconfig.get_path("purelib"))' 2>/dev/null)
  for folder in "${CUDA_PATH:-/usr/local/cuda}/lib64" "$packages/nvidia/cu13/lib" "$packages/nvidia/cublas/lib"; do
    if [[ -d $folder ]]; then LD_LIBRARY_PATH=${LD_LIBRARY_PATH:+$LD_LIBRARY_PATH:}$folder; fi
  done
  if [[ -z ${CUDA_PATH:-} && ! -d /usr/local/cuda && -d $packages/nvidia/cu13 ]]; then
    export CUDA_PATH=$packages/nvidia/cu13
  fi
  export LD_LIBRARY_PATH=${LD_LIBRARY_PATH:-}
  local cache=${CACHE:-$work/cache}
  mkdir -p "$cache"
  export CUDA_CACHE_PATH=$cache/driver CUDA_CACHE_MAXSIZE=4294967296
  cat >"$work/cubecl.toml" <<END
[compilation]
cache = { file = "$cache" }
[autotune]
cache = { file = "$cache" }
level = "minimal"
END
}

# What is on this machine, for the reader of the other parts.
machine() {
  nvidia-smi -q
  uname -a
  ldd --version | head -n 1
  ldconfig -p | grep -E 'libcuda|libnvrtc|libcublasLt|libvulkan'
  echo "CUDA_PATH=${CUDA_PATH:-} LD_LIBRARY_PATH=$LD_LIBRARY_PATH"
  tr ':' '\n' <<<"$LD_LIBRARY_PATH" | xargs -I{} find {} -maxdepth 1 -name 'lib*.so*' 2>/dev/null | grep -E 'nvrtc|cublasLt'
  ls /proc/driver/nvidia
  true
}

# Trains the same eight steps on CUDA and on the CPU, and compares loss, gradient norm and margins.
parity() {
  local demo=$root/assets/demo
  "$program" prepare --quiet --input "$demo/rows.jsonl" --output pairs.jsonl --overwrite || return
  cat >parity.toml <<END
[model]
model_name_or_path = "$demo/model"
[data]
train_file = "pairs.jsonl"
prompt_template = "Question: {prompt}\n\nAnswer:"
max_length = 256
[lora]
target_modules = "all-linear"
[train]
per_device_train_batch_size = 4
gradient_accumulation_steps = 1
max_steps = 8
warmup_steps = 0
learning_rate = 1e-3
logging_steps = 1
END
  local backend
  for backend in ndarray cuda; do
    "$program" train --quiet --backend "$backend" --config parity.toml --set "output_dir=parity-$backend" --overwrite || return
  done
  python3 "$root/scripts/compare_metrics.py" parity-ndarray/metrics.jsonl parity-cuda/metrics.jsonl
}

# Measures within DEADLINE. Each bench is a process of its own, so that memory and crashes stay apart.
measure() {
  local bench=("$program" bench --backend cuda --shape mistral-7b)
  local attention='regex:attend|gradient|row_sums|write_tile'
  part machine 15 machine
  part parity 60 parity
  part gemms 60 "${bench[@]}" --layers 1 --tokens 8192
  part torch-gemms 60 python3 "$root/scripts/torch_products.py" "$logs/gemms.log"
  part two-layers 45 "${bench[@]}" --layers 2 --tokens 1024,4096
  part qv 90 "${bench[@]}" --tokens 4096,8192
  part doctor 90 "$program" doctor --backend cuda --json
  part all-linear 60 "${bench[@]}" --tokens 4096 --targets all-linear
  part nf4 60 "${bench[@]}" --tokens 4096 --quantization nf4
  part short 60 "${bench[@]}" --tokens 1024,2048
  part ncu 60 ncu --clock-control none --set basic -k "$attention" -c 8 "${bench[@]}" --layers 2 --tokens 1024 --steps 1
  part memcheck 60 compute-sanitizer --tool memcheck "${bench[@]}" --layers 1 --tokens 256 --steps 1
  part racecheck 60 compute-sanitizer --tool racecheck "${bench[@]}" --layers 1 --tokens 256 --steps 1
  part kept 60 "${bench[@]}" --tokens 4096 --gradient-checkpointing false
  # CubeCL's kernels instead of cuBLASLt, by rule and then timed.
  part kernels 90 env ARITHMO_CUBLASLT=0 ARITHMO_AUTOTUNE=0 "${bench[@]}" --tokens 4096
  part kernels-timed 120 env ARITHMO_CUBLASLT=0 ARITHMO_AUTOTUNE=1 "${bench[@]}" --tokens 4096
}

run() {
  DEADLINE=${DEADLINE:-590}
  root=$PWD
  mkdir -p "$1" || exit 1
  out=$(realpath "$1") work=$(mktemp -d) logs=$(mktemp -d)
  : >"$out/summary.txt"
  trap collect EXIT
  trap 'exit 143' TERM INT
  program=${PROGRAM:-$work/arithmo}
  if [[ -z ${PROGRAM:-} ]] && ! gzip -dc "$archive" >"$program"; then
    note "error: $archive cannot be unpacked; run scripts/gpu.sh build first"
    exit 1
  fi
  chmod +x "$program" 2>/dev/null
  find_libraries
  export root program
  export -f machine parity
  measure
  if grep -qE ': (FAILED|stopped)' "$out/summary.txt"; then exit 1; fi
}

case ${1:-} in
  build) build ;;
  run) run "${2:?scripts/gpu.sh run OUT: name the folder for the results}" ;;
  *)
    sed -n '2,8s/^# //p' "$0" >&2
    exit 2
    ;;
esac

#!/usr/bin/env bash
# Compiles every CUDA kernel with NVIDIA's run-time compiler (NVRTC), without a card, a driver or a toolkit.
# The compiler and its headers come from PyPI (96 MB, 280 MB unpacked) and stay in target/nvrtc.
#   scripts/nvrtc.sh        one architecture per type of weights
#   scripts/nvrtc.sh all    every architecture
#   scripts/nvrtc.sh update every architecture; writes the tables in tests/golden/cuda
# FEATURES names the features of the build, so that a caller's build is not repeated with others.
set -euo pipefail
cd "$(dirname "$0")/.."

# The versions of one toolkit: CubeCL is built for CUDA 13.0, and the tables hold what its compiler says.
wheels=(nvidia-cuda-nvrtc==13.0.88 nvidia-cuda-runtime==13.0.88 nvidia-cuda-crt==13.0.88 nvidia-cuda-cccl==13.0.85)
folder=${CARGO_TARGET_DIR:-$PWD/target}/nvrtc
export NVRTC_FOLDER=$folder/nvidia/cu13
export LD_LIBRARY_PATH=$NVRTC_FOLDER/lib${LD_LIBRARY_PATH:+:$LD_LIBRARY_PATH}
export CUDARC_CUDA_VERSION=13000

if [[ ! -e $folder/complete ]]; then
  if [[ ! -x $folder/pip/bin/pip ]]; then python3 -m venv "$folder/pip"; fi
  "$folder/pip/bin/pip" install --quiet --no-deps --target "$folder" "${wheels[@]}"
  touch "$folder/complete"
fi

tests=(compiled::one_architecture_per_type)
case ${1:-} in
"") ;;
all) tests+=(compiled::every_other_architecture) ;;
update)
  tests+=(compiled::every_other_architecture)
  export UPDATE_GOLDEN=1
  ;;
*)
  echo "usage: scripts/nvrtc.sh [all | update]" >&2
  exit 2
  ;;
esac
cargo test -p arithmo -p arithmo-backends --no-default-features --features "${FEATURES:-ndarray,wgpu,vulkan,cuda,dry-cuda}" \
  --test dry_cuda -- --include-ignored --nocapture --test-threads 1 "${tests[@]}"

#!/usr/bin/env bash
# Builds `microtome` with candle's CUDA and cuDNN backends on a machine that has neither a GPU nor a CUDA toolkit.
# The binary loads the CUDA libraries when it first calls them, so it starts on a machine without any and uses the CPU there.
#
# Needs Python 3 with venv, gcc and cargo on x86-64 Linux; no root. Called by `cargo xtask cuda build`, which sets
# CARGO_TARGET_DIR. CUDA_COMPUTE_CAP (default 80: every GPU from Ampere on; 90 is for Hopper alone) and CUDAFORGE_THREADS (default 1) may be given.
set -euo pipefail
here=$(cd "$(dirname "$0")" && pwd)
work=${CARGO_TARGET_DIR:?the target directory to build in}/cuda
venv=$work/venv
mkdir -p "$work"

# 1. The toolkit as Python wheels, pinned to CUDA 13.0: newer ones make PTX that the driver series 580 refuses.
#    --no-deps, because a dependency would bring a newer toolkit along.
[ -x "$venv/bin/python" ] || python3 -m venv "$venv"
"$venv/bin/pip" install --quiet --disable-pip-version-check --no-deps \
    nvidia-cuda-nvcc==13.0.88 nvidia-cuda-crt==13.0.88 nvidia-nvvm==13.0.88 \
    nvidia-cuda-runtime==13.0.96 nvidia-cuda-cccl==13.0.85 nvidia-cuda-nvrtc==13.0.88 \
    nvidia-cublas==13.1.1.3 nvidia-curand==10.4.0.35 nvidia-cudnn-cu13==9.21.1.3
wheels=$("$venv/bin/python" -c 'import sysconfig; print(sysconfig.get_paths()["purelib"])')/nvidia
toolkit=$wheels/cu13

# 2. What the wheels leave out: lib64, and cuDNN's headers beside the toolkit's.
ln -sfn lib "$toolkit/lib64"
for header in "$wheels"/cudnn/include/*.h; do ln -sfn "$header" "$toolkit/include/$(basename "$header")"; done

# 3. Archives of trampolines in place of the shared libraries: see gen_shim.py.
python3 "$here/gen_shim.py" "$toolkit" "$work/shim" with-cudnn

# 4. nvcc must be on PATH (cudarc asks it for the version); CUDA_HOME gives cudarc its link path, which must hold only the
#    trampolines; CUDA_COMPUTE_CAP replaces the question to nvidia-smi.
export PATH=$toolkit/bin:$PATH REAL_NVCC=$toolkit/bin/nvcc NVCC=$here/nvcc-lite CUDA_HOME=$work/shim
export CUDA_COMPUTE_CAP=${CUDA_COMPUTE_CAP:-80} CUDAFORGE_THREADS=${CUDAFORGE_THREADS:-1}
cd "$here/../.."
# A target directory of its own: the linker's search path differs, and a plain `cargo build` must not pick these objects up.
cargo build --locked --release -p microtome-cli -p microtome-testkit --features microtome-cli/cudnn,microtome-testkit/models \
    --bin microtome --example time_network --target-dir "$work/target"

# 5. Our own kernels are compiled by NVRTC where they run; that they compile is seen here.
nvcc -ptx -arch=compute_75 -std=c++17 -o "$work/kernels.ptx" crates/unet/src/gpu/driver/kernels.cu
ls -l "$work/target/release/microtome"

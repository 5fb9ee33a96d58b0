"""What llama-server printed to --list-devices on machines of other people, and here."""

from __future__ import annotations

# Our own, build 11434 on a machine without a GPU.
NONE = "Available devices:\n  (none)\n"
# https://github.com/ollama/ollama/issues/16508: two of CUDA, with what CUDA itself says behind it.
CUDA = """\
Available devices:
  CUDA0: NVIDIA GeForce RTX 3080 Ti (11909 MiB, 11650 MiB free)
  CUDA1: NVIDIA RTX PRO 4000 Blackwell SFF Edition (24026 MiB, 23795 MiB free)
ggml_cuda_init: found 2 CUDA devices (Total VRAM: 35936 MiB):
  Device 0: NVIDIA GeForce RTX 3080 Ti, compute capability 8.6, VMM: yes, VRAM: 11909 MiB
  Device 1: NVIDIA RTX PRO 4000 Blackwell SFF Edition, compute capability 12.0, VMM: yes, VRAM: 24026 MiB
"""
# https://github.com/ggml-org/llama.cpp/issues/16659: Vulkan.
VULKAN = """\
ggml_vulkan: Found 1 Vulkan devices:
ggml_vulkan: 0 = NVIDIA GeForce RTX 2060 (NVIDIA) | uma: 0 | fp16: 1 | bf16: 1 | warp size: 32 | shared memory: 49152
Available devices:
  Vulkan0: NVIDIA GeForce RTX 2060 (6144 MiB, 5136 MiB free)
"""
# https://github.com/ardanlabs/kronk/issues/10: Metal, and a library for the CPU that is listed as well.
METAL = """\
ggml_metal_device_init: GPU name:   Apple M4 Max
ggml_metal_device_init: recommendedMaxWorkingSetSize  = 103079.22 MB
Available devices:
  Metal: Apple M4 Max (98304 MiB, 98303 MiB free)
  BLAS: Accelerate (0 MiB, 0 MiB free)
"""

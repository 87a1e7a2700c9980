"""Which variables are looked for in files, and what reads each of them, so that setting it later is vain."""

from __future__ import annotations

from vlmdoctor.knowledge.variable_names import closest_known_name

_CUDA = (
    *("CUDA_VISIBLE_DEVICES", "CUDA_DEVICE_ORDER", "HIP_VISIBLE_DEVICES", "ROCR_VISIBLE_DEVICES"),
    *("PYTORCH_CUDA_ALLOC_CONF", "PYTORCH_ALLOC_CONF", "PYTORCH_HIP_ALLOC_CONF", "CUDA_LAUNCH_BLOCKING"),
)
_HUB = (
    *("HF_HOME", "HF_HUB_CACHE", "HUGGINGFACE_HUB_CACHE", "HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE"),
    *("HF_ENDPOINT", "TRANSFORMERS_CACHE", "HF_HUB_ENABLE_HF_TRANSFER"),
)
_DATASETS = ("HF_DATASETS_CACHE", "HF_DATASETS_OFFLINE")
_THREADS = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS")
_OTHERS = (
    *("NVIDIA_VISIBLE_DEVICES", "NCCL_P2P_DISABLE", "NCCL_IB_DISABLE", "NCCL_SOCKET_IFNAME", "NCCL_DEBUG"),
    *("ACCELERATE_USE_CPU", "USE_TORCH", "TORCH_DISTRIBUTED_DEBUG", "PYTORCH_NO_CUDA_MEMORY_CACHING"),
)
WATCHED = frozenset((*_CUDA, *_HUB, *_DATASETS, *_THREADS, *_OTHERS))

# Importing one of these imports huggingface_hub, which reads its variables once.
_HUB_LIBRARIES = {
    *("huggingface_hub", "transformers", "datasets", "diffusers", "peft", "accelerate", "trl", "evaluate"),
    *("sentence_transformers",),
}
_NUMBER_LIBRARIES = {"torch", "numpy", "scipy", "sklearn", "pandas", "cv2", *_HUB_LIBRARIES} - {
    "huggingface_hub",
    "accelerate",
}


def is_watched(name: str) -> bool:
    """Whether a variable is looked for: one that matters, or a misspelt one."""
    return name in WATCHED or closest_known_name(name) in WATCHED


def read_by_cuda(name: str) -> bool:
    """Whether the variable is read when CUDA is initialised."""
    return name in _CUDA


def readers(name: str) -> frozenset[str]:
    """The libraries of which the first one imported reads the variable, once and for all."""
    if name in _HUB:
        return frozenset(_HUB_LIBRARIES)
    if name in _DATASETS:
        return frozenset({"datasets"})
    if name in _THREADS:
        return frozenset(_NUMBER_LIBRARIES)
    return frozenset()

"""Which environment variables a snapshot keeps: those that matter to training, and never a secret."""

from __future__ import annotations

import re
from collections.abc import Mapping

# Those that decide which GPUs are seen.
VARIABLES = (
    "CUDA_VISIBLE_DEVICES",
    "NVIDIA_VISIBLE_DEVICES",
    "HIP_VISIBLE_DEVICES",
    "ROCR_VISIBLE_DEVICES",
    "CUDA_DEVICE_ORDER",
)
_PREFIXES = (
    *(
        "CUDA",
        "NVIDIA_",
        "HIP_",
        "ROCR_",
        "HSA_",
        "GPU_",
        "NCCL_",
        "TORCH",
        "PYTORCH",
        "HF_",
        "HUGGINGFACE_",
        "HUGGING_FACE_",
    ),
    *("TRANSFORMERS_", "ACCELERATE_", "OMP_", "MKL_", "KMP_", "BNB_", "DS_", "XFORMERS_", "FLASH_ATTENTION_"),
    *("TRITON_", "TOKENIZERS_", "VLLM_USE", "UNSLOTH_"),
)
_NAMES = {
    *("LD_LIBRARY_PATH", "LD_PRELOAD", "RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE", "MASTER_ADDR"),
    *("MASTER_PORT", "USE_TORCH", "USE_TF", "USE_FLAX", "TMPDIR", "XDG_CACHE_HOME", "VIRTUAL_ENV"),
    *("CONDA_DEFAULT_ENV", "PYTHONPATH", "PYTHONNOUSERSITE", "NUMEXPR_NUM_THREADS", "OPENBLAS_NUM_THREADS"),
    *("SLURM_JOB_ID", "SLURM_PROCID", "SLURM_NTASKS", "SLURM_GPUS", "SLURM_JOB_GPUS", "SLURM_STEP_GPUS"),
    *("SLURM_GPUS_ON_NODE", "PMI_RANK", "OMPI_COMM_WORLD_RANK", "COLAB_GPU", "KAGGLE_KERNEL_RUN_TYPE"),
    *("WANDB_MODE", "DATASETS_OFFLINE", "PYTHONHOME"),
}
_SECRET = re.compile(r"TOKEN|SECRET|PASS|CRED|AUTH|(?:^|_)(?:API_?)?KEY(?:_|$)", re.IGNORECASE)
# A misspelt name need not start as the right one does.
_HINT = re.compile(r"VISIB|DEVICES|CUDA|NCCL|ALLOC_CONF|PYTORCH|OMP_NUM", re.IGNORECASE)
SET = "(set)"
LONGEST = 4000


def kept_variables(environ: Mapping[str, str]) -> dict[str, str]:
    """The variables worth keeping, in the order of their names; of secrets only that they are set."""
    kept = {}
    for name in sorted(environ):
        if len(name) > 100 or not (
            name in _NAMES or name.upper().startswith(_PREFIXES) or ("_" in name and _HINT.search(name))
        ):
            continue
        secret = _SECRET.search(name) and "TOKENIZERS" not in name
        kept[name] = SET if secret else environ[name][:LONGEST]
    return kept

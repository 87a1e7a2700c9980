"""How torch's CUDA allocator reads PYTORCH_CUDA_ALLOC_CONF."""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterator, Mapping

from vlmdoctor.knowledge.versions import numbers

OLD, NEW = "PYTORCH_CUDA_ALLOC_CONF", "PYTORCH_ALLOC_CONF"
NAMES = (OLD, NEW, "PYTORCH_HIP_ALLOC_CONF")
_SWITCHES = (
    *("expandable_segments", "pinned_use_cuda_host_register", "pinned_use_hip_host_register"),
    *("pinned_use_background_threads", "release_lock_on_cudamalloc", "release_lock_on_hipmalloc"),
    *("graph_capture_record_stream_reuse", "throw_on_cudamalloc_oom"),
)
_KEYS = (
    *_SWITCHES,
    *("max_split_size_mb", "max_non_split_rounding_mb", "garbage_collection_threshold", "backend"),
    *("roundup_power2_divisions", "roundup_bypass_threshold_mb", "pinned_num_register_threads"),
    *("pinned_reserve_segment_size_mb", "per_process_memory_fraction", "large_segment_size_mb"),
    *("pinned_max_round_threshold_mb", "pinned_max_cached_size_mb"),
)
_LARGE_BUFFER_MB = 20


def complaints(value: str) -> Iterator[tuple[str, bool]]:
    """(what is wrong, whether torch surely refuses it) for a value of the variable."""
    # The divisions may be a list in brackets, with colons and commas of its own.
    for part in re.split(r",(?![^\[]*\])", value):
        part = part.strip()
        if not part:
            continue
        key, colon, setting = (piece.strip() for piece in part.partition(":"))
        if not colon:
            what = "'=' is written where ':' is needed" if "=" in part else "a ':' and a value are missing"
            yield f"'{part}' is not understood: {what}", True
        elif key not in _KEYS:
            close = difflib.get_close_matches(key, _KEYS, n=1, cutoff=0.8)
            hint = f"; {close[0]} was probably meant" if close else " by the versions known here"
            yield f"'{key}' is no option of the allocator{hint}", bool(close)
        elif key in _SWITCHES and setting not in ("True", "False"):
            yield f"{key} can be True or False, not '{setting}'", True
        elif key == "max_split_size_mb" and setting.isdecimal() and int(setting[:9]) <= _LARGE_BUFFER_MB:
            yield f"max_split_size_mb must be above {_LARGE_BUFFER_MB}, not {setting}", True
        elif key == "max_split_size_mb" and not setting.isdecimal():
            yield f"max_split_size_mb must be a number, not '{setting}'", True
        elif key == "garbage_collection_threshold" and not _is_share(setting):
            yield f"garbage_collection_threshold must be between 0 and 1, not '{setting}'", True


def _is_share(text: str) -> bool:
    try:
        return 0 < float(text) < 1
    except ValueError:
        return False


def ignored(variables: Mapping[str, str], version: str) -> str | None:
    """What this torch ignores of what is set; None where it reads everything."""
    torch = numbers(version)
    if OLD in variables and NEW in variables and variables[OLD] != variables[NEW]:
        return f"{OLD} and {NEW} are both set, to different values: only one of them is read"
    if NEW in variables and OLD not in variables and torch:
        if torch < (2, 9):
            return f"{NEW} is ignored by torch {version}, which reads {OLD}"
        if torch[:2] == (2, 9) and "expandable_segments" in variables[NEW]:
            return f"torch {version} ignores expandable_segments in {NEW} for CUDA"
    return None

"""Run as a program: builds the targets that are named, and says what each one asked the process to do.

    python foreign_driver.py FOLDER...

A package named `kernels` is expected on the path, which lists in `asked` what it is asked for. Prints a JSON
object of folder -> {"error", "not_followed", "attention", "asked", "batch", "seen"}.
"""

from __future__ import annotations

import contextlib
import io
import json
import os
import sys
import warnings
from pathlib import Path
from typing import Any

REFUSED = (
    "socket.connect",
    "socket.getaddrinfo",
    "subprocess.Popen",
    "os.system",
    "os.exec",
    "os.posix_spawn",
)
seen: list[str] = []
state: dict[str, Any] = {"known": frozenset(), "foreign": None}


def hook(event: str, arguments: tuple[Any, ...]) -> None:
    """Notes and refuses connections, programs, native libraries, unknown packages and the folder's code."""
    if state["foreign"] is None:
        return
    bad = event.startswith(REFUSED)
    if event == "ctypes.dlopen":
        bad = arguments[0] is not None
    if event == "import":
        name, file = str(arguments[0]), str(arguments[1] or "")
        top = name.partition(".")[0]
        bad = top not in state["known"] or (file.endswith(".so") and top not in sys.stdlib_module_names)
    if event == "exec":
        bad = getattr(arguments[0], "co_filename", "").startswith(state["foreign"])
    if bad:
        seen.append(f"{event} {arguments[:1]}"[:200])
        raise PermissionError(f"refused: {event}")


def attentions(config: Any) -> list[Any]:
    """What is set in a configuration and in those within it."""
    found = [getattr(config, "_attn_implementation", None)]
    for value in vars(config).values():
        if hasattr(value, "to_dict") and hasattr(value, "model_type"):
            found += attentions(value)
    return found


def tried(folder: str) -> dict[str, Any]:
    """What came of one target."""
    import kernels

    from vlmdoctor.errors import UserError
    from vlmdoctor.targets.resolve import resolve

    seen.clear()
    kernels.asked.clear()
    told: dict[str, Any] = {"error": None}
    state["foreign"] = str(Path(folder).resolve())
    try:
        with contextlib.redirect_stderr(io.StringIO()), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            target = resolve(folder)
        told |= {
            "not_followed": target.facts.get("not_followed", []),
            "attention": attentions(target.subject.model.config),
            "batch": target.facts.get("batch", target.missing_batch),
        }
    except UserError as error:
        told["error"] = str(error)
    except BaseException as error:
        told["error"] = f"TRACEBACK {type(error).__name__}: {error}"
    finally:
        state["foreign"] = None
    return {**told, "seen": list(seen), "asked": list(kernels.asked)}


def main() -> None:
    """Warms up with the first folder, which is harmless, so that what is imported for all is known."""
    os.environ["HF_HUB_DISABLE_TELEMETRY"] = "1"
    harmless, *folders = sys.argv[1:]
    tried(harmless)
    own = {"torch", "transformers", "tokenizers", "safetensors", "huggingface_hub", "PIL", "numpy", "kernels"}
    tops = {name.partition(".")[0] for name in sys.modules}
    state["known"] = frozenset(
        {*tops, *own, *sys.stdlib_module_names, "vlmdoctor", "minivlm", "regex", "yaml"}
    )
    sys.addaudithook(hook)
    print(json.dumps({Path(folder).name: tried(folder) for folder in (harmless, *folders)}))


if __name__ == "__main__":
    main()

"""Files that are written whole or not at all."""

from __future__ import annotations

from pathlib import Path

from vlmdoctor import boundary
from vlmdoctor.errors import UserError


def write_whole(path: Path, text: str) -> None:
    """Writes a file whole or not at all; raises `UserError` where it can't be written.

    What is no file, such as /dev/stdout or a pipe, is written to and never replaced by one.
    """
    import tempfile

    try:
        if boundary.exists(path) and not boundary.is_file(path):
            if boundary.is_dir(path):
                raise UserError(f"can't write {path}: it is a folder; choose another file.")
            path.write_text(text, encoding="utf-8", errors="backslashreplace")
            return
        # A short name of its own: that of the file may be as long as names can be.
        with tempfile.NamedTemporaryFile(
            "w",
            encoding="utf-8",
            errors="backslashreplace",
            dir=path.parent,
            prefix=".vlmdoctor.",
            delete=False,
        ) as stream:
            temporary = Path(stream.name)
            try:
                stream.write(text)
                stream.flush()
                temporary.chmod(0o644)
                temporary.replace(path)
            except BaseException:
                temporary.unlink(missing_ok=True)
                raise
    except (OSError, ValueError) as error:
        raise UserError(f"can't write {path}: {boundary.reason(error)}; choose another file.") from None

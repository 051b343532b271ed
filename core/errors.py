"""Errors that a person can meet, and how any exception is put into plain words."""

import errno
import traceback
from dataclasses import dataclass


class CoreError(Exception):
    """An error with one plain sentence for the person and a hint on what to do.

    Args:
        message: what is wrong and where (file and line where there is one).
        hint: what to do about it; may be empty.
        details: technical text for the report (an exit code, the end of a log); may be empty.
    """

    def __init__(self, message: str, hint: str = "", details: str = "") -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint
        self.details = details


class Cancelled(CoreError):
    """The person asked a job to stop; nothing went wrong and nothing half done is left."""

    def __init__(self, message: str = "Cancelled.") -> None:
        super().__init__(message)


class ConfigError(CoreError):
    """A run file or an override that can not be read as a RunConfig."""


class DataError(CoreError):
    """A dataset that can not be read or trained on."""


class ModelError(CoreError):
    """A model folder or file that is missing, damaged, unsafe or of an unknown kind."""


class AdapterError(CoreError):
    """An adapter that does not fit its base model or is damaged."""


class EngineError(CoreError):
    """The engine process crashed, hangs or can not be reached."""


class PeerLost(CoreError):
    """Another process of a run with several is gone, so this one can not go on."""


class ToldElsewhere(CoreError):
    """This process of several ends, and another one has told the person why."""


@dataclass(frozen=True)
class Description:
    """An exception in plain words: one sentence, a hint, and the technical details."""

    message: str
    hint: str
    details: str


def describe(error: BaseException) -> Description:
    """Put any exception into words. The traceback goes to `details`, never to `message`."""
    details = "".join(traceback.format_exception(error))
    if isinstance(error, CoreError):
        return Description(error.message, error.hint, f"{error.details}\n{details}" if error.details else details)
    if isinstance(error, OSError):
        return Description(*_describe_os_error(error), details)
    if isinstance(error, MemoryError) or "out of memory" in str(error).lower():
        return Description(
            "There is not enough memory for this step.",
            "Choose a smaller batch size, a shorter maximum length or a smaller model.",
            details,
        )
    return Description(
        f"Something unexpected went wrong ({type(error).__name__}).",
        "Copy the report and send it to the developers; your run folder is kept as it is.",
        details,
    )


def _describe_os_error(error: OSError) -> tuple[str, str]:
    place = f" ({error.filename})" if error.filename else ""
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return f"The disk is full{place}.", "Free some space, then continue; what was saved before is kept."
    if error.errno in (errno.EACCES, errno.EPERM, errno.EROFS):
        return f"No permission to use this file or folder{place}.", "Choose a folder you may write to."
    if error.errno == errno.ENOENT:
        return f"This file or folder does not exist{place}.", "Check the path."
    return f"The system refused a file operation: {error.strerror or error}{place}.", ""

"""Exceptions, sorted by who can fix them.

Every message says what happened, where, what was expected and what was got, and what to try. The command line turns a
`CactusError` into one line on stderr and its `exit_code`; anything else is a defect of ours and keeps its traceback.
"""

from __future__ import annotations

GOOD, NEGATIVE, UNUSABLE = 0, 1, 2
"""Exit codes: a positive verdict, a negative verdict, bad usage or input."""


class CactusError(Exception):
    """A failure somebody outside this package can fix. `hint` says what to try."""

    exit_code = UNUSABLE

    def __init__(self, message: str, *, hint: str = "") -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint

    def __str__(self) -> str:
        return f"{self.message}\n  try: {self.hint}" if self.hint else self.message


class InputError(CactusError):
    """The user's own input: an option, a recipe, a data file."""


class DataError(InputError):
    """A data set that is missing or is not what it should be."""


class ModelError(CactusError):
    """A model file that is malformed, or uses what is not supported."""


class UnsupportedError(ModelError):
    """A well-formed model with an op or a parameter combination that was not shown equal to a real runtime."""


class CertificateError(CactusError):
    """A certificate that cannot be read at all (one that can be read but is wrong is a negative verdict)."""


class TargetError(CactusError):
    """A board description that is wrong, or a model that does not fit the board."""


class DeviceError(CactusError):
    """The board or the way to it. Subclasses name the stage, so that no failure hides behind a time-out."""


class DeviceNotFoundError(DeviceError):
    """No such port, or no board answers there."""


class DeviceBusyError(DeviceError):
    """Another program holds the port."""


class DeviceSilentError(DeviceError):
    """The port opened and stayed silent."""


class DeviceGarbageError(DeviceError):
    """Bytes came, but not in the protocol (wrong baud rate, other firmware)."""


class DeviceResetError(DeviceError):
    """The board booted again in the middle of a command."""


class DeviceGoneError(DeviceError):
    """The port vanished in the middle of a command."""


class DeviceProtocolError(DeviceError):
    """The board answered in the protocol, and the answer is an error or is out of place."""


class DeviceHostKeyError(DeviceError):
    """The computer at that address does not show a host key that this user trusts."""


class DeviceLoginError(DeviceError):
    """The computer answered and lets this user not in."""


class DeviceLacksError(DeviceError):
    """Something has to be installed on the device first."""


class DeviceFullError(DeviceError):
    """No room is left on the device."""


class DeviceModelError(DeviceError):
    """The device's runtime does not take the file."""


class DeviceKilledError(DeviceError):
    """Our program on the device was ended by something else."""


class FlashError(DeviceError):
    """The flashing tool failed."""


class InstallError(CactusError):
    """Something that has to be installed first."""


class MismatchError(CactusError):
    """Two executions that must agree bit for bit do not."""

    exit_code = NEGATIVE


class InternalError(CactusError):
    """A promise of our own was broken: please report it."""

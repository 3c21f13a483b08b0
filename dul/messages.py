"""P-DATA fragments to DIMSE messages (PS3.7 6.3, PS3.8 Annex E), without I/O.

Command fragments are joined, up to `limits.MAX_COMMAND_SET`; data-set fragments pass through. Both may share a
PDU or span many.
"""

from __future__ import annotations

from dataclasses import dataclass

from dul import limits
from dul.dimse import Command, decode_command
from dul.errors import ABORT_INVALID_PDU_PARAMETER_VALUE, RemoteProtocolError
from dul.framing import Fragment


@dataclass(frozen=True, slots=True)
class CommandReceived:
    """A whole command set; when `command.has_data_set`, data-set fragments of the same context follow."""

    context_id: int
    command: Command


@dataclass(slots=True)
class DataSetFragment:
    """Some bytes of the data set of the command before; a view into the read buffer."""

    data: memoryview
    last: bool


class MessageReader:
    """Checks the order of the fragments of one association, and joins command sets."""

    def __init__(self) -> None:
        self._command = bytearray()
        self._context_id: int | None = None  # of the message that has begun
        self._in_data_set = False

    @property
    def mid_command(self) -> bool:
        """True while a command set has begun and is not whole."""
        return self._context_id is not None and not self._in_data_set

    def feed(self, fragment: Fragment) -> CommandReceived | DataSetFragment | None:
        """What the fragment completes or continues; `RemoteProtocolError` when it has no place here."""
        if self._context_id is None:
            self._context_id = fragment.context_id
        elif fragment.context_id != self._context_id:
            raise _invalid(
                f"a fragment of presentation context {fragment.context_id} within a message of {self._context_id}"
            )
        if self._in_data_set:
            return self._data_set_fragment(fragment)
        if not fragment.command:
            raise _invalid("a data-set fragment without a command before it")
        return self._command_fragment(fragment)

    def _data_set_fragment(self, fragment: Fragment) -> DataSetFragment:
        if fragment.command:
            raise _invalid("a command fragment within a data set")
        if fragment.last:
            self._in_data_set = False
            self._context_id = None
        return DataSetFragment(fragment.data, fragment.last)

    def _command_fragment(self, fragment: Fragment) -> CommandReceived | None:
        if len(self._command) + len(fragment.data) > limits.MAX_COMMAND_SET:
            raise _invalid(f"a command set of more than {limits.MAX_COMMAND_SET} bytes")
        self._command += fragment.data
        if not fragment.last:
            return None
        command = decode_command(bytes(self._command))
        self._command.clear()
        received = CommandReceived(fragment.context_id, command)
        self._in_data_set = command.has_data_set
        if not self._in_data_set:
            self._context_id = None
        return received


def _invalid(message: str) -> RemoteProtocolError:
    return RemoteProtocolError(message, ABORT_INVALID_PDU_PARAMETER_VALUE)

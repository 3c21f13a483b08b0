"""pydicom's decoders, and what to say when there is none."""

from __future__ import annotations

from pydicom.pixels.decoders.base import Decoder, get_decoder
from pydicom.uid import UID

from proxy.render.errors import NotPossibleError


def decoder_for(syntax: UID) -> Decoder:
    """The decoder for a transfer syntax.

    Raises `NotPossibleError` when there is none, as for video; ImportError when a library is missing.
    """
    try:
        decoder = get_decoder(syntax)
    except NotImplementedError:
        raise NotPossibleError("there is no decoder for the instance's transfer syntax") from None
    if not decoder.is_available:
        raise ImportError("no plugin for a transfer syntax")
    return decoder

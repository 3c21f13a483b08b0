"""A proxy that speaks DICOMweb to web programs and DIMSE to archives."""

from importlib.metadata import PackageNotFoundError, version
from typing import Final

PRODUCT: Final = "dicomweb-proxy"
"""How the program is called by others: in HTTP's Server header, and in audit messages."""

try:
    __version__ = version(PRODUCT)
except PackageNotFoundError:  # run from an unpacked tree
    __version__ = "0+unknown"

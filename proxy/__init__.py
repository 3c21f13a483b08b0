"""A proxy that speaks DICOMweb to web programs and DIMSE to archives."""

from importlib.metadata import PackageNotFoundError, version

try:
    __version__ = version("dicomweb-proxy")
except PackageNotFoundError:  # run from an unpacked tree
    __version__ = "0+unknown"

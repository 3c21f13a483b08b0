"""An archive to try the proxy with, made of `dul`: a folder of DICOM files, served by C-FIND, C-MOVE and C-GET.

What may live here: what a first run and the tests need of an archive. Nothing else in `proxy` depends on it.
"""

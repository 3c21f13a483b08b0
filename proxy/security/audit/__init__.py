"""The record of who accessed what: one JSON line for each access, and DICOM audit messages (PS3.15 A.5)."""

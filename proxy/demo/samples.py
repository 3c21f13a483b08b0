"""Sample images for a first run: the test files that come with pydicom, so that no network is needed.

What may live here: where they are.
"""

from __future__ import annotations

from pathlib import Path

import pydicom


def sample_folder() -> Path:
    """The folder of pydicom's own test files, which is not to be written to.

    Raises FileNotFoundError where pydicom was installed without them, as some distributions do.
    """
    folder = Path(pydicom.__file__).parent / "data" / "test_files"
    if not any(folder.glob("*.dcm")):
        raise FileNotFoundError(f"pydicom was installed without its test files: there are none in {folder}")
    return folder

"""Real DICOM programs as test peers.

`orthanc`, `dcmtk` and `pynetdicom_peer` each start one program on a free loopback port, wait until it
answers, and end it within a bound. A program that is not installed skips the test that asked for it.
The calls block: in an asyncio test, run them with `asyncio.to_thread`.
"""

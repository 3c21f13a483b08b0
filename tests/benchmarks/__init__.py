"""The numbers of the project, measured against Orthanc and DCMTK on the same machine: `python -m tests.benchmarks`."""

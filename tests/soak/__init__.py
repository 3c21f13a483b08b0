"""Mixed load on the proxy, with archives that fail now and then: `python -m tests.soak`.

The proxy, Orthanc and a scripted archive run as processes of their own; the clients run here. An answer must be
complete and right, to the byte, or fail so that a client sees it, and that only while an archive had a fault. In the
end nothing may be left over: no association, no open file, no memory, no file in the spool.
"""

"""Certificates and TLS of servers: for HTTPS, and for DICOM TLS, which `archive/peers/tls` makes of it.

`certificates` reads PEM files, `checks` says what is wrong with them, `self_signed` makes certificates for the names of
this machine (`interfaces`), `server` makes contexts, `https` keeps the certificate of HTTPS while the proxy runs.
"""

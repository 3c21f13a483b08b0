"""Who may do what over HTTP, and what nobody may: all that stands between the network and the handlers.

`clients` says where a request comes from, `identity` who has made it. `http` is the connections and what a request must
be, `tls` the certificates and HTTPS, `auth` who may pass, `audit` the record of who did what.
"""

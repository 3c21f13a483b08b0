"""HTTP from strangers: how many may call and how fast, what a request must look like, and which pages may ask.

Connections: `listening` (who is accepted), `places` (how many), `connection` (what a client must keep to), `draining`
(the end). Middlewares: `requests` (what is no request for this server), `redirect` (to HTTPS), `cors`, `limits`.
Of answers: `contents` (what a browser may make of them).
"""

"""Dicomweb mode: requests are handed on to a DICOMweb server, and its answers come back, streamed both ways.

`handler` is what the routes lead to; `targets` says where a request goes, `headers` what is handed on, `addresses` how
the upstream's addresses become the proxy's own, `rewrite` does that in a body on its way, `bodies` takes uploads,
`upstream` sends, by `client`, `health` knows whether the upstream answers, `settings` reads secrets and certificates,
`errors` has the words for what goes wrong.
"""

"""Who may use the proxy over HTTP: ways to sign in, and what somebody who has signed in may do.

`middleware` stands before every handler; `ways` asks the ways to sign in that the configuration sets. These are
`basic` (names and passwords; `hashing`, `failures`), `tokens`, `jwts` (`jwks`, `keyring`, `provider`) and
`certificates`. What is not proven is refused, and so is what cannot be checked.
"""

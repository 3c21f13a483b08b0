"""Pixels to images, and data sets to other transfer syntaxes, in worker processes.

`pool` is all that the server itself imports from here, with `jobs` and `errors`; it knows neither HTTP nor archives.
The other modules run in the workers, and need what the extra "render" installs where they decode pixels.
"""

"""The configuration: every key, its default, and what is allowed; finding, reading and checking the file.

`types` has the kinds of values, `schema` the keys, `rules` what must hold between keys, `checking` the whole of a
file's content, `reading` the file, `hints` what it holds without effect, `errors` the words for what is wrong.
"""

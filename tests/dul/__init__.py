"""Tests of `dul`."""

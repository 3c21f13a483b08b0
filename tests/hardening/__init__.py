"""What the proxy withstands: README.md says which test shows it, and by what number."""

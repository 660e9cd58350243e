"""The files of a bundle: formats, checks, signatures and the manifest."""

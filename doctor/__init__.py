"""Check this machine for problems that would stop training, exporting or serving.

Needs only the base install: packages that may be missing or broken are imported in a child process.
"""

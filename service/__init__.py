"""Serve bundles over HTTP: a front process, and one engine process per open bundle. Never imports torch."""

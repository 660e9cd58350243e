"""Serve bundles over HTTP: a front process, and one engine process per open bundle. Imports neither torch nor training."""

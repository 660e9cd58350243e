"""Open, serve, switch, compare and close bundles; follow the store."""

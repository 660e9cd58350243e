"""The load generator: an open loop that sends on schedule, whatever the service does, and tells its own lag too."""

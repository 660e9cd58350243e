"""An open-loop load generator: requests leave on schedule, and each latency counts from when its request was due."""

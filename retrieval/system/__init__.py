"""The operating system: files, limits, priorities, signals, terminals and sandboxing."""

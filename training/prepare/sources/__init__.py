"""Sources other than click logs, and what all tables share: columns, label tables and splits."""

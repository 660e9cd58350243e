"""Candidates from a Milvus server: one collection per bundle. Only `server.py` needs the extra `milvus`."""

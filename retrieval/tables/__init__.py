"""The one reader of tables for all commands: CSV, TSV, JSON Lines and Parquet, one file or a folder of part files.

It needs neither torch nor ONNX Runtime, so that training reads its sources with it too.
"""

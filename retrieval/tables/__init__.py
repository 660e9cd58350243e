"""The table reader of all commands: CSV, TSV, JSON Lines and Parquet, one file or a folder of part files.

It imports neither torch nor ONNX Runtime, so training can use it as well.
"""

"""Show the progress of a run: callbacks, console, TensorBoard, and errors of exhausted resources."""

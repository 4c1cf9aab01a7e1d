"""Tables, figures and one HTML page, made from a `RunRecord` and images alone."""

"""The feasibility study: a grid of data, methods and sizes, planned, run anywhere, kept in one database."""

"""The paper's tables and figures: their measurements, and the report of the results."""

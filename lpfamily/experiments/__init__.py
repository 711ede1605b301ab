"""The paper's tables and figures: what each trains and measures, and what it says."""

"""A whole analysis from one file: checked, planned, run stage by stage, resumed."""

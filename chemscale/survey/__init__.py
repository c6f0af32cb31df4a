"""Surveys: sources, stores, and what turns one into the other."""

from . import accessor as accessor  # registers `survey.chemscale`

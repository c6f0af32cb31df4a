"""Surveys: sources, stores, and what turns one into the other."""

from chemscale.survey import accessor as accessor  # registers `survey.chemscale`

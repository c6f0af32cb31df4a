"""Surveys: sources, stores, and what turns one into the other."""

"""What a run found, as people take it away: one table a star, latents and features by star, two runs side by side."""

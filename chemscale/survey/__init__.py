from . import accessor as accessor  # registers `survey.chemscale`

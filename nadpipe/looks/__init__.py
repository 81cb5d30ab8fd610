"""Commands that look at results, one a module; unlike stages they make no artifact that another reads."""

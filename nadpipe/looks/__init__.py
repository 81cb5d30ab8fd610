"""Commands that show results, one module each. Unlike stages, they write no artifact that another stage reads."""

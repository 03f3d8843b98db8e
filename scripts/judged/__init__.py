"""Sound and wrong models, to judge the report's verdicts on."""

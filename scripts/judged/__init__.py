"""Sound models and wrong ones, on which the report's verdicts are judged."""

FAULTS = {}
STRENGTHS = ("slight", "plain", "gross")

def markdown(records):
    return ""

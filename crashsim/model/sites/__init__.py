"""Where faults may strike in a model: sites, their names, and how they are found."""

"""What a run is made of, by its configuration: model, data, labels, what earlier runs trained."""

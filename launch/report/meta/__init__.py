"""Put metrics on trial: which of them tell whether a model has the knowledge."""

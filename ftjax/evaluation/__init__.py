"""What a trained model says of rows, and how well."""

"""What the jobs do. Imported after the command line is read: torch, Ray and MLflow take seconds, --help needs none."""

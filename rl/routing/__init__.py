"""The experts that engines choose, recorded for the trainer to replay."""

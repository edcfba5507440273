"""The one training loop, with its resumable data order and its logs."""

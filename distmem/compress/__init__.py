"""What happens after training: pruning, retraining, weight sharing, packing."""

"""What a run reports of itself: metrics, memory, energy."""
